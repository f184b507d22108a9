"""Where a step's time goes: the marks fall where the work changes hands, and the parts sum up. No timed assertions."""

import itertools
import json

import pytest
from rddlib.bench.stages import KINDS, Stage, config_of, each_step
from rddlib.bench.step import PARTS, SETTINGS, STEP, PartClock, _few, bench_step, format_steps, seconds_per_part

from rddlib.cli import main
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError


def marks_of(kind, iterations=2):
    """The parts of each step, in order, as the real loop marks them; repetitions of one part count once."""
    profile, ticks = load_profile("smoke"), itertools.count()
    stage, clock = Stage(profile, kind), PartClock(lambda: next(ticks))
    clock.watch(stage)
    with each_step(lambda _: clock.mark(STEP)):
        stage.fit(_few(config_of(profile, kind), iterations, 8, "float32"), profile.run, clock)
    return clock.marks


def order(marks):
    ends = [index for index, (part, _) in enumerate(marks) if part == STEP]
    last = [part for part, _ in marks[ends[-2] + 1 : ends[-1]]]
    return [part for part, _ in itertools.groupby(last)]


def test_marks_become_seconds_per_part():
    marks = [
        ("data", 0.0),
        (STEP, 1.0),
        ("optimiser", 1.5),
        ("data", 2.0),
        ("student", 4.0),
        ("losses", 4.25),
        ("student", 6.25),
        (STEP, 7.0),
        ("optimiser", 7.5),
        ("data", 7.5),
        ("student", 9.5),
        ("losses", 10.0),
        ("student", 12.0),
        (STEP, 12.0),
    ]
    parts = seconds_per_part(marks)
    assert parts == {
        "data": 0.25,
        "teacher": 0.0,
        "student": 4.0,
        "extractor": 0.0,
        "losses": 0.375,
        "optimiser": 0.875,
    }
    assert sum(parts.values()) == (12.0 - 1.0) / 2


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("base", ["optimiser", "data", "losses", "student", "losses", "student"]),
        ("pd", ["optimiser", "data", "losses", "teacher", "losses", "student", "losses", "student", "losses"]),
        (
            "rdd",
            [
                "optimiser",
                "data",
                "losses",
                "teacher",
                "losses",
                "student",
                "losses",
                "extractor",
                "losses",
                "extractor",
                "student",
                "losses",
            ],
        ),
    ],
)
def test_the_real_loop_marks_its_parts_in_order(kind, expected):
    """rdd: forward through teacher, student and extractor; losses forward and backward; extractor's and student's
    backward; the queue; what follows until the next step's data is the optimiser's."""
    marks = marks_of(kind)
    assert order(marks) == expected
    assert sum(seconds_per_part(marks).values()) == marks[-1][1] - next(at for part, at in marks if part == STEP)


def test_the_hook_on_optimisers_is_gone_afterwards():
    from torch.optim.optimizer import _global_optimizer_post_hooks

    with pytest.raises(RuntimeError), each_step(lambda _: None):
        assert _global_optimizer_post_hooks
        raise RuntimeError
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training_runs_on_noise(kind):
    profile, steps = load_profile("smoke"), []
    config = _few(config_of(profile, kind), 2, 4, "float32")
    with each_step(steps.append):
        trained = Stage(profile, kind).fit(config, profile.run)
    assert len(steps) == 2 and not any(p.requires_grad for p in trained.parameters())


def test_classes_are_known_without_data():
    profile = load_profile("imagenet64", {"unet.channels": "32", "unet.multipliers": "[1]", "unet.attention": "[]"})
    stage = Stage(profile, "rdd")
    assert stage.images.num_classes == 1000 and stage.objective.extractor.fc.out_features == 1000
    assert stage.images.images.shape[1:] == (3, 64, 64)
    assert Stage(load_profile("smoke"), "extractor").network.fc.out_features == 10


