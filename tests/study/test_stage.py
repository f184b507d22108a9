"""A stage is found by what it depends on, made once with what it needs, and goes on where it was stopped."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny import same
from torch import nn

from rddlib.distillation import objectives
from rddlib.distillation import train as recipes
from rddlib.study.stage import Stage, Workplace, key_of
from rddlib.training import RunConfig, TrainConfig
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint
from rddlib.utils.errors import Interrupted, UserError


def weight_of(value):
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def adding(folder, name, own, *parents, seconds=0.0, config=None, run=None, last=False):
    """(a stage whose one weight is its own number and its parents' weights in sum, the list of times it was made)."""
    made = []

    def fit(trainer, *networks):
        made.append(trainer)
        time.sleep(seconds)
        return weight_of(own + sum(network.weight.item() for network in networks)), {"own": own}

    def load(tensors, info):
        return weight_of(tensors["weight"].item())

    def facts():
        return {"own": own, "parents": [parent.key for parent in parents]}

    place, student = Workplace(folder, run or RunConfig()), name == "pd"
    return Stage(name, name, name, parents, config, 0, facts, fit, load, place, student, last), made


@pytest.fixture
def diamond(tmp_path):
    """The last of four stages, two of which need the first and are needed by the last: 1 + (2 + 1) + (3 + 1) = 8."""
    first, made = adding(tmp_path, "first", 1)
    (left, _), (right, _) = adding(tmp_path, "left", 2, first), adding(tmp_path, "right", 3, first)
    return adding(tmp_path, "last", 1, left, right)[0], made


def test_a_key_is_that_of_the_facts_in_any_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [2.5]})
    assert key_of({}) == "44136fa355b3"  # sha256 of "{}"


def test_a_path_is_known_before_and_follows_the_ancestors(diamond, tmp_path):
    last, made = diamond
    assert last.path == tmp_path / f"last-{last.key}.safetensors" and not made and not last.done
    other = adding(tmp_path, "last", 1, adding(tmp_path, "left", 2, adding(tmp_path, "first", 7)[0])[0])[0]
    assert other.key != last.key


def test_a_lineage_has_ancestors_first_and_each_once(diamond):
    assert [stage.name for stage in diamond[0].lineage()] == ["first", "left", "right", "last"]


def test_getting_makes_what_is_missing_and_nothing_twice(diamond):
    last, made = diamond
    assert last.get().weight.item() == 8 and len(made) == 1 and all(stage.done for stage in last.lineage())
    assert last.get().weight.item() == 8 and len(made) == 1
    last.path.unlink()
    assert last.get().weight.item() == 8 and len(made) == 1  # the others were there


def test_what_is_recorded_of_it(diamond):
    last, _ = diamond
    with pytest.raises(UserError, match="no checkpoint at .*train it first"):
        last.recorded()
    assert last.noted() == {}
    last.get()
    assert last.recorded() == {**last.noted(), "sha256": last.recorded()["sha256"]}
    assert last.noted() == {"kind": "last", "label": "last", "facts": last.facts(), "own": 1}
    last.path.with_suffix(".json").write_text("{")
    assert last.noted() == {}


def test_a_training_is_timed_and_gets_a_trainer_of_its_own(tmp_path):
    stage, made = adding(tmp_path, "trained", 1, seconds=0.1, config=TrainConfig(5, 2, 1e-3))
    stage.get()
    facts, (trainer,) = stage.recorded(), made
    assert facts["seconds"] >= 0.1 and facts["precision"] == "float32" and facts["peak_memory"] >= 0
    assert (trainer.config.iterations, trainer.label, trainer.files) == (5, "trained", stage.path.with_suffix(""))
    assert stage.iterations == 5 and stage.trainer(TrainConfig(1, 2, 1e-3)).config.iterations == 1


def test_two_runs_at_once_make_one(tmp_path):
    stage, made = adding(tmp_path, "slow", 4, seconds=0.3)
    runs = [threading.Thread(target=stage.get) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(made) == 1 and stage.get().weight.item() == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: b"not a model"])
def test_a_damaged_file_is_named_and_made_again_once_deleted(diamond, damage):
    last, _ = diamond
    last.get()
    last.path.write_bytes(damage(last.path.read_bytes()))
    with pytest.raises(UserError, match=f"{last.path.name} is damaged.*delete it"):
        last.get()
    last.path.unlink()
    assert last.get().weight.item() == 8


