"""Model cards: every line from what a checkpoint and its study record, and nothing of other models."""

import json
import re

import pytest
import torch
from small_models import ours

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.model_file import describe
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.interop.cards import RECEIPT_FIELDS, SCORE_FOLDERS, UNKNOWN, card_of, model_card
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

TRAIN = {"iterations": 12_000, "batch_size": 128, "learning_rate": 2e-4}
BASE = {
    "precision": "bfloat16",
    "facts": {"data": {"name": "digits"}, "unet": {}, "base": {"train": TRAIN, "prediction": "v"}, "seed": 3},
}
HALVED = {
    "precision": "float32",
    "facts": {"parent": "aaaa", "steps": 8, "train": {**TRAIN, "iterations": 500}, "seed": 4},
}
STUDENT = {
    "precision": "float32",
    "facts": {
        **{"parent": "bbbb", "method": "rdd", "steps": 1, "seed": 7, "iterations": 2500},
        "train": {**TRAIN, "iterations": 1, "batch_size": 64},
        "numbers": {"temperature": 0.85, "dual": False, "alpha": 1.5, "weight": 0.0, "released": []},
    },
}
RECEIPT = {
    "metric": "FID (digits metric network, 5000 samples)",
    "protocol": "float",
    "reference": "digits, 1797 images",
    "sampler": "DDIM, t = 1 .. 1/steps",
    "noise_seed": 1234,
    "guidance": "none",
    "clip": True,
    "git_commit": "6bb4cc6",
    "written": "2026-11-21T01:46:27Z",
    "hardware": "a machine",
}
VALUES = {"fid": 3.4143367298357816, "is": 8.81919222007702, "pfd": 1.4390815206944225}


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found if isinstance(found, str) else json.dumps(found))


@pytest.fixture
def study(tmp_path):
    """A study's folder: (its student's checkpoint, what that records), with the records of its ancestors."""
    denoiser, folder = ours(), tmp_path / "checkpoints"
    path = folder / "rdd-1-cccc.safetensors"
    save_checkpoint(path, denoiser.state_dict(), {**STUDENT, "model": describe(denoiser)})
    write(folder / "rdd-1-cccc.json", STUDENT)
    write(folder / "pd-8-bbbb.json", HALVED)
    write(folder / "base-aaaa.json", BASE)
    write(folder / "base-dddd.json", {**BASE, "facts": {**BASE["facts"], "data": {"name": "another"}}})
    return path, load_checkpoint(path)[1]


def score(study, checkpoint=None, **values):
    receipt = {**RECEIPT, "checkpoint_sha256": checkpoint or study[1]["sha256"]}
    return {"row": {"method": "rdd", "steps": 1, "seed": 7, **values, "samples": 5000}, "receipt": receipt}


def card(study, **options):
    return card_of(ours(), *study, **{"title": "My student", "steps": 1, "usage": "draw()", **options})


def rows_of(text, start="| | |"):
    """The rows of the Markdown table that begins like this, each a list of cells."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def facts_of(text):
    return {cells[0]: cells[1] for cells in rows_of(text)[2:]}


def facts(denoiser=None, **options):
    """The facts of a model's card."""
    return facts_of(model_card(denoiser or ours(), title="a", **options))


