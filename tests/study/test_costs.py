"""What a study or a sweep would take: exact arithmetic on made-up measurements, and the tiny study measured for real."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import refused

from rddlib.data import DataConfig, load_dataset
from rddlib.study import costs
from rddlib.study.ablations import ABLATIONS
from rddlib.study.costs import (
    SAMPLING,
    Cost,
    Plan,
    Point,
    Prober,
    Row,
    catalogue,
    costs_file,
    extrapolated,
    format_plan,
    known_costs,
    make_plan,
    measured_costs,
    next_batch,
    plan_of,
    random_images,
)
from rddlib.study.profiles import PROFILES, changed, load_profile
from rddlib.study.stage import Stage
from rddlib.study.study import Study
from rddlib.study.sweep import Sweep
from rddlib.utils.checkpoint import load_checkpoint
from rddlib.utils.errors import UserError

GIB = 2**30
KINDS = ("base", "halving", "extractor", "pd", "cfd", "rcfd", "rdd", SAMPLING)


# from small batches to large ones


def test_a_line_through_the_two_largest_points_which_noise_never_makes_cheap():
    points = [Point(1, 9.0, 9.0), Point(2, 1.5, 100.0), Point(4, 2.5, 120.0)]
    assert extrapolated(points, 12) == Point(12, 2.5 + 8 * 0.5, 120 + 8 * 10)
    assert extrapolated(points, 4) == points[-1]
    assert extrapolated([Point(2, 2.0, 10.0), Point(4, 1.0, 8.0)], 8) == Point(8, 2.0, 8.0)
    assert extrapolated([Point(1, 1.0, 0.0), Point(2, 3.0, 0.0)], 8).seconds == 12.0
    assert extrapolated([Point(2, 1.0, 7.0)], 6) == Point(6, 3.0, 7.0)


@pytest.mark.parametrize(
    "points, full, left, memory, expected",
    [
        ([Point(2, 1, 10)], 128, 4.0, 1e9, 4),  # 2 s an iteration, and its warm-up
        ([Point(2, 1, 10)], 128, 3.9, 1e9, 0),
        ([Point(2, 1, 10), Point(4, 2, 20)], 128, 8.0, 1e9, 8),
        ([Point(2, 1, 10), Point(4, 2, 20)], 128, 99, 39, 0),  # 8 would take 40 bytes
        ([Point(2, 1, 10), Point(4, 2, 20)], 6, 99, 1e9, 6),
        ([Point(4, 2, 20)], 4, 99, 1e9, 0),
    ],
)
def test_which_batch_is_measured_next(points, full, left, memory, expected):
    assert next_batch(points, full, left, memory) == expected


def test_a_batch_grows_until_time_or_memory_would_not_do(monkeypatch):
    asked, clock = [], iter(range(100))
    monkeypatch.setattr(costs.time, "monotonic", lambda: float(next(clock)))  # each look takes a second
    monkeypatch.setattr(costs, "free_memory", lambda device: 10_000)

    def timed(batch, iterations):
        asked.append((batch, iterations))
        return Point(batch, 0.1 * batch, 100.0 * batch)

    cost = costs._probed(timed, 256, seconds=60.0)
    assert [batch for batch, _ in asked] == [2, 4, 8, 16, 32]  # 64 would take more than half of the memory
    assert (cost.seconds, cost.memory, cost.batch, cost.per_image) == pytest.approx((25.6, 25_600, 256, 100))
    assert cost.note == "measured at batch 16 and 32"
    assert asked[0][1] == costs.FIRST_TIMED and asked[-1][1] == 1
    asked.clear()
    assert costs._probed(timed, 8, seconds=60.0) == Cost(0.8, 800.0, batch=8, per_image=100.0)


def test_the_fastest_iteration_counts_once_the_parents_are_made(monkeypatch):
    prober, order = Prober(load_profile("smoke")), []
    student = prober.plain.student("rdd", 4, 0)

    def fit(self, stage, iterations, batch):
        order.append(stage.kind)
        speeds = (batch / seconds for seconds in (9.0, 0.5, 3.0))
        return torch.nn.Linear(1, 1), SimpleNamespace(state_bytes=8, history=[{"images_per_second": s} for s in speeds])

    def probed(timed, full, seconds):
        order.append("clock")
        return Cost(timed(full, 3).seconds, 0.0)

    monkeypatch.setattr(Prober, "_fit", fit)
    monkeypatch.setattr(costs, "_probed", probed)
    assert prober.cost(student, 1.0).seconds == pytest.approx(0.5)
    assert order == ["base", "extractor", "clock", "rdd"]


# the plan of a study


@pytest.fixture
def made_up(monkeypatch):
    """Every iteration takes a second, every kind of stage is asked for once: the list of what was asked for."""
    asked = []

    def cost(self, stage, seconds):
        asked.append(stage.kind)
        return Cost(1.0, 4 * GIB, model=GIB, resume=3 * GIB)

    monkeypatch.setattr(Prober, "cost", cost)
    monkeypatch.setattr(Prober, "sampling_cost", lambda self, seconds: Cost(1.0, GIB))
    return asked


def test_a_plan_has_the_papers_iterations(made_up, tmp_path):
    plan = make_plan("cifar10", {"seeds": "[0, 1]", "jobs": "3"}, out=tmp_path / "far" / "away")
    rows = {row.name: (row.iterations, row.batch, row.files, row.at_once) for row in plan.rows}
    assert rows["base model"] == (800_000, 128, 1, 1)
    assert rows["PD, 7 halvings"] == (7 * 10_000, 128, 7, 1)
    assert rows["extractor densenet201"] == (78_000, 128, 1, 1)
    assert rows["RDD, 6 students"] == (2 * 80_000, 128, 6, 3)
    assert rows["guided: base model"] == (2 * 800_000, 128, 2, 1)
    assert rows["guided: guidance, stage one"] == (2 * 50_000, 128, 2, 1)
    assert rows["guided: extractor densenet201"] == (78_000, 128, 1, 1)  # the first seed has the study's own
    assert rows["guided: RDD, 5 students"] == (2 * (80_000 + 2 * 20_000), 128, 10, 3)
    evaluations = sum((1024, 8, 4, 2, 1)) + 8 + 10 + 12 + 2 * 5 * (4 + 2 + 1)
    assert rows["samples to score"] == (evaluations * 100, 500, 0, 1)
    maps = {row.name: row.maps for row in plan.rows if row.maps}
    assert maps["RDD, 6 students"] == 4 * 128 * 1920 * 4 * 4 and "PD, 6 students" not in maps
    assert sorted(made_up) == sorted(set(made_up)) and len(made_up) == 9  # base, guidance, halving, extractor, students
    assert plan.seconds == sum(row.iterations for row in plan.rows) and plan.free_disk > 0
    assert not (tmp_path / "far").exists()


def test_what_a_profile_has_none_of_has_no_row(made_up, tmp_path):
    short = make_plan("smoke", {"base.steps": "8", "guidance.steps": "8", "methods": "[pd]"}, out=tmp_path)
    assert not [row.name for row in short.rows if "halving" in row.kind or row.name.startswith("RDD")]
    for name in PROFILES:
        assert make_plan(name, out=tmp_path).seconds > 0


def test_a_folder_is_planned_with_its_own_classes(made_up, tmp_path):
    root, said, own = tmp_path / "images", [], {"data.name": "folder", "data.root": str(tmp_path / "images")}
    make_plan("smoke", own, out=tmp_path, say=said.append)
    assert said[0].startswith(f"there is no folder {root}: 10 classes assumed")
    for name in ("train/a", "train/b", "train/c"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(b"never read")
    made = changed(load_profile("smoke"), {"data.name": "folder", "data.root": str(root)})
    prober = Prober(made)
    assert prober.images.num_classes == prober.guided.profile.unet.num_classes == 3
    make_plan("smoke", own, out=tmp_path, say=said.append)
    assert not any("assumed" in line for line in said[1:])


def test_what_ships_for_the_images_that_are_here_is_not_planned_nor_what_it_was_made_from(
    made_up, tmp_path, monkeypatch
):
    for number, name in enumerate(f"{part}/{label}" for part in ("train", "test") for label in "abcdefghij"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / name / "1.png")
    pixels = load_dataset(DataConfig("cifar10", str(tmp_path), flip=True, halve=1)).sha256

    def known(stage):
        return ({}, {}) if stage.name == "pd-8" and pixels in repr(stage.lineage()[0].facts()) else None

    monkeypatch.setattr(Stage, "_shipped", property(known))
    plans = [make_plan("photos", {"data.root": str(tmp_path / place)}, out=tmp_path) for place in (".", "elsewhere")]
    halvings = [{row.name: row.iterations for row in plan.rows if row.kind == "halving"} for plan in plans]
    assert halvings == [
        {"PD, 1 halving": 0, "guided: PD, 1 halving": 400},
        {"PD, 3 halvings": 1200, "guided: PD, 1 halving": 400},
    ]
    said = []
    (tmp_path / "train/a/1.png").write_bytes(b"no image")
    make_plan("photos", {"data.root": str(tmp_path)}, out=tmp_path, say=said.append)
    assert said[0].startswith("planned as if no model shipped for these images: ") and "1.png" in said[0]


def test_a_folder_without_classes_is_planned_without_guidance_or_refused(made_up, tmp_path):
    (tmp_path / "1.png").write_bytes(b"never read")
    own = {"data.name": "folder", "data.root": str(tmp_path)}
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))} has no classes for an extractor to learn"):
        make_plan("smoke", own, out=tmp_path)
    rows = make_plan("smoke", own | {"extractor.name": "teacher", "methods": "[pd, rdd]"}, out=tmp_path).rows
    assert not [row.name for row in rows if "guided" in row.name or row.kind == "extractor"]


PLAN = Plan(
    [
        Row("base model", "base", 1000, 64, 1, 1, Cost(0.5, 2 * GIB, GIB, 3 * GIB, "measured at batch 2 and 4")),
        Row("RDD, 3 students", "rdd", 100, 32, 3, 2, Cost(36.0, 2 * GIB, GIB, GIB)),
    ],
    8 * GIB,
    4 * GIB,
)


def test_the_total_and_its_table():
    assert (PLAN.seconds, PLAN.memory, PLAN.disk) == (500 + 3600, 4 * GIB, (4 + 3) * GIB)
    cells = [re.split(r" {2,}", line.strip()) for line in str(PLAN).splitlines()]
    assert cells == [
        ["stage", "iterations", "batch", "s/iteration", "time", "peak memory", "disk", "while running", "note"],
        ["base model", "1,000", "64", "0.5", "8 min", "2.0 GiB", "1.0 GiB", "3.0 GiB", "measured at batch 2 and 4"],
        ["RDD, 3 students", "100", "32", "36", "60 min", "4.0 GiB", "3.0 GiB", "2.0 GiB", "2 at a time"],
        ["total", "68 min", "4.0 GiB", "7.0 GiB"],
    ]


def test_several_processes_are_as_fast_as_their_collectives_allow():
    assert PLAN.over(1, 1.0) == (1.0, 0.0)
    # 1,000 and 100 gradients of 1 GiB, each sent twice, half of it by each of two, at 10 GiB/s
    assert PLAN.over(2, 10 * GIB) == pytest.approx((4100 / (2050 + 110), 110 / (2050 + 110)))
    related = replace(PLAN, rows=[PLAN.rows[0], replace(PLAN.rows[1], maps=2 * GIB)])  # 100 times 3 of these more
    assert related.over(4, 10 * GIB)[1] == pytest.approx(0.75 * 280 / (1025 + 0.75 * 280))


def test_warnings_of_what_is_too_little():
    assert PLAN.warnings() == replace(PLAN, free_memory=None).warnings() == []
    disk, memory = replace(PLAN, free_disk=6 * GIB, free_memory=3 * GIB).warnings()
    assert "needs 7.0 GiB of disk, 6.0 GiB are free" in disk and "needs 4.0 GiB of memory, 3.0 GiB" in memory


def test_the_largest_batch_is_what_the_neediest_stage_has_memory_for():
    rows = [replace(row, cost=replace(row.cost, batch=16, per_image=GIB / 8)) for row in PLAN.rows]
    assert replace(PLAN, rows=rows).largest_batch == 16  # 2 at a time fill 4 GiB
    assert replace(PLAN, rows=rows, free_memory=8 * GIB).largest_batch == 16 + 2 * 8
    assert replace(PLAN, rows=rows[:1]).largest_batch == 16 + 2 * 8
    assert replace(PLAN, rows=rows, free_memory=GIB // 2).largest_batch == 2  # of the 2 GiB, 16 images are all
    assert replace(PLAN, rows=rows, free_memory=GIB // 16).largest_batch == 0
    assert PLAN.largest_batch is replace(PLAN, rows=rows, free_memory=None).largest_batch is None


def test_the_command_prints_the_table_and_what_is_free(done, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "make_plan", lambda *_, **__: replace(PLAN, free_disk=GIB))
    printed = done("plan", "--profile", "smoke", "--out", tmp_path)
    assert str(PLAN) in printed and "Warning: the study needs 7.0 GiB of disk" in printed
    assert f"Free disk for {tmp_path}: 1.0 GiB, free memory 4.0 GiB" in printed
    assert "Memory allows" not in printed and "more --seconds" in printed  # as far as is known
    times, share = PLAN.over(8, 10e9)
    assert f"{times:.2g} times as fast" in printed and f"{share:.0%} of the time in" in printed
    refusal("plan", "--profile", "smoke", "--bandwidth", "0")
    rows = [replace(row, cost=replace(row.cost, batch=16, per_image=1.0)) for row in PLAN.rows]
    monkeypatch.setattr(costs, "make_plan", lambda *_, **__: replace(PLAN, rows=rows))
    assert "Memory allows every stage a batch of 16 images" in done("plan")
    monkeypatch.setattr(costs, "make_plan", lambda *_, **__: replace(PLAN, rows=rows, free_memory=8 * GIB))
    assert "every batch of this profile (64 images at most) could be ten times as large" in done("plan")


def test_a_stopped_plan_promises_nothing(rdd, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "make_plan", stopped)
    assert rdd("plan") == (130, "", "rdd: interrupted; the same command begins anew: nothing was kept\n")


@pytest.mark.parametrize(
    "overrides, seconds, words",
    [
        ({}, 0, "--seconds 0: expected more than 0"),
        ({"pretrained.teacher": "x"}, 1, "no model at x"),
        ({"unet.chanels": "1"}, 1, "did you mean 'channels'"),
        ({"extractor.name": "teacher", "extractor.level": "9"}, 1, "no map of 0x0 pixels"),
        ({"extractor.name": "teacher", "methods": "[pd, rcfd]"}, 1, "rcfd: .* no class predictions"),
    ],
)
def test_what_cannot_be_planned(tmp_path, overrides, seconds, words):
    assert re.search(words, refused(make_plan, "smoke", overrides, out=tmp_path, seconds=seconds))


def test_disk_is_what_the_trainer_writes(tmp_path):
    """The bytes of a model and of all states that a killed run goes on from are those of real files."""
    profile = load_profile("smoke")
    prober, kept = Prober(profile), profile.run.keep + 1
    for stage in (prober.plain.base, prober.plain.student("rdd", 4, 0)):
        cost = prober.cost(stage, 0.01)
        trainer = stage.trainer(replace(stage.config, iterations=2, batch_size=4), files=tmp_path / stage.name)
        network, _ = stage.fit(trainer, *(prober.network(parent) for parent in stage.parents))
        state, _ = load_checkpoint(tmp_path / f"{stage.name}.00000002.resume")
        assert cost.resume == kept * sum(tensor.nbytes for tensor in state.values())
        assert cost.model == sum(tensor.nbytes for tensor in network.state_dict().values())
        assert 0 < cost.seconds < math.inf and cost.memory > 0


def test_a_plan_of_the_smoke_profile(tmp_path):
    plan = make_plan("smoke", {"seeds": "[0, 1]"}, out=tmp_path, seconds=0.5)
    for row in plan.rows:
        assert 0 < row.cost.seconds < math.inf and row.cost.memory > 0, row
        assert row.kind == SAMPLING or row.cost.resume > row.cost.model > 0, row
    assert not list(tmp_path.iterdir())


def test_what_comes_with_the_package_is_planned_as_taken(made_up, tmp_path):
    rows = {row.name: row for row in make_plan("digits", out=tmp_path).rows}
    for name in ("base model", "PD, 1 halving", "extractor small_resnet"):
        assert (rows[name].iterations, rows[name].seconds, rows[name].cost.note) == (0, 0.0, "comes with rddlib")
    trained = {row.name: row for row in make_plan("digits", {"run.shipped": "none"}, out=tmp_path).rows}
    assert trained["base model"].iterations == load_profile("digits").base.train.iterations
    assert (
        rows["RDD, 3 students"].iterations == 300 and trained["RDD, 3 students"].iterations == 600
    )  # the last halving


# the plan of a sweep


def test_what_is_left_is_counted_and_shared_work_once(tiny, tmp_path):
    pair = replace(ABLATIONS["alpha"].with_axes({"loss.alpha": "0.5, 2"}, tiny.profile), name="pair")
    first, second = plan_of(Sweep(Study(tiny.profile, tmp_path / "new"), [pair, replace(pair, name="twin")], [0, 1]))
    assert (first["settings"], first["runs"], first["done"], first["to do"]) == (3, 6, 0, 6)
    assert (second["runs"], second["done"], second["to do"], sum(second["work"].values())) == (6, 0, 0, 0)
    work = first["work"]  # base, a halving to 8 steps, extractor; students to 4 steps, a run each
    assert [work[kind] for kind in ("base", "halving", "extractor", "rdd", "cfd")] == [2, 1, 2, 4, 2]
    text = format_plan([first], dict.fromkeys(KINDS, 10.0), jobs=2)
    assert "pair" in text and f"{(2 + 1 + 2 + 4 + 2 + 6 * 4) * 10 / 2 / 60:.0f} min" in text.splitlines()[-1]


def test_what_comes_with_the_package_is_no_work_of_a_sweep(tmp_path):
    def work(**changes):
        study = Study(changed(load_profile("digits"), changes), tmp_path)
        return plan_of(Sweep(study, [ABLATIONS["alpha"]], [0]))[0]["work"]

    trained = work(**{"run.shipped": "none"})
    assert {"base", "halving", "extractor"} < trained.keys()
    assert work() == {kind: n for kind, n in trained.items() if kind not in ("base", "halving", "extractor")}


def test_costs_are_measured_once_for_a_folder(tiny, monkeypatch, tmp_path):
    turns = []

    def cost(self, stage, seconds):
        turns.append(stage.kind)
        return Cost((0.5, 0.25, 0.75)[turns.count(stage.kind) - 1], 0.0)

    monkeypatch.setattr(Prober, "cost", cost)
    monkeypatch.setattr(Prober, "sampling_cost", lambda self, seconds: Cost(1.0, 0.0))
    profile = load_profile("smoke")
    expected = {**dict.fromkeys([*KINDS[:-1], "cfd_is_pd"], 0.25), SAMPLING: 1.0}  # of three rounds the least disturbed
    nowhere = tmp_path / "nowhere"
    assert measured_costs(profile, nowhere, print) == expected
    assert not nowhere.exists() and known_costs(profile, nowhere) is None  # no study's folder: a look leaves nothing
    turns.clear()
    assert measured_costs(profile, tiny.out, print) == measured_costs(profile, tiny.out, print) == expected
    assert len(turns) == 3 * 8
    assert known_costs(changed(profile, {"unet.channels": "8"}), tiny.out) is None
    costs_file(profile, tiny.out).write_text("{}")
    assert re.search("costs-.*.json is damaged: delete it", refused(measured_costs, profile, tiny.out, print))


def test_the_catalogue_names_every_ablation_with_its_paper_and_its_costs():
    text = catalogue(3)
    for name, ablation in ABLATIONS.items():
        assert f"{name}: {ablation.title} ({ablation.source})" in text and ablation.claim in text
    (line,) = [line for line in text.splitlines() if line.startswith("tau_is ")]
    cells = re.split(r" {2,}", line)
    iterations = ["72", "2.7k", "7.2k", "3.6k", "3.6k", "13.5k", "360k", "900k"]
    assert cells == ["tau_is", *(f"18, {number}" for number in iterations)]  # 6 settings, 3 seeds


def test_a_plan_measures_on_images_of_every_class():
    images = random_images(load_profile("smoke", {"unet.num_classes": "1000"}))
    assert images.labels.unique().tolist() == list(range(1000)) and len(random_images(load_profile("smoke", {}))) == 256
