"""What a study or a sweep would take on this machine: each kind of stage is run for a few iterations on random images, and
what its trainer logs is read.

A batch grows from 2 images on until the stage's own is reached, or time or memory would not allow the next; what is not
reached is extrapolated on the line through the two largest batches measured. Of the iterations at a batch the fastest
counts: other programs only ever slow one down.
"""

import contextlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rddlib.data import ImageDataset, load_dataset
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.sampling import ddim_sample
from rddlib.distillation.label_free import TEACHER
from rddlib.evaluation.receipt import MEASURED_AGAIN
from rddlib.methods import COMPETING, WINNER
from rddlib.study.ablations import ABLATIONS, Ablation
from rddlib.study.folder import STUDY_FILE, study_profile
from rddlib.study.graph import (
    Graph,
    Inputs,
    check_classes_to_learn,
    check_takes_weight,
    conditional_profile,
    extractor_to_check,
    given_model,
    guided_graph,
    map_of,
    plain_graph,
)
from rddlib.study.profiles import PROFILES, Profile, changed, classes_of
from rddlib.study.stage import Stage, Workplace, key_of
from rddlib.study.study import Arm, Study, guided_arms, plain_arms
from rddlib.study.sweep import ABLATIONS_FOLDER, Sweep
from rddlib.training import Trainer, training_device
from rddlib.training.hardware import (
    fewer_threads_if_busy,
    free_memory,
    on_threads,
    peak_memory,
    release_memory,
    reset_peak,
)
from rddlib.utils import progress
from rddlib.utils.checkpoint import read_json, write_atomically
from rddlib.utils.distributed import locked
from rddlib.utils.errors import UserError
from rddlib.utils.installation import git_commit, hardware
from rddlib.utils.text import aligned, counted, human_size, human_time, number

GUIDED = "guided: "  # how the names of the guided study's rows begin
SAMPLING = "sampling"  # the kind of a step of DDIM on a batch, beside the stages' kinds
FIRST, FIRST_TIMED = 2, 3  # images of the first batch, and how many iterations of it are timed
WARM_UP = 1  # iterations that are not timed


# measuring


class Point(NamedTuple):
    """One measurement at a batch: seconds of an iteration, peak memory of the process in bytes."""

    batch: int
    seconds: float
    memory: float


@dataclass(frozen=True)
class Cost:
    """Of one iteration of a kind of stage: seconds; memory: peak, bytes; model: bytes of its checkpoint; resume: bytes of
    all states that a killed run goes on from; note: at which batch it was measured, where that is not its own; batch: images
    worked through at a time; per_image: memory of one more, 0 where that does not show."""

    seconds: float
    memory: float
    model: int = 0
    resume: int = 0
    note: str = ""
    batch: int = 0
    per_image: float = 0.0


SHIPS = Cost(0.0, 0.0, note="comes with rddlib")
DONE = Cost(0.0, 0.0)  # nothing is left to do


def random_images(profile: Profile, latent: bool = False) -> ImageDataset:
    """Noise in the shape of what the profile's models draw, images or latents, 256 or one of each class."""
    generator, classes = torch.Generator().manual_seed(0), classes_of(profile)
    count = max(256, classes)
    shape = (count, *profile.unet.image_shape)
    if latent:
        images = torch.randn(shape, generator=generator)
    else:
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % max(classes, 1)
    return ImageDataset(str(profile.data.folder), images, labels, classes)


def _space_of(profile: Profile) -> LatentSpace | None:
    """Where a given latent model draws, with a prompt for each class."""
    space = given_model(profile.pretrained)[0].space if profile.pretrained.teacher else None
    prompts = [f"prompt {k}" for k in range(classes_of(profile) or 1)]
    return space.with_prompts(prompts) if space and space.takes_prompts else space


