"""Where a step's time goes: the marks fall where the work changes hands, and the parts sum up. No timed assertions."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

from benchmarks.step import (
    PARTS,
    STEP,
    PartClock,
    Subject,
    bench_step,
    format_steps,
    kernels_of,
    seconds_per_part,
    settings_of,
    with_ratios,
)
from rddlib.distillation import train
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError


def watched(what, overrides=None):
    """(marks of three steps by a clock that ticks at each, the trained network), as the real loop makes them."""
    ticks, subject = itertools.count(), Subject(load_profile("smoke", overrides), what)
    clock, trainer = PartClock(lambda: next(ticks)), subject.trainer(3, 8, "float32")
    with clock.watching(trainer):
        return clock.marks, subject.fit(trainer)


def test_marks_become_seconds_per_part():
    step = [("optimiser", 0.5), ("data", 1.0), ("student", 3.0), ("losses", 3.25), ("student", 5.25), (STEP, 6.0)]
    marks = [
        ("data", 0.0),
        (STEP, 1.0),
        *[(part, 1 + at) for part, at in step],
        *[(part, 7 + 2 * at) for part, at in step],
    ]
    of_last, of_both = seconds_per_part(marks, 1), seconds_per_part(marks, 2)
    assert of_last == {"data": 1, "teacher": 0, "student": 8, "extractor": 0, "losses": 0.5, "optimiser": 2.5}
    assert of_both == {part: 0.75 * seconds for part, seconds in of_last.items()}
    assert sum(of_both.values()) == (19 - 1) / 2


FORWARD = ["optimiser", "data", "teacher", "data", "student", "losses"]
LOOKING = [*FORWARD, "extractor", "losses", "extractor", "losses", "extractor", "student", "losses"]


@pytest.mark.parametrize(
    "what, expected",
    [
        ("base", ["optimiser", "data", "student", "losses", "student", "losses"]),
        ("pd", [*FORWARD, "student", "losses"]),
        *((method, LOOKING) for method in ("pd_stages", "cfd", "rcfd", "rdd")),
    ],
)
def test_the_real_loop_marks_its_parts_in_order(what, expected):
    """Forward through teacher, student, extractor (twice) and losses, and back; the queue; the rest is the optimiser's."""
    marks, trained = watched(what)
    ends = [index for index, (part, _) in enumerate(marks) if part == STEP]
    assert len(ends) == 3 and not any(p.requires_grad for p in trained.parameters())
    last = [part for part, _ in marks[ends[-2] + 1 : ends[-1]]]
    assert [part for part, _ in itertools.groupby(last)] == expected
    assert sum(seconds_per_part(marks, 2).values()) == (marks[ends[2]][1] - marks[ends[0]][1]) / 2


def test_a_batch_in_parts_is_one_step():
    marks, _ = watched("base", {"base.train.accumulate": "2"})
    assert [part for part, _ in marks].count(STEP) == 3 and [part for part, _ in marks].count("data") == 6


def test_nothing_of_the_watching_stays():
    target, subject = train.two_step_target, Subject(load_profile("smoke"), "pd")
    trainer = subject.trainer(1, 4, "float32")
    with pytest.raises(RuntimeError), PartClock(lambda: 0.0).watching(trainer):
        assert _global_optimizer_post_hooks and train.two_step_target is not target
        raise RuntimeError
    assert not _global_optimizer_post_hooks and train.two_step_target is target
    assert trainer.fit == type(trainer).fit.__get__(trainer)


