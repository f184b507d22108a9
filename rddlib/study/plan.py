"""What a study would cost on this machine, from a short measurement of each of its stages; for `rdd plan`.

Each stage is probed in a process of its own, on random images, at 2, 4, 8, ... of them until its batch is reached or the
time allowed is spent; what is not reached is extrapolated on the line through the two largest batches measured. The
relational losses, which grow with the batch's square, are then measured alone at the full batch.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rddlib.bench.process import free_memory, in_child
from rddlib.bench.stages import Stage, classes_of, config_of, each_step
from rddlib.diffusion.sampling import ddim_sample
from rddlib.losses import is_p2p_loss, m_p2p_loss
from rddlib.study.assembly import conditional_profile
from rddlib.study.profiles import METHODS, Profile, load_profile
from rddlib.training import chosen_precision, prepared, training_device
from rddlib.training.hardware import in_use, peak_memory, release_memory, reset_peak
from rddlib.utils.errors import UserError
from rddlib.utils.text import aligned, human_size, human_time, number

SAMPLING = "sampling"
FIRST = 2  # images of the first probe
WARM_UP = 1


class Point(NamedTuple):
    """One measurement at a batch: seconds of an iteration, peak memory in bytes, and how many of them were in use when
    the forward pass was done: in small batches the peak is that of the optimiser, and hides how activations grow."""

    batch: int
    seconds: float
    memory: float
    held: float = 0.0


@dataclass(frozen=True)
class Job:
    """A stage of the study: what is measured (a kind of rddlib.bench.stages, or SAMPLING), how often it runs, how many
    checkpoints it leaves, and how many of its trainings run at a time."""

    name: str
    kind: str
    iterations: int
    batch: int
    files: int = 0
    at_once: int = 1


@dataclass(frozen=True)
class Row:
    """A stage's costs: seconds of an iteration; memory: peak, of all that runs at a time; disk: bytes of the checkpoints
    it leaves; resume: bytes of what a killed run goes on from, while it runs. None where it could not be probed."""

    job: Job
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    resume: float | None = None
    note: str = ""

    @property
    def total_seconds(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.job.iterations


# pure parts


def jobs_of(profile: Profile, arms: Sequence[tuple[str, int, int]]) -> list[Job]:
    """The stages of a study; arms: its (method, steps, seed) that are scored."""
    p, evaluation = profile, profile.evaluation
    halvings = (p.base.steps // p.progressive.teacher_steps).bit_length() - 1
    at_once = min(p.jobs, len(METHODS) * len(p.seeds))
    jobs = [
        Job("base model", "base", p.base.train.iterations, p.base.train.batch_size, 1),
        Job("extractor", "extractor", p.extractor.train.iterations, p.extractor.train.batch_size, 1),
        Job(
            f"PD {p.base.steps} to {p.progressive.teacher_steps} steps",
            "progressive",
            halvings * p.progressive.train.iterations,
            p.progressive.train.batch_size,
            halvings,
        ),
        *(
            Job(
                f"{method.upper()} {p.progressive.teacher_steps} to 1 step",
                method,
                sum(p.distill.iterations) * len(p.seeds),
                p.distill.train.batch_size,
                len(p.student_steps) * len(p.seeds),
                at_once,
            )
            for method in METHODS
        ),
        Job(
            "samples to score",
            SAMPLING,
            sum(steps for _, steps, _ in arms) * -(-evaluation.samples // evaluation.batch_size),
            min(evaluation.batch_size, evaluation.samples),
        ),
    ]
    return [job for job in jobs if job.iterations]


def guided_jobs_of(profile: Profile, arms: Sequence[tuple]) -> list[Job]:
    """The stages of the study that distils guidance, in the same folder; arms: its (method, steps, seed, w, sampler)."""
    g, p, seeds = profile.guidance, profile, len(profile.seeds)
    halvings, batch = (g.steps // p.progressive.teacher_steps).bit_length() - 1, p.distill.train.batch_size
    each = sum(conditional_profile(profile, classes_of(profile)).distill.iterations)
    students = {
        method: {arm[1] for arm in arms if arm[0] == method and arm[4] == "stochastic"} for method in g.objectives
    }
    evaluations = sum(steps * (2 if method == "teacher" else 1) for method, steps, *_ in arms) * seeds
    size = min(p.evaluation.batch_size, g.samples)
    jobs = [
        Job("guided: base model", "base", g.base.iterations * seeds, g.base.batch_size, seeds),
        Job(
            "guided: extractors of other seeds",
            "extractor",
            p.extractor.train.iterations * (seeds - 1),
            p.extractor.train.batch_size,
            seeds - 1,
        ),
        Job("guided: stage one", "guide", g.train.iterations * seeds, g.train.batch_size, seeds),
        Job(
            f"guided: PD {g.steps} to {p.progressive.teacher_steps} steps",
            "progressive",
            halvings * p.progressive.train.iterations * seeds,
            p.progressive.train.batch_size,
            halvings * seeds,
        ),
        *(
            Job(
                f"guided: {method.upper()} to 1 step, stochastic",
                method,
                (each + len(extra) * g.stochastic) * seeds,
                batch,
                (len(p.student_steps) + len(extra)) * seeds,
                min(p.jobs, len(g.objectives)),
            )
            for method, extra in students.items()
        ),
        Job("guided: samples to score", SAMPLING, evaluations * -(-g.samples // size), size),
    ]
    return [job for job in jobs if job.iterations]


def extrapolated(points: Sequence[Point], batch: int) -> Point:
    """What the line through the two largest points (of points in rising order) says of a batch.

    Time grows in proportion to the batch where there is one point, and where the line falls or meets batch 0 below 0
    seconds, which is noise. Memory never falls.
    """
    last = points[-1]
    if last.batch == batch:
        return last
    before = points[-2] if len(points) > 1 else last._replace(batch=0, seconds=0.0)
    rise = [max(0.0, (y - x) / (last.batch - before.batch)) for x, y in zip(before[1:], last[1:], strict=True)]
    per_image = min(rise[0] or math.inf, last.seconds / last.batch)
    beyond = batch - last.batch
    return Point(batch, last.seconds + per_image * beyond, last.memory + max(rise[1:]) * beyond)


def with_relations(points: Sequence[Point], relations: Sequence[Point], batch: int) -> Point:
    """`extrapolated`, but for the relational losses: relations, measured alone at the last two points' batches and beyond.

    Their time is taken out of the points and put back as measured at the full batch, or from the largest measured by
    the batch's square; their memory is added, in proportion.
    """
    alone = {point.batch: point for point in relations}
    last = relations[-1]
    growth = batch / last.batch
    rest = [p._replace(seconds=max(0.0, p.seconds - alone[p.batch].seconds)) for p in points[-2:]]
    whole = extrapolated(rest, batch)
    return Point(batch, whole.seconds + last.seconds * growth**2, whole.memory + last.memory * growth)


def next_batch(points: Sequence[Point], full: int, seconds_left: float, memory: float) -> int:
    """Which batch to probe next, 0 for none: twice the last one (at most the full one), while an iteration and its
    warm-up should fit into the time left and its peak into `memory` bytes; but half of it where that leaves one point."""
    last = points[-1]
    if last.batch >= full:
        return 0
    wanted = min(2 * last.batch, full)
    guess = extrapolated(points, wanted)
    if guess.seconds * (WARM_UP + 1) <= seconds_left and guess.memory <= memory:
        return wanted
    return last.batch // 2 if len(points) == 1 else 0


@dataclass(frozen=True)
class Total:
    """Of all stages one after another; disk: what they leave, and the largest resume states while one of them runs."""

    seconds: float
    memory: float
    disk: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Total":
        known = [row for row in rows if row.seconds is not None]
        return cls(
            sum(row.total_seconds for row in known),
            max((row.memory for row in known), default=0),
            sum(row.disk for row in known) + max((row.resume for row in known), default=0),
        )


def format_plan(rows: Sequence[Row]) -> str:
    """A line for each stage and their total, as a table in plain text."""
    heads = ("stage", "iterations", "batch", "s/iteration", "time", "peak memory", "disk", "while running", "note")
    body = [
        (
            row.job.name,
            f"{row.job.iterations:,}",
            str(row.job.batch),
            number(row.seconds, ".3g"),
            *(
                _dash(human, value)
                for human, value in (
                    (human_time, row.total_seconds),
                    (human_size, row.memory),
                    (human_size, row.disk),
                    (human_size, row.resume),
                )
            ),
            row.note,
        )
        for row in rows
    ]
    total, missing = Total.of(rows), [row.job.name for row in rows if row.seconds is None]
    note = f"without {', '.join(missing)}" if missing else ""
    last = ("total", "", "", "", human_time(total.seconds), human_size(total.memory), human_size(total.disk), "", note)
    return aligned(heads, [*body, last], words=(0, len(heads) - 1))


def _dash(human: Callable[[float], str], value: float | None) -> str:
    return "-" if value is None else human(value)


def warnings_of(total: Total, free_disk: float, memory: float | None) -> list[str]:
    """A line for each thing that this machine has too little of; memory: None where the system does not tell."""
    lines = []
    if total.disk > free_disk:
        lines.append(
            f"Warning: the study needs {human_size(total.disk)} of disk, {human_size(free_disk)} are free: "
            "choose another --out"
        )
    if memory is not None and total.memory > memory:
        lines.append(
            f"Warning: the study needs {human_size(total.memory)} of memory, {human_size(memory)} are free: "
            "lower batch_size, raise accumulate, or set jobs=1"
        )
    return lines


# measuring


@dataclass(frozen=True)
class Plan:
    """rows; free_disk: bytes, where the study is to be; free_memory: bytes, of the GPU if there is one, None if unknown."""

    rows: list[Row]
    free_disk: int
    free_memory: int | None


def make_plan(
    profile: str,
    overrides: dict[str, str] | None = None,
    *,
    out: Path,
    seconds: float = 30.0,
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Probe every kind of stage, each for about `seconds`. progress: called with a line for each. Raises UserError for wrong
    input."""
    from rddlib.study.guidance import GuidedStudy  # above this module are only those who want a study's arms
    from rddlib.study.study import Study

    loaded, device, threads = load_profile(profile, overrides), training_device(), torch.get_num_threads()
    if loaded.pretrained.teacher or loaded.pretrained.extractor:
        raise UserError(
            "rdd plan probes the profile's own networks: leave pretrained.teacher and pretrained.extractor out"
        )
    if not seconds > 0:
        raise UserError(f"--seconds {seconds:g}: expected more than 0")
    memory, found = free_memory(device.type), {}
    guided = GuidedStudy(conditional_profile(loaded, classes_of(loaded)), out)
    jobs = jobs_of(loaded, Study(loaded, out).arms()) + guided_jobs_of(loaded, guided.arms())
    kinds = dict.fromkeys((job.kind, job.batch) for job in jobs)  # guidance makes a network no slower
    for index, kind in enumerate(kinds, start=1):
        job = next(job for job in jobs if (job.kind, job.batch) == kind)
        progress(f"[{index}/{len(kinds)}] probing {job.name}, about {seconds:g} s")
        found[kind] = _probed(job, profile, overrides or {}, seconds, threads)
    rows = [_row(job, found[job.kind, job.batch]) for job in jobs]
    return Plan(rows, shutil.disk_usage(_existing(out)).free, memory)


