"""What a study would cost: exact arithmetic on made-up measurements, and one real plan of the smoke profile."""

import math

import pytest
from rddlib.study.assembly import conditional_profile
from rddlib.study.plan import (
    Job,
    Plan,
    Point,
    Row,
    Total,
    extrapolated,
    format_plan,
    guided_jobs_of,
    human_size,
    human_time,
    jobs_of,
    make_plan,
    next_batch,
    warnings_of,
    with_relations,
)

from rddlib.bench.stages import Stage
from rddlib.cli import main
from rddlib.study import plan
from rddlib.study.guidance import GuidedStudy
from rddlib.study.profiles import PROFILES, load_profile
from rddlib.study.study import Study
from rddlib.utils.errors import UserError

GIB = 2**30


def test_a_line_through_two_points():
    points = [Point(1, 9.0, 9.0), Point(2, 1.5, 100.0, 10.0), Point(4, 2.5, 120.0, 20.0)]
    assert extrapolated(points, 12) == Point(12, 2.5 + 8 * 0.5, 120 + 8 * 10)
    assert extrapolated(points, 4) == points[-1]


def test_activations_hidden_under_the_optimiser_still_count():
    points = [Point(2, 1.0, 500.0, 300.0), Point(4, 2.0, 500.0, 340.0)]
    assert extrapolated(points, 14).memory == 500 + 10 * 20


def test_noise_never_makes_a_large_batch_cheap_or_the_line_start_below_zero():
    assert extrapolated([Point(2, 2.0, 10.0), Point(4, 1.0, 8.0)], 8) == Point(8, 2.0, 8.0)
    assert extrapolated([Point(1, 1.0, 0.0), Point(2, 3.0, 0.0)], 8).seconds == 12.0
    assert extrapolated([Point(2, 1.0, 7.0)], 6) == Point(6, 3.0, 7.0)


def test_relations_are_taken_out_and_put_back_at_the_full_batch():
    points = [Point(2, 2.0 + 0.1, 100.0), Point(4, 3.0 + 0.4, 100.0)]
    relations = [Point(2, 0.1, 5.0), Point(4, 0.4, 9.0), Point(16, 6.0, 30.0)]
    assert with_relations(points, relations, 16) == Point(16, pytest.approx(3 + 12 * 0.5 + 6.0), 130.0)
    at_32 = with_relations(points, relations, 32)  # measured up to 16: time by the square, memory in proportion
    assert at_32 == Point(32, pytest.approx(3 + 28 * 0.5 + 24.0), 160.0)


@pytest.mark.parametrize(
    "points, full, left, memory, expected",
    [
        ([Point(2, 1, 10)], 128, 4.0, 1e9, 4),  # 2 s an iteration, twice
        ([Point(2, 1, 10)], 128, 3.9, 1e9, 1),  # too dear: a line needs another point
        ([Point(2, 1, 10), Point(4, 2, 20)], 128, 7.9, 1e9, 0),
        ([Point(2, 1, 10), Point(4, 2, 20)], 128, 8.0, 1e9, 8),
        ([Point(2, 1, 10), Point(4, 2, 20)], 128, 99, 39, 0),  # 8 would take 40 bytes
        ([Point(2, 1, 10), Point(4, 2, 20)], 6, 99, 1e9, 6),
        ([Point(4, 2, 20)], 4, 99, 1e9, 0),
        ([Point(1, 9, 20)], 4, 1, 1e9, 0),
    ],
)
def test_which_batch_is_probed_next(points, full, left, memory, expected):
    assert next_batch(points, full, left, memory) == expected


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.04, "0.0 s"),
        (3.14, "3.1 s"),
        (42, "42 s"),
        (89.9, "90 s"),
        (180, "3 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (5.24 * 3600, "5.2 h"),
        (20 * 3600, "20 h"),
        (172800, "2 d"),
        (41 * 86400, "41 d"),
    ],
)
def test_times_for_people(seconds, words):
    assert human_time(seconds) == words