def row(**changes):
    parts = dict.fromkeys(PARTS, 0.5) | {"extractor": 0.0}
    return {
        "what": "pd",
        "setting": "auto",
        "batch": 8,
        "seconds": 2.0,
        "parts": parts,
        "parts_seconds": 2.5,
        "note": "",
        "images_per_second": 4.0,
        "of_peak": 0.25,
        "peak_mib": 700.4,
        "ratio": 1.5,
        "precision": "bfloat16",
        "channels_last": True,
        "compiled": False,
        **changes,
    }


def test_the_table_says_what_is_missing_and_why():
    empty = dict.fromkeys(
        ("seconds", "parts", "parts_seconds", "images_per_second", "of_peak", "peak_mib", "ratio", "precision")
    )
    lines = format_steps({"rows": [row(), row(**empty, setting="bf16", note="killed")]}).splitlines()
    assert lines[1].split() == [
        "pd",
        "auto:",
        "bfloat16",
        "channels_last",
        "8",
        "2",
        "0.5",
        "0.5",
        "0.5",
        "-",
        "0.5",
        "0.5",
        "2.5",
        "4",
        "25%",
        "700",
        "1.50",
    ]
    assert lines[2].split() == ["pd", "bf16", "8", *["-"] * 12]
    assert lines[3] == "pd, bf16: killed"


def test_from_the_command_line_to_the_file(tmp_path, capsys):
    """One real run in processes of its own, RDD on the smoke profile."""
    main(
        [
            "bench",
            "step",
            "--profile",
            "smoke",
            "--what",
            "rdd",
            "--batch",
            "8",
            "--steps",
            "1",
            "--out",
            str(tmp_path / "new" / "step.json"),
        ]
    )
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "new" / "step.json").read_text())
    assert report.keys() == {"profile", "overrides", "device", "hardware", "torch", "threads", "peaks", "note", "rows"}
    assert report["peaks"].keys() == {"float32", "bfloat16"} and min(report["peaks"].values()) > 0
    assert [r["setting"] for r in report["rows"]][:2] == ["float32 eager", "auto"]
    for r in report["rows"]:
        assert r["note"] == "" and r["batch"] == 8 and r["steps"] == 1 and r["what"] == "rdd"
        assert r.keys() == {
            "what",
            "setting",
            "batch",
            "steps",
            "note",
            "seconds",
            "peak_mib",
            "parts",
            "precision",
            "channels_last",
            "compiled",
            "images_per_second",
            "flops",
            "of_peak",
            "ratio",
            "parts_seconds",
        }
        assert all(r["parts"][part] > 0 for part in PARTS) and r["seconds"] > 0 and r["peak_mib"] > 0
        assert r["parts_seconds"] == pytest.approx(sum(r["parts"].values()))
        assert r["images_per_second"] == pytest.approx(8 / r["seconds"])
        assert r["of_peak"] == pytest.approx(r["flops"] / r["seconds"] / report["peaks"][r["precision"]])
        assert r["setting"] in printed
    eager = report["rows"][0]
    assert eager["precision"] == "float32" and not eager["channels_last"] and not eager["compiled"]
    assert eager["ratio"] == 1 and len({r["flops"] for r in report["rows"]}) == 1
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"what": ["base", "rdx"]}, "name some of base, pd, cfd, rcfd, rdd"),
        ({"what": []}, "name some of"),
        ({"batch": -1}, "a batch of at least 1"),
        ({"steps": 0}, "1 step or more"),
        ({"profile": "cifra10"}, "did you mean 'cifar10'"),
        ({"overrides": {"unet.chanels": "8"}}, "did you mean 'channels'"),
    ],
)
def test_wrong_input(arguments, words):
    with pytest.raises(UserError, match=words):
        bench_step(**arguments)


def test_settings_are_what_the_trainer_knows():
    for setting in SETTINGS.values():
        _few(config_of(load_profile("smoke"), "base"), 1, 1, setting["precision"])


def test_help_is_readable(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["bench", "step", "--help"])
    printed = capsys.readouterr().out
    assert "Examples:" in printed and max(map(len, printed.splitlines())) <= 100