def probed(job: Job, profile: str, overrides: dict[str, str], seconds: float, threads: int) -> Row:
    """A stage's costs, measured for about `seconds` in a process of its own with so many threads."""
    return _row(job, _probed(job, profile, overrides, seconds, threads))


def _probed(job: Job, profile: str, overrides: dict[str, str], seconds: float, threads: int) -> dict:
    request = {"profile": profile, "overrides": overrides, "kind": job.kind, "batch": job.batch, "seconds": seconds}
    return in_child(probe, request, threads=threads, timeout=120 + 20 * seconds)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _row(job: Job, found: dict) -> Row:
    if "note" in found:
        return Row(job, note=found["note"])
    points, relations = ([Point(*point) for point in found[name]] for name in ("points", "relations"))
    parts, full = found["parts"], found["full"]
    whole = with_relations(points, relations, full) if relations else extrapolated(points, full)
    notes = []
    if points[-1].batch < full:
        notes.append(
            f"probed at batch {points[-2].batch} and {points[-1].batch}"
            if len(points) > 1
            else f"probed at batch {points[-1].batch}"
        )
    if relations:
        notes.append(f"relations at {relations[-1].batch}")
    if job.at_once > 1:
        notes.append(f"memory of {job.at_once} at a time")
    return Row(
        job,
        whole.seconds * parts,
        whole.memory * job.at_once,
        found["model_bytes"] * job.files,
        found["resume_bytes"] * job.at_once,
        ", ".join(notes),
    )


