"""Model cards: every line from what a checkpoint and its study record, and nothing of other models."""

import json
import re

import pytest
import torch

from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.model_file import describe
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.interop.cards import RECEIPT_FIELDS, UNKNOWN, card_of, model_card
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

TRAIN = {"iterations": 12_000, "batch_size": 128, "learning_rate": 2e-4}
BASE = {
    "kind": "base",
    "precision": "bfloat16",
    "facts": {"data": {"name": "digits"}, "unet": {}, "base": {"train": TRAIN, "prediction": "v"}, "seed": 3},
}
HALVED = {
    "kind": "pd-8",
    "precision": "float32",
    "facts": {"parent": "aaaa", "steps": 8, "train": {**TRAIN, "iterations": 500}, "seed": 4},
}
STUDENT = {
    "kind": "rdd-1",
    "precision": "float32",
    "facts": {
        "parent": "bbbb",
        "method": "rdd",
        "steps": 1,
        "seed": 7,
        "iterations": 2500,
        "train": {**TRAIN, "iterations": 1, "batch_size": 64},
        "numbers": {"temperature": 0.85, "dual": False, "alpha": 1.5, "released": []},
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


def small(schedule=None, prediction="v", **changes):
    config = UNetConfig(
        **{
            "image_size": 8,
            "image_channels": 1,
            "channels": 16,
            "multipliers": (1,),
            "blocks": 1,
            "attention": (),
            "groups": 8,
            **changes,
        }
    )
    return Denoiser(UNet(config), schedule or CosineSchedule(), prediction)


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found if isinstance(found, str) else json.dumps(found))


@pytest.fixture
def study(tmp_path):
    """A study's folder: (its student's checkpoint, what that records), with the records of its ancestors."""
    denoiser, folder = small(), tmp_path / "checkpoints"
    path = folder / "rdd-1-cccc.safetensors"
    save_checkpoint(path, denoiser.state_dict(), {**STUDENT, "model": describe(denoiser)})
    write(folder / "rdd-1-cccc.json", STUDENT)
    write(folder / "pd-8-bbbb.json", HALVED)
    write(folder / "base-aaaa.json", BASE)
    write(folder / "base-dddd.json", {**BASE, "facts": {**BASE["facts"], "data": {"name": "another"}}})
    return path, load_checkpoint(path)[1]


def score(info, checkpoint=None, **values):
    receipt = {**RECEIPT, "checkpoint_sha256": checkpoint or info["sha256"]}
    return {"row": {"method": "rdd", "steps": 1, "seed": 7, **values, "samples": 5000}, "receipt": receipt}


def card(study, denoiser=None, **options):
    path, info = study
    given = {"title": "My student", "steps": 1, "usage": "draw()", **options}
    return card_of(denoiser or small(), path, info, **given)


def rows_of(text, start="| | |"):
    """The rows of the Markdown table that begins like this, each a list of cells."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def facts_of(text):
    return {cells[0]: cells[1] for cells in rows_of(text)[2:]}


def sections(text):
    """{heading: what stands below it}."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


# --- what it is ------------------------------------------------------------------------------------------------------


def test_a_student_s_card_says_what_its_study_records(study):
    text = card(study)
    facts = facts_of(text)
    assert text.startswith("# My student\n\n| | |\n|---|---|\n")
    count = sum(p.numel() for p in small().parameters())
    assert facts["network"] == f"U-Net, 16 channels, {count / 1e6:.2f}M parameters, v prediction"
    assert facts["images"] == "1 x 8 x 8, in [-1, 1]"
    assert facts["sampling"] == "DDIM, 1 step, x held in [-1, 1]" and "guidance" not in facts
    assert facts["noise schedule"] == "cosine, continuous, offset 0.008"
    assert facts["data"] == "digits"
    assert facts["teacher"].startswith("PD teacher of 8 steps: 500 iterations, batch 128")
    name, numbers = facts["objective"].removesuffix(")").split(" (")
    assert name == "RDD" and sorted(numbers.split(", ")) == [
        "alpha 1.5",
        "temperature 0.85",
    ]  # no switches that are off
    assert facts["training"] == "2,500 iterations, batch 64, learning rate 0.0002, seed 7, float32"
    assert facts["checkpoint (sha256)"] == study[1]["sha256"]
    assert re.fullmatch(r"rddlib, commit ([0-9a-f]{40}(\+changes)?|unknown)", facts["written by"])


def test_the_ancestors_stand_in_order_the_oldest_first(study):
    lines = sections(card(study))["How it came about"].splitlines()
    assert lines == [
        "1. base model: 12,000 iterations, batch 128, learning rate 0.0002, seed 3, bfloat16",
        "2. PD teacher of 8 steps: 500 iterations, batch 128, learning rate 0.0002, seed 4, float32",
        "3. RDD student of 1 step: 2,500 iterations, batch 64, learning rate 0.0002, seed 7, float32",
    ]


def test_usage_and_licence(study):
    parts = sections(card(study))
    assert parts["Use"] == "```python\ndraw()\n```"
    assert (
        "To be filled in by whoever publishes this model" in parts["Licence"] and "data bind it too" in parts["Licence"]
    )
    assert "Use" not in sections(card(study, usage=""))


@pytest.mark.parametrize(
    "schedule, said",
    [
        (CosineSchedule(0.02), "cosine, continuous, offset 0.02"),
        (DiscreteCosineSchedule(64), "cosine, 64 steps"),
        (BetaSchedule((0.1, 0.2)), "betas of its own, 2 steps"),
    ],
)
def test_the_schedule_is_named(schedule, said):
    assert facts_of(model_card(small(schedule), title="a"))["noise schedule"] == said


def test_classes_guidance_and_any_number_of_steps():
    denoiser = small(num_classes=10, guidance=(0.0, 4.0), prediction="x")
    facts = facts_of(model_card(denoiser, title="a"))
    assert (
        facts["images"].endswith(", of 10 classes")
        and facts["sampling"] == "DDIM, any number of steps, x held in [-1, 1]"
    )
    assert facts["network"].endswith("x prediction, 10 classes, takes guidance 0 to 4")
    facts = facts_of(model_card(denoiser, title="a", steps=2, guidance=1.5, clip=False))
    assert facts["guidance"] == "w = 1.5, fixed" and facts["sampling"] == "DDIM, 2 steps, x not clipped"


def test_what_is_not_recorded_is_said_to_be():
    text = model_card(as_denoiser(torch.nn.Conv2d(1, 1, 1), CosineSchedule()), title="a", steps=2)
    facts = facts_of(text)
    for name in ("images", "data", "teacher", "objective", "training", "checkpoint (sha256)"):
        assert facts[name] == UNKNOWN, name
    assert facts["network"].startswith("Conv2d") and "How it came about" not in text


def test_a_weight_of_0_is_said():
    numbers = {"alpha": 0.0, "beta": 0.1, "dual": False, "released": []}
    info = {**STUDENT, "facts": {**STUDENT["facts"], "numbers": numbers}}
    assert facts_of(model_card(small(), title="a", lineage=[info]))["objective"] == "RDD (alpha 0.0, beta 0.1)"


SOURCE = {"name": "ddpm-cifar10", "made_by": "diffusers"}
KINDS = {
    "an imported model": ({"sha256": "e", "source": SOURCE}, "ddpm-cifar10 (diffusers)"),
    "a given base": (
        {"source": SOURCE, "facts": {"pretrained": "e", "data": {"name": "d"}}},
        "ddpm-cifar10 (diffusers)",
    ),
    "a given base that learnt v": (
        {"source": SOURCE, "facts": {"pretrained": "e", "train": TRAIN, "seed": 1}, "precision": "float32"},
        "ddpm-cifar10 (diffusers), which has learnt to predict v: 12,000 iterations, batch 128, "
        "learning rate 0.0002, seed 1, float32",
    ),
    "a guided one": (
        {"facts": {"guidance": [0, 4], "train": TRAIN, "seed": 1}, "precision": "float32"},
        "one network that takes guidance: 12,000 iterations, batch 128, learning rate 0.0002, seed 1, float32",
    ),
    "a student of many steps": ({"facts": {"method": "cfd", "steps": 4, "numbers": {}}}, "CFD student of 4 steps"),
    "a stochastic one": (
        {"facts": {"method": "rdd", "steps": 4, "stochastic": True, "numbers": {}}},
        "RDD student of 4 stochastic steps",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_teacher_is_named(name):
    info, said = KINDS[name]
    assert facts_of(model_card(small(), title="a", lineage=[STUDENT, info]))["teacher"] == said


# --- where it comes from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [None, "", "{", "null", '{"kind": "pd-8"}'])
def test_ancestors_whose_records_are_missing_or_damaged_are_left_out(study, left):
    record = study[0].parent / "pd-8-bbbb.json"
    record.unlink()
    if left is not None:
        write(record, left)
    text = card(study)
    assert facts_of(text)["teacher"] == facts_of(text)["data"] == UNKNOWN and "How it came about" not in text
    assert facts_of(text)["training"].startswith("2,500 iterations")


def test_a_base_that_is_missing_leaves_the_teacher(study):
    (study[0].parent / "base-aaaa.json").unlink()
    text = card(study)
    assert facts_of(text)["teacher"].startswith("PD teacher of 8 steps") and facts_of(text)["data"] == UNKNOWN
    assert len(sections(text)["How it came about"].splitlines()) == 2


def test_a_checkpoint_far_from_its_study_has_no_ancestors(study, tmp_path):
    moved = tmp_path / "elsewhere" / "deep" / "m.safetensors"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(study[0].read_bytes())
    text = card((moved, study[1]))
    assert facts_of(text)["teacher"] == UNKNOWN and "Nothing yet" in text


# --- what was measured -----------------------------------------------------------------------------------------------

VALUES = {"fid": 3.4143367298357816, "is": 8.81919222007702, "pfd": 1.4390815206944225}


def test_the_numbers_are_those_of_the_records(study):
    path, info = study
    more = {"fid": 12.5, "kid": 0.00123456, "precision": 0.75, "recall": 0.5}
    write(path.parent.parent / "scores/rdd-1-7-aa.json", score(info, **VALUES))
    write(path.parent.parent / "evaluations/rdd-bb.json", score(info, **more))
    table = rows_of(card(study), "| steps |")
    head, lines = table[0], {cells[-1]: dict(zip(table[0], cells, strict=True)) for cells in table[2:]}
    drawn = ["steps", "sampler", "guidance", "clip", "samples", "protocol"]
    assert head == [*drawn, "fid", "is", "kid", "precision", "recall", "pfd", "receipt"]
    assert list(lines) == ["1", "2"]
    for number, values in (("1", VALUES), ("2", more)):
        cells = lines[number]
        assert [cells[name] for name in drawn] == ["1", RECEIPT["sampler"], "none", "True", "5000", "float"]
        for name in head[len(drawn) : -1]:
            assert (
                cells[name] == "" if name not in values else float(cells[name]) == pytest.approx(values[name], rel=1e-4)
            )


def test_each_number_has_its_receipt(study):
    path, info = study
    write(path.parent.parent / "scores/a.json", score(info, **VALUES))
    (line,) = [line for line in card(study).splitlines() if line.startswith("1. `")]
    assert line.startswith("1. `scores/a.json`: ")
    said = dict(part.split(" ", 1) for part in line.split(": ", 1)[1].split("; "))
    assert said == {name: str(RECEIPT[name]) for name in RECEIPT_FIELDS}


@pytest.mark.parametrize("folder", ["scores", "guidance", "evaluations", "ablations/scores"])
def test_records_are_found_in_every_folder_of_a_study(study, folder):
    path, info = study
    write(path.parent.parent / folder / "a.json", score(info, **VALUES))
    assert f"1. `{folder}/a.json`: " in card(study)


OTHERS = {
    "another model": lambda info: score(info, "f" * 64, **VALUES),
    "a model that is not known": lambda info: score(info, "not known", **VALUES),
    "no receipt": lambda info: {"row": score(info, **VALUES)["row"]},
    "no checkpoint": lambda info: {**score(info, **VALUES), "receipt": RECEIPT},
    "half a file": lambda info: json.dumps(score(info, **VALUES))[:-20],
    "nothing": lambda info: "",
    "a list": lambda info: [score(info, **VALUES)],
    "other settings": lambda info: {"samples": 5000},
    "a row that is a number": lambda info: {**score(info, **VALUES), "row": 3},
}


@pytest.mark.parametrize("name", OTHERS)
def test_records_of_other_models_and_damaged_ones_are_left_out(study, name):
    path, info = study
    place = path.parent.parent / "scores/other.json"
    write(place, OTHERS[name](info))
    assert "Nothing yet" in sections(card(study))["What was measured"]
    write(place.with_name("own.json"), score(info, **VALUES))
    text = card(study)
    assert "own.json" in text and "other.json" not in text and "Nothing yet" not in text


def test_without_records_it_says_how_to_measure(study):
    said = sections(card(study))["What was measured"]
    assert said.startswith("Nothing yet") and "rdd evaluate" in said and "| steps |" not in said


def test_a_model_without_a_checksum_has_no_records(study):
    path, info = study
    write(
        path.parent.parent / "scores/a.json",
        {**score(info, **VALUES), "receipt": {**RECEIPT, "checkpoint_sha256": None}},
    )
    write(path.parent.parent / "scores/b.json", score(info, **VALUES))
    assert "Nothing yet" in card((path, {name: value for name, value in info.items() if name != "sha256"}))


def test_a_given_model_is_not_said_to_have_learnt_from_its_students_data(study):
    given = {"source": SOURCE, "facts": {"pretrained": "e", "data": {"name": "digits"}}}
    assert facts_of(model_card(small(), title="a", lineage=[given]))["data"] == UNKNOWN
    assert facts_of(model_card(small(), title="a", lineage=[STUDENT, given]))["data"] == "digits"


@pytest.mark.parametrize("parent", ["cccc", "../../etc/passwd", "*", 7, ["bbbb"]])
def test_a_parent_that_is_itself_or_no_key_ends_the_line(study, parent):
    path, info = study
    own = {**info, "facts": {**info["facts"], "parent": parent}}
    write(path.parent / "rdd-1-cccc.json", own)
    text = card((path, own))
    assert facts_of(text)["objective"].startswith("RDD")


@pytest.mark.parametrize(
    "facts", [[], 3, {"method": "rdd"}, {"method": "rdd", "numbers": 5, "train": 2, "data": "x", "base": []}]
)
def test_facts_of_another_kind_are_survived(facts):
    assert "## Licence" in model_card(small(), title="a", lineage=[{"facts": facts}, {"facts": facts}])