def sections(text):
    """{heading: what stands below it}."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


# --- what it is ------------------------------------------------------------------------------------------------------


def test_a_student_s_card_says_what_its_study_records(study):
    text = card(study)
    found, parts = facts_of(text), sections(text)
    count = sum(p.numel() for p in ours().parameters())
    assert text.startswith("# My student\n\n| | |\n|---|---|\n") and "guidance" not in found
    expected = {
        "network": f"U-Net, 16 channels, {count / 1e6:.2f}M parameters, v prediction",
        "images": "1 x 8 x 8, in [-1, 1]",
        "sampling": "DDIM, 1 step, x held in [-1, 1]",
        "noise schedule": "cosine, continuous, offset 0.008",
        "data": "digits",
        "training": "2,500 iterations, batch 64, learning rate 0.0002, seed 7, float32",
        "checkpoint (sha256)": study[1]["sha256"],
    }
    assert expected.items() <= found.items()
    name, numbers = found["objective"].removesuffix(")").split(" (")
    assert name == "RDD" and sorted(numbers.split(", ")) == ["alpha 1.5", "temperature 0.85", "weight 0.0"]
    assert re.fullmatch(r"rddlib, commit ([0-9a-f]{40}(\+changes)?|unknown)", found["written by"])
    assert parts["How it came about"].splitlines() == [  # the oldest first
        "1. base model: 12,000 iterations, batch 128, learning rate 0.0002, seed 3, bfloat16",
        f"2. {found['teacher']}",
        "3. RDD student of 1 step: 2,500 iterations, batch 64, learning rate 0.0002, seed 7, float32",
    ]
    teacher = "PD teacher of 8 steps: 500 iterations, batch 128, learning rate 0.0002, seed 4, float32"
    assert found["teacher"] == teacher and parts["Use"] == "```python\ndraw()\n```"
    assert "To be filled in by whoever publishes this model" in parts["Licence"]
    assert parts["What was measured"].startswith("Nothing yet") and "rdd evaluate" in parts["What was measured"]


@pytest.mark.parametrize(
    "schedule, said",
    [
        (CosineSchedule(0.02), "cosine, continuous, offset 0.02"),
        (DiscreteCosineSchedule(64), "cosine, 64 steps"),
        (BetaSchedule((0.1, 0.2)), "betas of its own, 2 steps"),
    ],
)
def test_the_schedule_is_named(schedule, said):
    assert facts(ours(schedule=schedule))["noise schedule"] == said


def test_classes_guidance_and_any_number_of_steps():
    denoiser = ours("x", num_classes=10, guidance=(0.0, 4.0))
    found = facts(denoiser)
    assert found["images"].endswith(", of 10 classes") and found["sampling"].startswith("DDIM, any number of steps")
    assert found["network"].endswith("x prediction, 10 classes, takes guidance 0 to 4")
    found = facts(denoiser, steps=2, guidance=1.5, clip=False)
    assert found["guidance"] == "w = 1.5, fixed" and found["sampling"] == "DDIM, 2 steps, x not clipped"


def test_what_is_not_recorded_is_said_to_be():
    text = model_card(as_denoiser(torch.nn.Conv2d(1, 1, 1), CosineSchedule()), title="a", steps=2)
    found = facts_of(text)
    for name in ("images", "data", "teacher", "objective", "training", "checkpoint (sha256)"):
        assert found[name] == UNKNOWN, name
    assert found["network"].startswith("Conv2d") and not {"How it came about", "Use"} & sections(text).keys()


SOURCE = {"name": "ddpm-cifar10", "made_by": "diffusers"}
GIVEN = {"source": SOURCE, "facts": {"pretrained": "e", "data": {"name": "digits"}}}
KINDS = [
    ({"sha256": "e", "source": SOURCE}, "ddpm-cifar10 (diffusers)"),
    (GIVEN, "ddpm-cifar10 (diffusers)"),
    (
        {"source": SOURCE, "facts": {"pretrained": "e", "train": TRAIN, "seed": 1}},
        "ddpm-cifar10 (diffusers), which has learnt to predict v: 12,000 iterations, batch 128, learning rate 0.0002, "
        "seed 1, not recorded",
    ),
    ({"facts": {"guidance": [0, 4]}}, "one network that takes guidance"),
    ({"facts": {"method": "cfd", "steps": 4, "numbers": {}}}, "CFD student of 4 steps"),
    ({"facts": {"method": "rdd", "steps": 4, "stochastic": True}}, "RDD student of 4 stochastic steps"),
]


@pytest.mark.parametrize("info, said", KINDS)
def test_each_kind_of_teacher_is_named(info, said):
    assert facts(lineage=[STUDENT, info])["teacher"] == said


def test_a_given_model_is_not_said_to_have_learnt_from_its_students_data():
    assert facts(lineage=[GIVEN])["data"] == UNKNOWN
    assert facts(lineage=[STUDENT, GIVEN])["data"] == "digits"


@pytest.mark.parametrize("wrong", [[], 3, {"method": "rdd", "numbers": 5, "train": 2, "data": "x", "base": []}])
def test_facts_of_another_kind_are_survived(wrong):
    assert "## Licence" in model_card(ours(), title="a", lineage=[{"facts": wrong}, {"facts": wrong}])


# --- where it comes from and what was measured -----------------------------------------------------------------------


@pytest.mark.parametrize("left", [None, "{", "null", '{"kind": "pd-8"}'])
def test_ancestors_whose_records_are_missing_or_damaged_are_left_out(study, left):
    record = study[0].parent / "pd-8-bbbb.json"
    record.unlink()
    if left is not None:
        write(record, left)
    found = facts_of(card(study))
    assert found["teacher"] == found["data"] == UNKNOWN and found["training"].startswith("2,500 iterations")


@pytest.mark.parametrize("parent", ["cccc", "../../etc/passwd", "*", 7])
def test_a_parent_that_is_itself_or_no_key_ends_the_line(study, parent):
    path, info = study
    own = {**info, "facts": {**info["facts"], "parent": parent}}
    write(path.parent / "rdd-1-cccc.json", own)
    assert facts_of(card((path, own)))["objective"].startswith("RDD")


def test_the_numbers_are_those_of_the_records_each_with_its_receipt(study):
    folder, more = study[0].parent.parent, {"fid": 12.5, "kid": 0.00123456, "precision": 0.75, "recall": 0.5}
    write(folder / "scores/rdd-1-7-aa.json", score(study, **VALUES))
    write(folder / "evaluations/rdd-bb.json", score(study, **more))
    text = card(study)
    table = rows_of(text, "| steps |")
    lines = {cells[-1]: dict(zip(table[0], cells, strict=True)) for cells in table[2:]}
    drawn = ["steps", "sampler", "guidance", "clip", "samples", "protocol"]
    assert table[0] == [*drawn, "fid", "is", "pfd", "kid", "precision", "recall", "receipt"]
    for (number, cells), values in zip(lines.items(), (VALUES, more), strict=True):
        assert number in "12" and [cells[name] for name in drawn] == [
            "1",
            RECEIPT["sampler"],
            "none",
            "True",
            "5000",
            "float",
        ]
        found = {name: float(cells[name]) for name in table[0][len(drawn) : -1] if cells[name]}
        assert found == pytest.approx(values, rel=1e-4)
    (line,) = [line for line in text.splitlines() if line.startswith("1. `")]
    place, said = line.split(": ", 1)
    assert place == "1. `scores/rdd-1-7-aa.json`"
    assert dict(part.split(" ", 1) for part in said.split("; ")) == {
        name: str(RECEIPT[name]) for name in RECEIPT_FIELDS
    }


@pytest.mark.parametrize("folder", SCORE_FOLDERS)
def test_records_are_found_in_every_folder_of_a_study_and_not_elsewhere(study, folder, tmp_path):
    write(study[0].parent.parent / folder / "a.json", score(study, **VALUES))
    assert f"1. `{folder}/a.json`: " in card(study)
    moved = tmp_path / "elsewhere" / "deep" / "m.safetensors"
    text = card((moved, study[1]))
    assert facts_of(text)["teacher"] == UNKNOWN and "Nothing yet" in text


OTHERS = {
    "another model": lambda study: score(study, "f" * 64, **VALUES),
    "no receipt": lambda study: {"row": score(study, **VALUES)["row"]},
    "no checkpoint": lambda study: {**score(study, **VALUES), "receipt": RECEIPT},
    "half a file": lambda study: json.dumps(score(study, **VALUES))[:-20],
    "a list": lambda study: [score(study, **VALUES)],
    "a row that is a number": lambda study: {**score(study, **VALUES), "row": 3},
}


@pytest.mark.parametrize("name", OTHERS)
def test_records_of_other_models_and_damaged_ones_are_left_out(study, name):
    place = study[0].parent.parent / "scores/other.json"
    write(place, OTHERS[name](study))
    assert "Nothing yet" in card(study)
    write(place.with_name("own.json"), score(study, **VALUES))
    assert "own.json" in card(study) and "other.json" not in card(study)


def test_a_model_without_a_checksum_has_no_records(study):
    path, info = study
    unknown = {**score(study, **VALUES), "receipt": {**RECEIPT, "checkpoint_sha256": None}}
    write(path.parent.parent / "scores/a.json", unknown)
    assert "Nothing yet" in card((path, {name: value for name, value in info.items() if name != "sha256"}))