@pytest.mark.parametrize(
    "stage_of, module, loss",
    [
        (lambda stages: stages.base, recipes, "weighted_error"),
        (lambda stages: stages.stochastic("pd", 8, 0), objectives, "pd_loss"),
    ],
)
def test_a_stopped_stage_goes_on_to_the_same_bits(guided, monkeypatch, stage_of, module, loss):
    stage, calls, original = stage_of(guided.stages), [], getattr(module, loss)
    expected, _ = load_checkpoint(stage.path)
    stage.path.unlink()

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(module, loss, stopped)
        stage.get()
    assert len(calls) == 2 and not stage.done and list(stage.path.parent.glob(f"{stage.files.name}.*.resume"))
    stage.get()
    assert same(load_checkpoint(stage.path)[0], expected)
    assert not list(stage.path.parent.glob("*.resume"))
    logged = stage.files.with_name(f"{stage.files.name}.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged][-1] == stage.iterations - 1


# models that come with the package


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A package with a base model, 7 in bfloat16, and a student, 8 in float16: of the keys of `adding`'s own numbers 1, 2."""
    monkeypatch.setattr("rddlib.utils.installation.PACKAGE", tmp_path / "rddlib")
    for name, own, weight, dtype in (("base", 1, 7.0, torch.bfloat16), ("pd", 2, 8.0, torch.float16)):
        stage, _ = adding(tmp_path, name, own)
        tensors, info = {"weight": torch.tensor([[weight]], dtype=dtype)}, {"kind": name, "shipped": True}
        save_checkpoint(tmp_path / "data/models" / f"{name}-{stage.key}.safetensors", tensors, info | {"seconds": 9.0})
    return tmp_path


@pytest.mark.parametrize(("wanted", "weights"), [("all", (7, 8)), ("start", (7, 2)), ("none", (1, 2))])
def test_a_model_that_comes_with_the_package_is_taken_where_it_is_wanted(box, wanted, weights, capfd):
    run = RunConfig(shipped=wanted)
    stages = [adding(box / "study", name, own, run=run)[0] for name, own in (("base", 1), ("pd", 2))]
    assert tuple(stage.get().weight.item() for stage in stages) == weights
    said = capfd.readouterr().err
    for stage, weight, own in zip(stages, weights, (1, 2), strict=True):
        assert (
            (weight != own) == stage.recorded().get("shipped", False) == (f"{stage.label}: the one that comes" in said)
        )
        assert load_checkpoint(stage.path)[0]["weight"].dtype == torch.float32
        assert stage.get().weight.item() == weight and capfd.readouterr().err == ""  # from its own file now


def test_a_damaged_or_foreign_model_of_the_package_is_trained_instead(box, capfd):
    (file,) = (box / "data/models").glob("base-*")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    stage, made = adding(box / "study", "base", 1)
    assert stage.get().weight.item() == 1 and len(made) == 1
    assert "is damaged (its checksum differs), so it is trained" in capfd.readouterr().err
    save_file({"weight": torch.zeros(1, 1)}, file)
    stage, made = adding(box / "elsewhere", "base", 1)
    assert stage.get().weight.item() == 1 and len(made) == 1 and "not written by rddlib" in capfd.readouterr().err
    other, made = adding(box / "study", "base", 3)  # another number: another key
    assert other.get().weight.item() == 3 and len(made) == 1 and capfd.readouterr().err == ""


def test_a_student_that_was_trained_is_kept_where_shipped_ones_are_wanted(box):
    trained = adding(box / "study", "pd", 2, run=RunConfig(shipped="start"))[0]
    assert trained.get().weight.item() == 2
    later = adding(box / "study", "pd", 2, run=RunConfig(shipped="all"))[0]
    assert later.get().weight.item() == 2 and later.path == trained.path


def test_the_last_student_is_trained_from_one_that_ships_and_passes_for_no_other(box):
    def last(wanted):
        run = RunConfig(shipped=wanted)
        return adding(box / "study", "pd", 3, adding(box / "study", "pd", 2, run=run)[0], run=run, last=True)[0]

    rounded, box_file = {"weight": torch.tensor([[9.0]])}, box / f"data/models/pd-{last('none').key}.safetensors"
    save_checkpoint(box_file, rounded, {"kind": "pd", "shipped": True})
    found = {wanted: (last(wanted).get().weight.item(), last(wanted).path) for wanted in ("all", "earlier", "start")}
    assert [weight for weight, _ in found.values()] == [9, 3 + 8, 3 + 2]
    assert [path.name.removesuffix(f"-{last('none').key}.safetensors") for _, path in found.values()] == [
        *("pd-shipped", "pd-after-shipped", "pd")
    ]
    assert [load_checkpoint(path)[1].get("after_shipped", False) for _, path in found.values()] == [False, True, False]
    assert [last(wanted).get().weight.item() for wanted in found] == [
        9,
        11,
        5,
    ]  # each finds what it had, whatever came later


def test_what_is_taken_needs_no_ancestors_and_took_no_time_here(box, tmp_path):
    run = RunConfig(shipped="all")
    parent, made = adding(box / "study", "first", 1, run=run)
    child = adding(box / "study", "pd", 2, parent, run=run)[0]
    save_checkpoint(
        box / f"data/models/pd-{child.key}.safetensors", {"weight": torch.ones(1, 1)}, {"shipped": True, "seconds": 9.0}
    )
    assert child.missing() == [child] and child.get().weight.item() == 1 and not parent.done and not made
    assert child.missing() == [] and parent.missing() == [parent]
    assert (child.noted()["seconds"], child.noted()["seconds_elsewhere"]) == (0.0, 9.0)