class Prober:
    """Runs the stages of a profile's graphs, writing nothing; guided: None for images without classes.

    images: default random ones. networks(stage): what its parents hand to it, barely trained, since an iteration costs the same
    whatever was learnt.
    """

    def __init__(self, profile: Profile, images: ImageDataset | None = None):
        space = _space_of(profile)
        images = images or random_images(profile, latent=space is not None)
        run = replace(profile.run, log_every=1, sample_every=0, tracker="none")
        # torch.compile would take longer than a measurement may
        run = replace(run, compile="never") if run.compile in ("auto", "blocks") else run
        place = Workplace(Path("nowhere"), run)
        self.profile, self.images = profile, images
        self.plain = plain_graph(Inputs(profile, 0, lambda split: images, place, space))
        guided = conditional_profile(profile, images.num_classes) if images.num_classes else None
        self.guided = guided and guided_graph(Inputs(guided, 0, lambda split: images, place, space))
        self._networks: dict[Stage, nn.Module] = {}

    def network(self, stage: Stage) -> nn.Module:
        if stage not in self._networks:
            student = stage.kind == "halving" or stage.kind in self.profile.objectives  # as large as its teacher
            self._networks[stage] = self.network(stage.parents[0]) if student else self._fit(stage, 1, FIRST)[0]
        return self._networks[stage]

    def _fit(self, stage: Stage, iterations: int, batch: int) -> tuple[nn.Module, Trainer | None]:
        """A network trained for so long, and what trained it: None of a stage that is taken as it is."""
        short = stage.config and replace(stage.config, iterations=iterations, batch_size=batch, accumulate=1)
        trainer = short and stage.trainer(short)
        networks = [self.network(parent) for parent in stage.parents]
        with progress.silent():
            return stage.fit(trainer, *networks)[0], trainer

    def cost(self, stage: Stage, seconds: float) -> Cost:
        """Of an iteration of a stage, measured for about so many seconds."""
        seen: dict = {}

        def timed(batch: int, iterations: int) -> Point:
            seen["network"], trainer = self._fit(stage, WARM_UP + iterations, batch)
            seen["state"] = trainer.state_bytes
            speeds = [record["images_per_second"] for record in trainer.history if "images_per_second" in record]
            return Point(batch, batch / max(speeds), peak_memory(training_device()))

        for parent in stage.parents:
            self.network(parent)  # made before the time runs
        parts = stage.config.accumulate
        cost = _probed(timed, stage.config.batch_size // parts, seconds)
        model = sum(tensor.nbytes for tensor in seen["network"].state_dict().values())
        kept = seen["state"] * (self.profile.run.keep + 1)  # the oldest goes once the newest is written
        return replace(cost, seconds=cost.seconds * parts, model=model, resume=kept)

    def sampling_cost(self, seconds: float) -> Cost:
        """Of a step of DDIM on a batch, as scores' samples are drawn."""
        denoiser, device = self.network(self.plain.base).to(training_device()), training_device()
        evaluation, shape = self.profile.evaluation, self.profile.unet.image_shape

        def timed(batch: int, steps: int) -> Point:
            noise = torch.randn(batch, *shape, device=device)
            y = torch.zeros(batch, dtype=torch.long, device=device) if denoiser.num_classes else None
            ddim_sample(denoiser, noise, WARM_UP, y=y)
            took = []
            for _ in range(steps):
                began = _now()
                ddim_sample(denoiser, noise, 1, y=y)
                took.append(_now() - began)
            return Point(batch, min(took), peak_memory(device))

        return _probed(timed, min(evaluation.batch_size, evaluation.samples), seconds)


def _probed(timed: Callable[[int, int], Point], full: int, seconds: float) -> Cost:
    """What a full batch costs; timed(batch, iterations) measures."""
    device, points, began = training_device().type, [], time.monotonic()
    batch, limit = min(FIRST, full), (free_memory(device) or math.inf) / 2
    while batch:
        guess = extrapolated(points, batch).seconds if points else None
        release_memory()
        reset_peak(device)
        several = FIRST_TIMED if guess is None else round(max(0.5, seconds / 20) / guess)
        points.append(timed(batch, min(10, max(1, several))))
        batch = next_batch(points, full, seconds - (time.monotonic() - began), limit)
    measured = " and ".join(str(point.batch) for point in points[-2:])
    note = "" if points[-1].batch == full else f"measured at batch {measured}"
    _, took, held = extrapolated(points, full)
    return Cost(took, held, note=note, batch=full, per_image=extrapolated(points, full + 1).memory - held)


def extrapolated(points: Sequence[Point], batch: int) -> Point:
    """What the line through the two largest points (of points in rising order) says of a batch.

    Time grows in proportion to the batch where there is one point, and where the line falls or meets batch 0 below 0
    seconds, which is noise. Memory never falls.
    """
    last = points[-1]
    before = points[-2] if len(points) > 1 else Point(0, 0.0, last.memory)
    seconds, memory = (
        max(0.0, (b - a) / (last.batch - before.batch)) for a, b in zip(before[1:], last[1:], strict=True)
    )
    per_image, beyond = min(seconds or math.inf, last.seconds / last.batch), batch - last.batch
    return Point(batch, last.seconds + per_image * beyond, last.memory + memory * beyond)


def next_batch(points: Sequence[Point], full: int, seconds_left: float, memory: float) -> int:
    """Which batch to measure next, 0 for none: twice the last one (at most the full one), while an iteration and its
    warm-up should fit into the time left and its peak into `memory` bytes."""
    wanted = min(2 * points[-1].batch, full)
    guess = extrapolated(points, wanted)
    fits = guess.seconds * (WARM_UP + 1) <= seconds_left and guess.memory <= memory
    return wanted if points[-1].batch < full and fits else 0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# the plan of a study


@dataclass(frozen=True)
class Row:
    """A line of a plan: stages of one kind; iterations: of all of them; files: checkpoints that they leave; at_once: how
    many of them train at a time; maps: bytes of a batch's feature maps, where relations span it."""

    name: str
    kind: str
    iterations: int
    batch: int
    files: int
    at_once: int
    cost: Cost
    maps: float = 0.0

    @property
    def guided(self) -> bool:
        """Whether it is of the guided study, which `rdd study` makes for notebooks 08 and 09 alone."""
        return self.name.startswith(GUIDED)

    @property
    def seconds(self) -> float:
        return self.cost.seconds * self.iterations


@dataclass(frozen=True)
class Plan:
    """rows; free_disk: bytes, where the study is to be; free_memory: bytes, of the GPU if there is one, None if unknown."""

    rows: list[Row]
    free_disk: int
    free_memory: int | None

    @property
    def seconds(self) -> float:
        """Of all rows one after another."""
        return sum(row.seconds for row in self.rows)

    @property
    def memory(self) -> float:
        return max(row.cost.memory * row.at_once for row in self.rows)

    @property
    def disk(self) -> float:
        """What all leave, and the largest resume states while one of them runs."""
        return sum(row.cost.model * row.files for row in self.rows) + max(r.cost.resume * r.at_once for r in self.rows)

    def over(self, processes: int, bandwidth: float) -> tuple[float, float]:
        """(how many times as fast so many processes are, the share of collectives in their time), computed, not measured.

        Each works through its share of every batch. Then a ring that moves `bandwidth` bytes a second sums the gradient (as
        large as the checkpoint) and gathers teacher's and student's feature maps and the gradient of the latter. Nothing
        overlaps, so it is the least to expect.
        """
        moved = sum((2 * row.cost.model + 3 * row.maps) * row.iterations for row in self.rows)
        talking = moved * (processes - 1) / processes / bandwidth
        seconds = self.seconds / processes + talking
        return self.seconds / seconds, talking / seconds

    @property
    def largest_batch(self) -> int | None:
        """Images at a time that every stage has memory for, None where that is not known."""
        if self.free_memory is None:
            return None
        trained = [(row.cost, self.free_memory / row.at_once) for row in self.rows if row.kind != SAMPLING]
        most = [cost.batch + int((free - cost.memory) // cost.per_image) for cost, free in trained if cost.per_image]
        return max(0, min(most)) if most else None

    def warnings(self) -> list[str]:
        """A line for each thing that this machine has too little of."""
        return [
            f"Warning: the study needs {human_size(needed)} of {what}, {human_size(free)} are free: {remedy}"
            for what, needed, free, remedy in (
                ("disk", self.disk, self.free_disk, "choose another --out"),
                ("memory", self.memory, self.free_memory, "lower batch_size, raise accumulate, or set jobs=1"),
            )
            if free is not None and needed > free
        ]

    def __str__(self) -> str:
        """A line for each row and their total, as a table in plain text."""
        heads = ("stage", "iterations", "batch", "s/iteration", "time", "peak memory", "disk", "while running", "note")
        body = [
            (
                row.name,
                f"{row.iterations:,}",
                str(row.batch),
                number(row.cost.seconds, ".3g"),
                human_time(row.seconds),
                human_size(row.cost.memory * row.at_once),
                human_size(row.cost.model * row.files),
                human_size(row.cost.resume * row.at_once),
                "; ".join(filter(None, [row.cost.note, f"{row.at_once} at a time" * (row.at_once > 1)])),
            )
            for row in self.rows
        ]
        total = ("total", "", "", "", human_time(self.seconds), human_size(self.memory), human_size(self.disk), "", "")
        if any(row.guided for row in self.rows):
            own = sum(row.seconds for row in self.rows if not row.guided)
            body.append(("total without guided", "", "", "", human_time(own), "", "", "", ""))
        return aligned(heads, [*body, total], words=(0, len(heads) - 1))


def make_plan(
    profile: str,
    overrides: dict[str, str] | None = None,
    *,
    out: Path,
    seconds: float = 30.0,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Measure every kind of stage of a study, each for about `seconds`; say: called with a line for each.

    Raises UserError for wrong input.
    """
    p = study_profile(profile, {"run.shipped": "earlier", **(overrides or {})})
    if not seconds > 0:
        raise UserError(f"--seconds {seconds:g}: expected more than 0")
    if p.data.name == "folder" and not p.data.folder.is_dir():
        say(f"there is no folder {p.data.folder}: {counted(classes_of(p), 'class')} assumed (--set data.root=FOLDER)")
    maps = _checked_maps(p)
    memory, prober, seeds = free_memory(training_device().type), Prober(p, _at_hand(p, say)), len(p.seeds)
    groups = [*_groups(prober.plain, plain_arms(p), "", 1)]
    if any(stages[0].kind == "extractor" for _, stages, _ in groups):
        check_classes_to_learn(prober.images, p.extractor.classes)
    if prober.guided and _takes_weight(p):
        guided = [arm for arm in guided_arms(prober.guided.profile, p.seeds[0]) if arm.guidance == p.guidance.at[0]]
        groups += _groups(prober.guided, guided, GUIDED, seeds)
    kinds: dict[tuple, Cost] = {}
    with fewer_threads_if_busy(say):
        for name, stages, _ in groups:
            key = (stages[0].kind, stages[0].config.batch_size)
            if key not in kinds and not all(stage.ships for stage in stages):
                say(f"[{len(kinds) + 1}] {name}: measuring, about {seconds:g} s")
                kinds[key] = prober.cost(stages[0], seconds)
        say(f"[{len(kinds) + 1}] samples to score: measuring, about {seconds:g} s")
        sampling = prober.sampling_cost(seconds)
    rows = [_row(p, name, stages, times, kinds, maps) for name, stages, times in groups]
    measured = [arm for arm in plain_arms(p) if not _score_ships(p, prober.plain, arm)]
    rows += _sampling_rows(p, measured, sampling)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    shown = [row for row in rows if row.iterations or row.cost is SHIPS]
    return Plan(shown, shutil.disk_usage(existing).free, memory)


def _at_hand(p: Profile, say: Callable[[str], None]) -> ImageDataset | None:
    """CIFAR-10 where it is here already: which models come with the package is known by the pixels that they learnt from."""
    if p.data.name == "cifar10" and p.data.folder.is_dir() and not p.pretrained.teacher:
        try:
            return load_dataset(replace(p.data, download=False), shape=p.unet.image_shape)
        except UserError as error:
            say(f"planned as if no model shipped for these images: {error}")
    return None


def _takes_weight(p: Profile) -> bool:
    """Whether guidance can be distilled: not from every given teacher."""
    with contextlib.suppress(UserError):
        check_takes_weight(p)
        return True
    return False


def _checked_maps(p: Profile) -> float:
    """Bytes of an image's feature map. Raises UserError where the extractor cannot be had, or cannot show what the methods look
    at."""
    untrained = extractor_to_check(p, classes_of(p))
    for name in p.methods:
        Study(p, Path("nowhere")).check_method(name, untrained)
    return 4.0 * map_of(untrained, p.unet.image_shape).numel()


def _groups(graph: Graph, arms: Iterable[Arm], prefix: str, times: int) -> list[tuple[str, list[Stage], int]]:
    """(name, stages of one kind, how often each is trained) of what these arms need."""
    found: dict[str, list[Stage]] = {}
    for arm in arms:
        for stage in graph.drawer(arm.method, arm.steps, arm.seed, arm.sampler).missing():
            if stage.config:  # else it is taken as it is
                same = found.setdefault(stage.kind, [])
                same += [stage] * (stage not in same)
    names = {kind: stages[0].label for kind, stages in found.items()}
    own = graph.profile.objectives
    students = {kind: stages for kind, stages in found.items() if kind in own}
    names |= {kind: f"{own[kind].label}, {counted(len(stages), 'student')}" for kind, stages in students.items()}
    if "halving" in found:
        names["halving"] = f"PD, {counted(len(found['halving']), 'halving')}"
    # a guided study of the first seed finds the extractor there
    repeated = {kind: times - 1 if prefix and kind == "extractor" else times for kind in found}
    return [(prefix + names[kind], stages, repeated[kind]) for kind, stages in found.items()]


def _row(p: Profile, name: str, stages: list[Stage], times: int, kinds: Mapping[tuple, Cost], maps: float) -> Row:
    batch, kind = stages[0].config.batch_size, stages[0].kind
    iterations = sum(stage.iterations for stage in stages if not stage.ships) * times
    at_once = min(p.at_once, len(p.methods) * len(p.seeds)) if kind in p.objectives else 1
    cost = kinds[kind, batch] if iterations else SHIPS if any(stage.ships for stage in stages) else DONE
    looks = kind in p.objectives and p.method(kind).looks
    return Row(name, kind, iterations, batch, len(stages) * times, at_once, cost, maps * batch * looks)


def _score_ships(p: Profile, graph: Graph, arm: Arm) -> bool:
    """Whether the package has it; graph: of the study's own models."""
    ships = graph.drawer(arm.method, arm.steps, arm.seed, arm.sampler).ships
    return ships and Study(p, Path("nowhere")).shipped_score_file(arm) is not None


def _sampling_rows(p: Profile, plain: list[Arm], cost: Cost) -> list[Row]:
    """Rows for the samples of these arms and of all guided ones."""
    classes = 0 if p.pretrained.teacher else classes_of(p)
    guided = guided_arms(conditional_profile(p, classes), 0) if classes else []

    def row(name: str, arms: list[Arm], samples: int) -> Row:
        batch = min(p.evaluation.batch_size, samples)
        evaluations = sum(arm.steps * (2 if arm.method == "teacher" else 1) for arm in arms)
        return Row(name, SAMPLING, evaluations * -(-samples // batch), batch, 0, 1, cost)

    own = row("samples to score", plain, p.evaluation.samples)
    return [own, row(f"{GUIDED}samples to score", guided * len(p.seeds), p.guidance.samples)]


# the plan of a sweep


def measured_costs(profile: Profile, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of an iteration by kind of stage, and of a sampling step ("sampling"), at the profile's own numbers.

    Measured once for a study's folder and these networks and this batch, with one thread (again where the file lacks a method
    of NEEDED), and kept there: a sweep that depends on them then does not change when it goes on. On a GPU, of that GPU.
    """
    if not (out / STUDY_FILE).exists():
        return _measure(profile, say)["seconds"]
    path = costs_file(profile, out)
    with locked(path):  # shards that start together share one measurement
        if not (known_costs(profile, out) or {}).keys() >= NEEDED:
            write_atomically(path, json.dumps(_measure(profile, say), indent=1) + "\n")
    return known_costs(profile, out)


def costs_file(profile: Profile, out: Path) -> Path:
    """Where they are kept."""
    sizes = [asdict(profile.unet), profile.extractor.name, profile.distill.train.batch_size]
    return out / ABLATIONS_FOLDER / f"costs-{key_of(sizes)}.json"


def known_costs(profile: Profile, out: Path) -> dict[str, float] | None:
    """What was measured for a folder, None where nothing was. Raises UserError where the file is damaged."""
    path = costs_file(profile, out)
    if not path.exists():
        return None
    return read_json(
        path, lambda found: {kind: float(seconds) for kind, seconds in found["seconds"].items()}, MEASURED_AGAIN
    )


NEEDED = {*COMPETING, WINNER}  # that ablations compare the times of, whatever competes in the study
SECONDS, ROUNDS = 2.0, 3  # of measuring each kind, and how often: the least disturbed counts


def _measure(profile: Profile, say: Callable[[str], None]) -> dict:
    predicts = profile.extractor.name != TEACHER
    needed = dict.fromkeys([*profile.methods, *(name for name in COMPETING if predicts or name != "rcfd"), WINNER])
    profile = replace(profile, methods=tuple(needed))
    costs, prober = {}, Prober(profile)
    stages = {stages[0].kind: stages[0] for _, stages, _ in _groups(prober.plain, plain_arms(profile), "", 1)}
    with on_threads(1):
        for turn in range(ROUNDS):
            say(f"[{turn + 1}/{ROUNDS}] measuring an iteration of {len(stages) + 1} kinds, {SECONDS:g} s each")
            found = {kind: prober.cost(stage, SECONDS).seconds for kind, stage in stages.items()}
            found[SAMPLING] = prober.sampling_cost(SECONDS).seconds
            costs = {kind: min(seconds, costs.get(kind, seconds)) for kind, seconds in found.items()}
    costs.setdefault("rcfd", costs["cfd"])  # which only adds losses of class predictions
    where = {"hardware": hardware(), "torch": torch.__version__, "git_commit": git_commit()}
    return {"seconds": costs, "threads": 1, **where}


def plan_of(sweep: Sweep) -> list[dict]:
    """A row for each ablation: settings, runs, how many of them are done, and the iterations of each kind that remain.

    What several ablations share is counted with the first.
    """
    rows, counted, seen = [], set(), set()
    for ablation in sweep.ablations:
        points = [point for point in sweep.points if point.ablation.name == ablation.name]
        runs = {point.run.key: point.run for point in points}
        left = [runs[key] for key in sorted(runs.keys() - seen) if not runs[key].done]
        rows.append(
            {
                "ablation": ablation.name,
                "paper": ablation.source,
                "settings": len({point.setting.name for point in points}),
                "runs": len(runs),
                "done": sum(run.done for run in runs.values()),
                "to do": len(left),
                "work": _work(sweep, left, counted),
            }
        )
        seen |= runs.keys()
    return rows


def _work(sweep: Sweep, runs: Iterable, counted: set) -> Counter:
    """{kind: iterations, at the profile's own batch sizes} to train what these runs lack; `counted` paths were before."""
    work: Counter = Counter()
    own = {stage.kind: stage.config.batch_size for stage in sweep.base.lineage() if stage.config}
    for path, (_, stage) in sweep.missing(runs).items():
        if path not in counted and stage.config and not stage.ships:
            counted.add(path)
            batch = stage.config.batch_size
            work[stage.kind] += stage.iterations * batch / own.get(stage.kind, batch)
    for run in runs:
        evaluation = run.study.profile.evaluation
        batches = -(-evaluation.samples // evaluation.batch_size)
        work[SAMPLING] += sum(run.steps) * batches
    return work


def format_plan(rows: list[dict], costs: Mapping[str, float], jobs: int) -> str:
    """The plan as a table in plain text, with the time that remains at `jobs` at a time."""
    heads = ("ablation", "paper", "settings", "runs", "done", "to do")
    seconds = [_seconds(row["work"], costs) / jobs for row in rows]
    iterations = [round(row["work"].total() - row["work"][SAMPLING]) for row in rows]
    body = [
        [*(str(row[head]) for head in heads), f"{trained:,}", human_time(time)]
        for row, trained, time in zip(rows, iterations, seconds, strict=True)
    ]
    left = str(sum(row["to do"] for row in rows))
    total = ["total", "", "", "", "", left, f"{sum(iterations):,}", human_time(sum(seconds))]
    return aligned([*heads, "iterations", "time"], [*body, total], words=(0, 1))


def _seconds(work: Mapping[str, float], costs: Mapping[str, float]) -> float:
    """A kind that was not measured, such as a sum that does not compete in the study, is taken to cost as much as the dearest
    that was."""
    dearest = max(cost for kind, cost in costs.items() if kind != SAMPLING)
    return sum(number * costs.get(kind, dearest) for kind, number in work.items())


def catalogue(seeds: int) -> str:
    """Every ablation with its source, what was claimed, and its costs at each profile."""
    lines = [f"{name}: {one.title} ({one.source})\n  {one.claim}" for name, one in ABLATIONS.items()]
    lines += [
        "",
        f"Costs with {counted(seeds, 'seed')}: runs, and the iterations that train them once teacher and extractor are there.",
    ]
    body = [[name, *(_cost_at(one, profile, seeds) for profile in PROFILES)] for name, one in ABLATIONS.items()]
    return "\n".join([*lines, aligned(["ablation", *PROFILES], body, words=(0,))])


def _cost_at(ablation: Ablation, name: str, seeds: int) -> str:
    """What an ablation costs at a profile, counted without any data: "18 runs, 11k it"."""
    profile, runs, iterations = PROFILES[name](), set(), 0
    for setting in ablation.settings(profile):
        runs.add((setting.method, tuple(setting.changes.items())))
        own = changed(profile, dict(setting.changes))
        if setting.method in own.objectives:
            stages = own.distill.iterations
            iterations += sum(stages if ablation.whole else stages[:1])
    return f"{len(runs) * seeds}, {_thousands(iterations * seeds)}"


def _thousands(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
