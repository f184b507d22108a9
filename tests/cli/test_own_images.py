"""A folder of one's own images that are not square, with a pipeline of one's own: from the profile `own` to what is exported."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import needs_diffusers, quiet, settings
from tiny_study import SHORT, TINY

from rddlib.diffusion.sampling import ddim_sample
from rddlib.interop import from_diffusers, load_model

pytestmark = quiet
FEW = ("pretrained.convert.iterations=2", "progressive.train.iterations=1", "distill.iterations=[1,1,1]")


@pytest.fixture
def teacher(tmp_path):
    """The folder of a DDPM with random weights for images 20 wide and 12 high."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=(12, 20),
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """photos(width, height, classes, each): a folder of images of that size, unlabelled by default."""
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))

    def photos(width, height, classes=("",), each=20):
        root, rng = tmp_path / f"photos{width}x{height}", np.random.default_rng(0)
        for name in classes:
            (root / name).mkdir(parents=True)
            for number in range(each):
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / name / f"{number}.png")
        return root

    return photos


def of(root, *more):
    return [word for text in (f"data.root={root}", *FEW, *more) for word in ("--set", text)]


@pytest.mark.ci
def test_a_whole_study_with_a_classifier_of_its_own(done, tmp_path, folder):
    """Base model, classifier, students, samples, scores and report, of images 20 wide and 12 high."""
    numbers = TINY | {"evaluation.samples": "100", "evaluation.network": "extractor", "evaluation.baselines": "[]"}
    numbers |= {"unet.image_size": "[12, 20]", "unet.image_channels": "3", "unet.attention": "6", "data.name": "folder"}
    numbers |= SHORT | {"methods": "[rdd]"}
    root, out = folder(20, 12, ("a", "b"), each=50), tmp_path / "run"
    given = ["--profile", "smoke", "--out", str(out), *settings(numbers | {"data.root": root})]
    done("study", "--no-notebooks", *given)
    scores = [line.split(",") for line in (out / "results.csv").read_text().splitlines()[1:]]
    assert {(row[0], row[1]) for row in scores} >= {("ddim", "2"), ("rdd", "1")}
    assert all(float(row[3]) > 0 for row in scores) and (out / "index.html").exists()


@needs_diffusers
def test_from_a_folder_and_a_pipeline_to_a_pipeline_and_a_file(done, tmp_path, teacher, folder):
    out = tmp_path / "run"
    given = ["--profile", "own", "--teacher", str(teacher), "--out", str(out), *of(folder(20, 12))]
    done("distill", "--objective", "cfd_is_pd", *given)
    (checkpoint,) = (out / "checkpoints").glob("cfd_is_pd-1-*.safetensors")
    student, info = load_model(checkpoint)
    assert student.network.config.image_shape == (3, 12, 20)
    record = json.loads(next((out / "checkpoints").glob("extractor-*.json")).read_text())
    assert record["facts"]["extractor"] == {"name": "teacher", "level": 2, "time": 0.3}

    drawn = ["--checkpoint", str(checkpoint), "--steps", "1", "--count", "9", "--out", str(tmp_path / "drawn")]
    done("sample", *drawn)
    (npz,), (picture,) = ((tmp_path / "drawn/samples").glob(f"*.{kind}") for kind in ("npz", "png"))
    assert np.load(npz)["arr_0"].shape == (9, 12, 20, 3)
    zoom = 64 // 20
    assert Image.open(picture).size == (3 * (20 + 1) * zoom + zoom, 3 * (12 + 1) * zoom + zoom)

    pipeline, script = tmp_path / "pipeline", tmp_path / "student.ts"
    done("export", "diffusers", checkpoint, "--to", pipeline)
    done("export", "torchscript", checkpoint, "--to", script)
    card = (pipeline / "README.md").read_text()
    assert (
        "| images | 3 x 12 x 20, in [-1, 1] |" in card
        and "torch.randn(4, 3, 12, 20)" in script.with_suffix(".md").read_text()
    )
    noise = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    expected = ddim_sample(student, noise, 1)
    assert torch.equal(ddim_sample(from_diffusers(pipeline), noise, 1), expected)
    torch.testing.assert_close(torch.jit.load(script)(noise), expected, rtol=0, atol=1e-4)


@needs_diffusers
def test_images_of_another_size_are_refused_or_resized(done, refusal, tmp_path, teacher, folder):
    given = ["--profile", "own", "--teacher", str(teacher), "--out", str(tmp_path / "run")]
    root = folder(12, 20)
    said = refusal("distill", *given, *of(root))
    assert "images (3, 20, 12), wanted are (3, 12, 20) by pretrained.teacher: " in said and "data.resize=true" in said
    said = refusal("train", "--profile", "own", "--out", tmp_path / "run", *of(root))
    assert "wanted are (3, 64, 64): change unet.image_size" in said and "--set data.resize=true" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "data").exists()
    done("distill", "--objective", "pd", *given, *of(root, "data.resize=true"))