@pytest.mark.parametrize(
    "size, words",
    [
        (0, "0 B"),
        (512, "512 B"),
        (700_000, "684 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (5 * 2**20, "5.0 MiB"),
        (3.2 * GIB, "3.2 GiB"),
        (500 * GIB, "500 GiB"),
        (2048 * GIB, "2.0 TiB"),
    ],
)
def test_sizes_for_people(size, words):
    assert human_size(size) == words


def test_the_stages_of_the_paper():
    profile = load_profile("cifar10", {"seeds": "[0, 1]"})
    arms = [("ddim", 8, 0), ("rdd", 2, 0), ("rdd", 1, 1)]
    jobs = {job.kind: job for job in jobs_of(profile, arms)}
    assert list(jobs) == ["base", "extractor", "progressive", "pd", "cfd", "rcfd", "rdd", "sampling"]
    assert (jobs["base"].iterations, jobs["base"].batch, jobs["base"].files) == (800_000, 128, 1)
    assert (jobs["progressive"].iterations, jobs["progressive"].files) == (7 * 10_000, 7)
    assert (jobs["rdd"].iterations, jobs["rdd"].files, jobs["rdd"].at_once) == (2 * 80_000, 6, 2)
    assert (jobs["sampling"].iterations, jobs["sampling"].batch) == (11 * 100, 500)
    short = jobs_of(load_profile("smoke", {"base.steps": "8"}), [])
    assert not {"progressive", "sampling"} & {job.kind for job in short}


def test_the_stages_of_guidance():
    profile = load_profile("cifar10", {"seeds": "[0, 1]"})
    arms = [("teacher", 1024, 0, 2.0, "ddim"), ("rdd", 4, 0, 2.0, "ddim"), ("rdd", 4, 0, 2.0, "stochastic")]
    jobs = {job.kind: job for job in guided_jobs_of(profile, arms)}
    assert list(jobs) == ["base", "extractor", "guide", "progressive", "pd", "rdd", "sampling"]
    assert (jobs["extractor"].iterations, jobs["extractor"].files) == (78_000, 1)  # the first seed has the study's own
    assert (jobs["guide"].iterations, jobs["guide"].files) == (2 * 50_000, 2)
    assert (jobs["progressive"].iterations, jobs["progressive"].files) == (2 * 7 * 10_000, 2 * 7)
    assert (jobs["rdd"].iterations, jobs["rdd"].files) == (2 * (80_000 + 20_000), 2 * (3 + 1))
    assert (
        jobs["sampling"].iterations == 2 * (2 * 1024 + 4 + 4) * 20
    )  # the teacher evaluates twice; 10,000 samples by 500


def test_every_profile_can_be_planned(tmp_path):
    for name in PROFILES:
        profile = load_profile(name)
        assert len(jobs_of(profile, Study(profile, tmp_path / "none").arms())) == 8
        guided = GuidedStudy(conditional_profile(profile, 10), tmp_path / "none")
        assert len(guided_jobs_of(profile, guided.arms())) == 6
    assert not (tmp_path / "none").exists()


ROWS = [
    Row(Job("base model", "base", 1000, 64, 1), 0.5, 2 * GIB, GIB, 3 * GIB, "probed at batch 2 and 4"),
    Row(Job("RDD 8 to 1 step", "rdd", 100, 32, 3, 2), 36.0, 4 * GIB, 2 * GIB, 5 * GIB),
]


def test_the_total_and_its_table():
    assert Total.of(ROWS) == Total(500 + 3600, 4 * GIB, 8 * GIB)
    table = [line.split("  ") for line in format_plan(ROWS).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in table]
    assert cells == [
        ["stage", "iterations", "batch", "s/iteration", "time", "peak memory", "disk", "while running", "note"],
        ["base model", "1,000", "64", "0.5", "8 min", "2.0 GiB", "1.0 GiB", "3.0 GiB", "probed at batch 2 and 4"],
        ["RDD 8 to 1 step", "100", "32", "36", "60 min", "4.0 GiB", "2.0 GiB", "5.0 GiB"],
        ["total", "68 min", "4.0 GiB", "8.0 GiB"],
    ]


def test_a_stage_that_could_not_be_probed_is_named():
    rows = [*ROWS, Row(Job("extractor", "extractor", 10, 8), note="out of memory")]
    lines = format_plan(rows).splitlines()
    assert lines[3].split() == ["extractor", "10", "8", "-", "-", "-", "-", "-", "out", "of", "memory"]
    assert lines[4].endswith("without extractor") and Total.of(rows) == Total.of(ROWS)
    assert Total.of([]) == Total(0, 0, 0)


def test_warnings():
    total = Total.of(ROWS)
    assert warnings_of(total, 8 * GIB, 4 * GIB) == warnings_of(total, 8 * GIB, None) == []
    disk, memory = warnings_of(total, 7 * GIB, 3 * GIB)
    assert "needs 8.0 GiB of disk, 7.0 GiB are free" in disk and "needs 4.0 GiB of memory, 3.0 GiB" in memory


def test_disk_is_what_the_trainer_writes(tmp_path, monkeypatch):
    """The bytes predicted for a resume state are those of the real file's tensors, EMA, head, queue and moments included."""
    from rddlib.distillation.train import distill, train_base
    from rddlib.utils.checkpoint import load_checkpoint

    profile = load_profile("smoke")
    for kind in ("base", "rdd"):
        prober = plan._Training(profile, kind)
        prober.seconds(4, 1)  # with its warm-up 2 iterations: the head has no gradient before the second
        stage, config = Stage(profile, kind), plan.replace(prober.config, iterations=2, batch_size=4)
        files = tmp_path / kind
        if kind == "base":
            train_base(stage.network, stage.images, config, 0, files=files)
        else:
            distill(stage.network, stage.images, 4, stage.objective, config, 0, files=files)
        tensors, _ = load_checkpoint(tmp_path / f"{kind}.00000002.resume")
        stored = sum(t.numel() * t.element_size() for t in tensors.values())
        averages = 8 if kind == "base" else 0  # AveragedModel counts its updates in one int64
        assert prober.resume_bytes == (profile.run.keep + 1) * (stored - averages)
        assert prober.model_bytes == sum(t.numel() * t.element_size() for t in stage.network.state_dict().values())


def test_parts_of_a_batch_are_probed_as_they_run():
    job = Job("base model", "base", 10, 64, 1)
    found = {
        "points": [[2, 1.0, 10, 0], [4, 2.0, 20, 0]],
        "relations": [],
        "full": 16,
        "parts": 4,
        "model_bytes": 7,
        "resume_bytes": 30,
    }
    row = plan._row(job, found)
    assert (row.seconds, row.memory, row.disk, row.resume) == (8.0 * 4, 80.0, 7, 30)
    assert row.note == "probed at batch 2 and 4" and row.total_seconds == 320.0
    assert plan._row(job, {"note": "killed"}) == Row(job, note="killed")


def test_what_cannot_fit_is_not_started(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: 2**20)
    found = plan.probe({"profile": "smoke", "overrides": {}, "kind": "base", "batch": 32, "seconds": 1})
    assert "needs more than" in found["note"] and "1.0 MiB are free" in found["note"]


@pytest.mark.slow
def test_a_plan_of_the_smoke_profile(tmp_path, monkeypatch, capsys):
    """Real probes of every stage, here in this process to spare eight starts; tests/test_bench_step.py has real ones."""
    asked = []

    def here(function, job, *, threads, timeout):
        asked.append(job["kind"])
        return function(job)

    monkeypatch.setattr(plan, "in_child", here)
    found = make_plan("smoke", {"seeds": "[0, 1]"}, out=tmp_path / "far" / "away", seconds=1)
    assert isinstance(found, Plan) and found.free_disk > 0 and [row.job.kind for row in found.rows] == asked
    assert len(asked) == 8 and not (tmp_path / "far").exists()
    for row in found.rows:
        assert row.seconds > 0 and math.isfinite(row.seconds) and row.memory > 0, row
        assert (row.disk > 0 and row.resume > row.disk / row.job.files) or row.job.kind == "sampling", row
    assert Total.of(found.rows).disk > 0


def test_the_command_prints_the_table_and_what_is_free(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        plan, "make_plan", lambda *a, progress, **b: progress("[1/1] probing") or Plan(ROWS, GIB, 9 * GIB)
    )
    main(["plan", "--profile", "smoke", "--out", str(tmp_path)])
    printed, errors = capsys.readouterr()
    assert errors == "[1/1] probing\n" and "base model" in printed and "total" in printed
    assert (
        f"Free disk for {tmp_path}: 1.0 GiB, free memory 9.0 GiB" in printed
        and "Warning: the study needs 8.0 GiB" in printed
    )


def test_wrong_input(tmp_path):
    with pytest.raises(UserError, match="more than 0"):
        make_plan("smoke", out=tmp_path, seconds=0)
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        make_plan("smok", out=tmp_path)
    with pytest.raises(UserError, match="unet.chanels"):
        make_plan("smoke", {"unet.chanels": "1"}, out=tmp_path)


def test_help_is_readable(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["plan", "--help"])
    printed = capsys.readouterr().out
    assert "Examples:" in printed and max(map(len, printed.splitlines())) <= 100
