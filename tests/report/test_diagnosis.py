"""Students spoilt on purpose, each in one of the known ways, and named right; thresholds were found on other seeds."""

import shutil
from dataclasses import replace

import pytest
from tiny import settings
from tiny_study import TINY

from rddlib.diffusion.sampling import two_step_target
from rddlib.distillation import train
from rddlib.distillation.objectives import Objective
from rddlib.report.diagnosis import causes, look, newest_student
from rddlib.study.folder import continue_study
from rddlib.study.graph import Graph
from rddlib.study.profiles import load_profile
from rddlib.study.stage import Stage
from rddlib.study.study import Study
from rddlib.training import Checkpoints

NUMBERS = {
    "base.train.iterations": "150",
    "progressive.train.iterations": "20",
    "extractor.train.iterations": "60",
    "distill.iterations": "[30, 1, 1]",
    "distill.train.learning_rate": "1e-3",
    "run.log_every": "5",
    "evaluation.samples": "80",
}
RELATIONS = {"loss.alpha": "0.01", "loss.beta": "0.001"}
SPOILT = [
    ("pd", {}, ""),
    ("cfd_is_pd", {}, ""),
    ("pd", {"distill.train.learning_rate": "0.1"}, "learning rate too high"),
    ("pd", {"distill.train.learning_rate": "1e-6"}, "learning rate too low"),
    ("cfd", {"distill.temperatures": "[0.03, 1, 1]"}, "temperature too sharp"),
    ("rdd", RELATIONS, "relations too weak"),
    ("pd", {"base.prediction": "eps", "base.schedule": "discrete", "base.train.iterations": "2"}, "epsilon prediction"),
    ("pd", {}, "clipped targets"),
    ("pd", {"distill.train.ema": "0.9999"}, "EMA too slow"),
]


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """A folder with the checkpoints that all of the students begin with."""
    study = continue_study("smoke", NUMBERS, tmp_path_factory.mktemp("begun"))
    study.teacher(), study.extractor()
    return study.out / "checkpoints"


@pytest.mark.ci
@pytest.mark.parametrize(
    "method, changes, cause", SPOILT, ids=[row[2] or f"{row[0]} as it should be" for row in SPOILT]
)
def test_a_spoilt_student_is_named_right(beginning, tmp_path, monkeypatch, method, changes, cause):
    study = continue_study("smoke", NUMBERS | changes, tmp_path / "run")
    shutil.copytree(beginning, study.out / "checkpoints")
    if cause == "clipped targets":
        monkeypatch.setattr(train, "two_step_target", lambda *given: two_step_target(*given).clamp(-1, 1))
    study.student(method, 4)
    found = causes(look(study))
    assert [one.name.startswith(cause) for one in found[:1]] == [True] * bool(cause), found
    assert all(one.remedy and one.shown for one in found)


def test_the_command_draws_and_says_what_to_try(done, tmp_path):
    out, few = tmp_path / "run", TINY | {"distill.iterations": "[2, 1, 1]", "run.log_every": "1", "loss.watch": "1"}
    given = ["--profile", "smoke", "--out", str(out)]
    done("distill", "--objective", "cfd", "--to", "4", *given, *settings(few))
    before = sorted(path.name for path in out.iterdir())
    printed = done("diagnose", out)
    assert printed.startswith("CFD 8 to 4 steps: cfd-4-") and f"--out {out} --objective cfd --to 4 --set " in printed
    assert sorted(path.name for path in (out / "diagnosis").iterdir()) == ["curves.png", "images.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*before, "diagnosis"])


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_a_training_that_was_stopped_is_looked_at_through_what_it_kept(tmp_path, monkeypatch, ema):
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    few = {"distill.iterations": "[2, 1, 1]", "distill.train.ema": ema, "distill.train.learning_rate": "1e-2"}
    study = continue_study("smoke", TINY | few, tmp_path / "run")
    study.student("pd", 4)
    whole = look(study)
    whole.stage.path.unlink()
    stopped = look(study)
    assert stopped.gone > 0 and stopped.student.equal(whole.student) and not stopped.stage.done
    assert stopped.scores == whole.scores and stopped.scores[2]["fid"] > 0


def test_a_folder_without_metrics_is_refused(refusal, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "holds no study and so no metrics" in refusal("diagnose", tmp_path / "photos")
    study = continue_study("smoke", {}, tmp_path / "new")
    assert "holds no metrics" in refusal("diagnose", study.out)
    assert sorted(path.name for path in study.out.iterdir()) == ["study.json"]


def test_a_sum_s_own_numbers_are_what_is_to_change(tiny, monkeypatch):
    tiny.student("pd", 4)
    seen = look(tiny)
    weak, three = {"channels": 1.0, "shares": ({"cfd": 1.0, "is_p2p": 0.0},) * 2}, load_profile("smoke")
    two = load_profile(
        "smoke", {"distill.iterations": "[1, 1]", "distill.temperatures": "[1, 1]", "progressive.teacher_steps": "4"}
    )
    for kind, profile, remedies in (
        ("rdd", three, ("--set distill.temperatures=[1,1,1] --update", "--set loss.weights=balanced")),
        ("rdd", two, ("--set distill.temperatures=[1,1] --update", "--set loss.weights=balanced")),
        (
            "cfd_is_pd",
            three,
            ("a larger tau of cfd in its sum, as in --set", "a share for them in its sum, as in --set"),
        ),
    ):
        found = {
            one.name: one.remedy
            for one in causes(replace(seen, stage=replace(seen.stage, kind=kind), profile=profile, **weak))
        }
        told = found["temperature too sharp"], found["relations too weak"]
        assert all(one.startswith(words) for one, words in zip(told, remedies, strict=True)), told


def test_a_student_trained_from_one_that_ships_is_found(tiny, monkeypatch):
    stage = tiny.stages.student("rdd", 1, 0)
    stage.get()
    for path in stage.path.parent.glob(f"rdd-1-{stage.key}*"):
        path.rename(path.with_name(path.name.replace("rdd-1-", "rdd-1-after-shipped-"))).touch()
    assert newest_student(tiny)[1].name != "rdd-1"
    monkeypatch.setattr(Stage, "mark", property(lambda stage: "-after-shipped" if stage.name == "rdd-1" else ""))
    found = newest_student(Study(tiny.profile, tiny.out))[1]
    assert found.path.name == f"rdd-1-after-shipped-{stage.key}.safetensors" and found.done


class Squares(Objective):
    """An objective that is no sum of the library's terms."""

    weights = {"squares": 1.0}

    def terms(self, x_student, x_teacher, t, generator):
        return {"squares": ((x_student - x_teacher) ** 2).mean()}


def test_an_objective_of_one_s_own_is_looked_at(tiny, monkeypatch):
    monkeypatch.setattr(Graph, "objective", lambda *_: Squares())
    found = look(tiny)
    assert set(found.shares[1]) == {"squares"} and found.channels is None
    assert "relations too weak" not in {cause.name for cause in causes(found)}


def test_a_stopped_training_of_adapters_is_looked_at(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'rddlib[lora]'")
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    study = continue_study("smoke", TINY | {"distill.lora": "2"}, tmp_path / "run")
    study.student("pd", 4)
    whole = look(study)
    whole.stage.path.unlink()
    assert look(study).student.equal(whole.student)