def probe(request: dict) -> dict:
    """What the process of one stage does: {"points", "relations", "full", "parts", "model_bytes", "resume_bytes"}.

    full: images that go through the networks at a time; parts: how often an iteration does that (config.accumulate);
    resume_bytes: of all the resume states that lie on the disk at the worst moment.
    """
    device = training_device()
    profile, kind = load_profile(request["profile"], request["overrides"]), request["kind"]
    limit = (free_memory(device.type) or math.inf) / 2
    prober = _Sampling(profile) if kind == SAMPLING else _Training(profile, kind)
    full = request["batch"] // prober.parts
    if prober.least_bytes > 2 * limit:
        return {"note": f"needs more than {human_size(prober.least_bytes)} of memory, {human_size(2 * limit)} are free"}
    points, began = [], time.monotonic()
    batch = min(FIRST, full)
    while batch:
        guess = extrapolated(points, batch).seconds if points else None
        release_memory()
        reset_peak(device.type)
        seconds = prober.seconds(batch, _steps_worth(guess))
        points = sorted([*points, Point(batch, seconds, peak_memory(device.type), prober.held)])
        tried_less = batch < points[-1].batch
        batch = 0 if tried_less else next_batch(points, full, request["seconds"] - (time.monotonic() - began), limit)
    relations = []
    if kind == "rdd" and points[-1].batch < full:
        relations = _probe_relations(prober, [p.batch for p in points[-2:]], full, request["seconds"], limit)
    return {
        "points": points,
        "relations": relations,
        "full": full,
        "parts": prober.parts,
        "model_bytes": prober.model_bytes,
        "resume_bytes": prober.resume_bytes,
    }