def test_a_row_has_ratios_and_the_table_says_what_is_missing_and_why():
    row = {
        "what": "pd",
        "setting": "auto",
        "batch": 8,
        "seconds": 2.0,
        "peak_mib": 700.4,
        "flops": 100.0,
        "kernels": 1.25,
    }
    row |= {"precision": "bfloat16", "channels_last": True, "compiled": False, "graphs": True}
    row |= {"parts": dict.fromkeys(PARTS, 0.5) | {"extractor": 0.0}}
    killed = {"what": "pd", "setting": "bf16", "batch": 8, "note": "killed"}
    rows = [with_ratios(one, {"seconds": 3.0}, {"peaks": {"bfloat16": 200.0}}) for one in (row, killed)]
    lines = [line.split() for line in format_steps({"rows": rows}).splitlines()]
    figures = ["2", "0.5", "0.5", "0.5", "-", "0.5", "0.5", "2.5", "1.25", "4", "25%", "700", "1.50"]
    assert lines[1] == ["pd", "auto:", "bfloat16", "channels_last", "graphs", "8", *figures]
    assert lines[2] == ["pd", "bf16", "8", *["-"] * 13]
    assert lines[3] == ["pd,", "bf16:", "killed"]


def test_the_time_of_kernels_is_the_gpu_s_alone():
    """Neither what the CPU did nor the spans that PyTorch draws around steps."""
    cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    seen = [(gpu, 5e5, False), (gpu, 2e6, False), (gpu, 9e6, True), (cpu, 1e6, False)]
    names = ("key", "count", "device_type", "self_device_time_total", "is_user_annotation")
    averages = [SimpleNamespace(**dict(zip(names, (str(k), k, *one), strict=True))) for k, one in enumerate(seen)]
    assert kernels_of(averages) == [("1", 2.0, 1), ("0", 0.5, 0)]


@pytest.mark.ci
def test_from_the_command_line_to_the_file(rdd, tmp_path):
    """One real run in processes of its own, RDD on the smoke profile."""
    out = tmp_path / "new" / "step.json"
    options = ("--profile", "smoke", "--what", "rdd", "--batch", "8", "--steps", "1", "--out", str(out))
    _, printed, _ = rdd("bench", "step", *options, "--trace", str(tmp_path / "traces"))
    for trace in ("rdd-float32-eager.json", "rdd-auto.json"):
        assert any(
            "conv" in event["name"] for event in json.loads((tmp_path / "traces" / trace).read_text())["traceEvents"]
        )
    report = json.loads(out.read_text())
    assert report["peaks"].keys() == {"float32", "bfloat16"} and min(report["peaks"].values()) > 0
    assert [row["setting"] for row in report["rows"]][:2] == ["float32 eager", "auto"]
    for row in report["rows"]:
        assert row["note"] == "" and row["batch"] == 8 and row["steps"] == 1 and row["setting"] in printed
        assert all(row["parts"][part] > 0 for part in PARTS) and row["seconds"] > 0 and row["peak_mib"] > 0
    eager = report["rows"][0]
    assert eager["precision"] == "float32" and not eager["channels_last"] and not eager["compiled"]
    assert eager["ratio"] == 1 and len({row["flops"] for row in report["rows"]}) == 1


def test_a_gpu_is_measured_in_all_that_auto_is_made_of_and_by_the_fused_losses():
    cuda, cpu = (settings_of(torch.device(name), looks=True) for name in ("cuda", "cpu"))
    assert list(cuda)[:5] == ["float32 eager", "tf32", "bf16 eager", "bf16 channels_last", "bf16 graphs"]
    assert list(cuda)[5:] == ["fused losses", "bf16 blocks", "auto"]
    assert cuda.keys() - settings_of(torch.device("cuda"), looks=False).keys() == {"fused losses"}
    assert cpu.keys() <= {"float32 eager", "auto", "bf16"} and cuda["fused losses"]["impl"] == "fused"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"what": ["base", "rdx"]}, "name some of base, pd, pd_lpips, pd_stages, cfd, rcfd, rdd"),
        ({"what": ["base", "pd_lpips"]}, "LPIPS needs"),
        ({"how": ["auto", "quick"]}, "name some of float32 eager, auto"),
        ({"batch": -1}, "a batch of at least 1"),
        ({"steps": 0}, "1 step or more"),
        ({"overrides": {"pretrained.teacher": "theirs"}}, "leave pretrained.teacher"),
    ],
)
def test_wrong_input(arguments, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where LPIPS would lie
    with pytest.raises(UserError, match=words):
        bench_step("smoke", **arguments)
