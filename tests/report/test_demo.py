"""The first picture: what the models in the box draw from one noise."""

import numpy as np
import pytest
from PIL import Image

from rddlib.report import pages


@pytest.mark.parametrize(
    "profile, labels",
    [
        ("photos", ["teacher, 8 steps", "DDIM, 1 step", "PD, 1 step", "CFD + IS_P2P + PD, 1 step"]),
        (
            "digits",
            [
                "teacher, 8 steps",
                "DDIM, 1 step",
                "PD, 1 step",
                "CFD, 1 step",
                "RDD, 1 step",
                "CFD + IS_P2P + PD, 1 step",
            ],
        ),
    ],
)
def test_students_draw_in_one_step_what_the_teacher_draws(profile, labels):
    """Nearer to its images of the same noise than to those of any other, which undistilled DDIM's single step is not."""
    axes = pages.demo_view(profile, count=8)().axes
    assert [ax.texts[0].get_text() for ax in axes] == labels
    size = 8 if profile == "digits" else 16
    shown = np.stack([ax.images[0].get_array() for ax in axes])  # rows of 8 images with a pixel between them
    images = np.stack([shown[:, :, n * (size + 1) :][:, :, :size] for n in range(8)], axis=1).reshape(len(axes), 8, -1)
    distances = ((images[:, :, None] - images[0]) ** 2).mean(-1)  # [rows, 8 drawn, 8 of the teacher]
    students = [k for k, label in enumerate(labels) if not label.startswith(("teacher", "DDIM"))]
    assert (distances[students].argmin(-1) == np.arange(8)).all()
    assert (distances[students].mean((1, 2)) > 4 * distances[students].diagonal(0, 1, 2).mean(-1)).all()
    assert distances[1].diagonal().mean() > 4 * distances[students].diagonal(0, 1, 2).mean()


def test_the_command_names_its_picture_and_opens_it_where_asked(rdd, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", lambda path: opened.append(path) or 1)
    status, printed, errors = rdd("demo", "--out", str(tmp_path / "new"))
    picture = tmp_path / "new/photos.png"
    assert status == 0 and printed.startswith(f"{picture}: ") and not errors and not opened
    assert np.asarray(Image.open(picture).convert("L")).std() > 20
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["photos.png"]
    status, _, errors = rdd("demo", "--out", str(tmp_path / "new"), "--open")
    assert status == 0 and opened == [str(picture)] and "open it yourself" in errors


def test_without_models_there_is_one_line_and_no_picture(refusal, tmp_path, monkeypatch):
    for profile in ("cifar10", "photos"):
        said = refusal("demo", "--profile", profile, "--out", tmp_path / "new")
        assert f"no teacher of the profile {profile}" in said
        monkeypatch.setattr(pages, "shipped", lambda _: tmp_path)  # and then photos
    assert not (tmp_path / "new").exists()