def _steps_worth(guess: float | None) -> int:
    """How many iterations to time: about half a second's worth."""
    return 1 if guess is None else min(10, max(1, round(0.5 / guess)))


class _Training:
    """Times iterations of a stage's real training; knows the bytes of what it writes once it has run."""

    def __init__(self, profile: Profile, kind: str):
        self.profile, self.stage, self.config = profile, Stage(profile, kind), config_of(profile, kind)
        self.parts, self.model_bytes, self.resume_bytes = self.config.accumulate, 0, 0
        self.held, self.warm = 0, False
        self._watch_memory()
        # torch.compile would take longer than a probe may
        self.run = replace(profile.run, compile="never") if profile.run.compile == "auto" else profile.run
        copies = (
            5 + (self.config.ema > 0) + (self.stage.objective is not None)
        )  # given, trained, gradient, Adam's two ...
        self.least_bytes = copies * _bytes(self.stage.network.parameters())

    def _watch_memory(self) -> None:
        """Note what is in use after the forward pass of a fit's first iteration, of which nothing is timed."""

        @torch.compiler.disable
        def note(*_) -> None:
            if torch.is_grad_enabled() and not self.warm:
                release_memory()
                self.held = in_use(training_device().type)

        self.stage.network.register_forward_hook(note)
        if self.stage.objective is not None:
            self.stage.objective.register_forward_hook(note)

    def seconds(self, batch: int, steps: int) -> float:
        """Mean seconds of an iteration on `batch` images, over `steps` of them after the warm-up."""
        config = replace(self.config, iterations=WARM_UP + steps, batch_size=batch, accumulate=1)
        ends, optimizers = [], set()
        self.warm = False

        def seen(optimizer: torch.optim.Optimizer) -> None:
            self.warm = True
            ends.append(_now())
            optimizers.add(optimizer)

        with each_step(seen):
            trained = self.stage.fit(config, self.run)
        self._weigh(trained, optimizers.pop())
        return (ends[-1] - ends[WARM_UP - 1]) / steps

    def _weigh(self, trained: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model_bytes = _bytes(trained.state_dict().values())
        auxiliary = self.stage.objective.state_dict().values() if self.stage.objective is not None else ()
        moments = [value for slots in optimizer.state.values() for value in slots.values()]
        resume = self.model_bytes * (2 if self.config.ema else 1) + _bytes(auxiliary) + _bytes(moments)
        self.resume_bytes = resume * (self.profile.run.keep + 1)  # the oldest goes once the newest is written


class _Sampling:
    """Times the denoiser as the scores' samples are drawn with it: one step of DDIM on a batch."""

    parts, model_bytes, resume_bytes, held = 1, 0, 0, 0

    def __init__(self, profile: Profile):
        run = replace(profile.run, compile="never")
        self.denoiser = Stage(profile, "base").network.to(training_device()).eval().requires_grad_(False)
        prepared(self.denoiser, run, "float32")
        self.least_bytes = _bytes(self.denoiser.parameters())
        self.shape = (profile.unet.image_channels, profile.unet.image_size, profile.unet.image_size)

    def seconds(self, batch: int, steps: int) -> float:
        """Mean seconds of a DDIM step on `batch` images, over `steps` of them after the warm-up."""
        device = training_device()
        noise = torch.randn(batch, *self.shape, device=device)
        y = torch.zeros(batch, dtype=torch.long, device=device) if self.denoiser.num_classes else None
        ddim_sample(self.denoiser, noise, WARM_UP, y=y)
        began = _now()
        ddim_sample(self.denoiser, noise, steps, y=y)
        return (_now() - began) / steps


def _probe_relations(prober: _Training, measured: list[int], full: int, seconds: float, memory: float) -> list[Point]:
    """The relational losses alone, at the batches measured with everything else and then at twice as many and so on up to
    the full batch, while the next promises to stay within `seconds` and `memory` bytes."""
    _relations(prober, 1)  # starts what is started but once
    points = [_relations(prober, batch) for batch in measured]
    while (last := points[-1]).batch < full:
        batch = min(2 * last.batch, full)
        growth = batch / last.batch
        if last.seconds * growth**2 > seconds or last.memory * growth > memory:
            break
        points.append(_relations(prober, batch))
    return points


def _relations(prober: _Training, batch: int) -> Point:
    """IS_P2P and M_P2P, forward and backward on random maps; memory: above that of the maps."""
    loss, extractor, device = prober.profile.loss, prober.stage.objective.extractor, training_device()
    shape = _map_shape(extractor, prober.stage.images.images.shape[1:], device)
    dtype = chosen_precision(prober.config.precision, device)
    map_student, map_teacher = (torch.randn(batch, *shape, device=device).to(dtype) for _ in range(2))
    embeddings = torch.nn.functional.normalize(torch.randn(loss.draws, shape[0], device=device), dim=1)
    map_student.requires_grad_()
    release_memory()
    before, began = reset_peak(device.type), _now()
    total = is_p2p_loss(map_student, map_teacher, loss.tau_is)
    total = total + m_p2p_loss(map_student, map_teacher, embeddings, loss.tau_m)
    total.backward()
    return Point(batch, _now() - began, peak_memory(device.type) - before)


@torch.no_grad()
def _map_shape(extractor: torch.nn.Module, image_shape: Sequence[int], device: torch.device) -> torch.Size:
    return extractor(torch.zeros(1, *image_shape, device=device)).map.shape[1:]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
