"""Where the time of a training step goes: teacher, student, extractor, losses, optimiser; for `rdd bench step`.

Each setting runs in a process of its own, twice: once untouched, for the time of the whole step and the peak of memory,
and once with marks at every boundary, for the parts (on CUDA each mark waits for the device).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.flop_counter import FlopCounterMode

from rddlib.bench.process import MIB, in_child
from rddlib.bench.stages import Stage, config_of, each_step
from rddlib.study.profiles import METHODS, load_profile
from rddlib.training import TrainConfig, chosen_precision, training_device
from rddlib.training.hardware import peak_memory, tf32_context
from rddlib.utils.errors import UserError
from rddlib.utils.text import aligned, number

WHAT = ("base", *METHODS)
PARTS = ("data", "teacher", "student", "extractor", "losses", "optimiser")
STEP = "step"  # the mark at the end of an optimiser's step
FEW = 2  # images a step whose FLOPs are counted
SETTINGS = {
    "float32 eager": {"precision": "float32", "channels_last": "never", "compile": "never"},
    "auto": {"precision": "auto", "channels_last": "auto", "compile": "auto"},
    "bf16": {"precision": "bf16", "channels_last": "auto", "compile": "auto"},
}

Marks = Sequence[tuple[str, float]]


def seconds_per_part(marks: Marks) -> dict[str, float]:
    """Mean seconds of a step by part, of the steps between the first and the last mark named STEP.

    marks: (part that ended, when), in order; STEP ends the optimiser's part. The parts' sum is the mean step.
    """
    ends = [index for index, (part, _) in enumerate(marks) if part == STEP]
    total = dict.fromkeys(PARTS, 0.0)
    for (_, before), (part, after) in itertools.pairwise(marks[ends[0] : ends[-1] + 1]):
        total["optimiser" if part == STEP else part] += after - before
    return {part: seconds / (len(ends) - 1) for part, seconds in total.items()}


class PartClock:
    """The `clock` of train that writes down marks; now() -> seconds. found: how the student turned out to run."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.marks, self.found = now, [], {}

    def mark(self, ended: str) -> None:
        """What was going on since the last mark was this part."""
        self.marks.append((ended, self.now()))

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.mark("optimiser" if part == "data" else "losses")  # a step begins with data; all else borders on losses
        yield
        self.mark(part)

    def watch(self, stage: Stage) -> None:
        """Mark where the backward pass goes from losses to extractor to student to the optimiser; and the objective's
        looking through the extractor and its work after the step."""
        objective = stage.objective
        sees = hasattr(objective, "features")

        @torch.compiler.disable
        def see_student(module, arguments, x_student):
            if not x_student.requires_grad:  # the teacher, a copy of the same
                return
            x_student.register_hook(lambda _: self.mark("extractor" if sees else "losses"))
            if not self.found:
                self.found = {"channels_last": _is_channels_last(module), "compiled": _is_compiled(module)}
                register_multi_grad_hook(list(module.parameters()), lambda _: self.mark("student"))

        stage.network.register_forward_hook(see_student)
        if objective is not None:
            objective.after_step = self._around("losses", objective.after_step)
        if sees:
            objective.features = self._around("extractor", objective.features, self._see_features)

    def _around(self, part: str, function: Callable, look: Callable = lambda result: None) -> Callable:
        def timed(*arguments):
            with self(part):
                result = function(*arguments)
            look(result)
            return result

        return timed

    def _see_features(self, features: tuple) -> None:
        student, _ = features
        register_multi_grad_hook([f for f in student if f.requires_grad], lambda _: self.mark("losses"))


def bench_step(
    profile: str = "cifar10",
    overrides: dict[str, str] | None = None,
    *,
    what: Sequence[str] = ("base", "pd", "rdd"),
    batch: int = 0,
    steps: int = 2,
    timeout: float = 3600.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure on `training_device()`: {"profile", "hardware", "peaks", ..., "rows"}, a row for each of `what` and setting.

    A row holds seconds of a step, images_per_second, flops of a step (convolutions and matrix products, counted at 2
    images and scaled), of_peak (a share of the fastest large matrix product in the same precision), peak_mib, ratio
    (images_per_second over float32 eager's), parts (seconds by PARTS), their sum parts_seconds, and note, which says why
    figures are missing. batch: 0 for the profile's on CUDA and 32 on a CPU; steps: timed, after a warm-up. progress:
    called with a line before each measurement. Raises UserError for wrong input.
    """
    from rddlib.utils.installation import hardware

    loaded, device, threads = load_profile(profile, overrides), training_device(), torch.get_num_threads()
    unknown = [one for one in what if one not in WHAT]
    if unknown or not what:
        raise UserError(f"--what {','.join(what)}: name some of {', '.join(WHAT)}")
    if batch < 0 or steps < 1:
        raise UserError(
            f"--batch {batch} --steps {steps}: choose a batch of at least 1 (0: chosen here), 1 step or more"
        )
    common = {"profile": profile, "overrides": overrides or {}, "device": device.type}

    def run(function, **job) -> dict:
        return in_child(function, {**common, **job}, threads=threads, timeout=timeout)

    progress("counting FLOPs, measuring matrix products")
    capacity = run(measure_capacity, what=list(what), size=8192 if device.type == "cuda" else 2048)
    rows = []
    for one in dict.fromkeys(what):
        config = config_of(loaded, one)
        images = batch or (config.batch_size if device.type == "cuda" else min(32, config.batch_size))
        done: list[dict] = []
        for setting in _settings(device):
            progress(f"{one}, {setting}, batch {images}")
            job = {"what": one, "batch": images, "steps": steps, **SETTINGS[setting]}
            done.append({"what": one, "setting": setting, "batch": images, "steps": steps, **run(measure_step, **job)})
        rows += [_with_ratios(row, done[0], capacity) for row in done]
    return {
        **common,
        "hardware": hardware(),
        "torch": torch.__version__,
        "threads": threads,
        "peaks": capacity.get("peaks", {}),
        "note": capacity.get("note", ""),
        "rows": rows,
    }


def _settings(device: torch.device) -> list[str]:
    chosen = chosen_precision("auto", device) == torch.bfloat16
    return [name for name in SETTINGS if not (name == "bf16" and chosen)]


def _with_ratios(row: dict, eager: dict, capacity: dict) -> dict:
    """The row with what follows from the others; None where a figure is missing."""
    figures = ("seconds", "peak_mib", "parts", "precision", "channels_last", "compiled")
    row = {"note": "", **dict.fromkeys(figures), **row}
    seconds, flops = row["seconds"], capacity.get("flops", {}).get(row["what"])
    top = capacity.get("peaks", {}).get(row["precision"])
    row["images_per_second"] = row["batch"] / seconds if seconds else None
    row["flops"] = flops * row["batch"] if flops else None
    row["of_peak"] = row["flops"] / seconds / top if seconds and flops and top else None
    row["ratio"] = eager["seconds"] / seconds if seconds and eager.get("seconds") else None
    row["parts_seconds"] = sum(row["parts"].values()) if row["parts"] else None
    return row


def measure_step(job: dict) -> dict:
    """What the process of one setting does."""
    profile, device = load_profile(job["profile"], job["overrides"]), training_device()
    steps, warm_up = job["steps"], 3 if device.type == "cuda" else 1
    config = _few(config_of(profile, job["what"]), warm_up + steps, job["batch"], job["precision"])
    run = replace(profile.run, channels_last=job["channels_last"], compile=job["compile"])
    dtype = chosen_precision(job["precision"], device)

    ends: list[float] = []  # of the warm-up and of the last step
    count = itertools.count(1)
    with each_step(lambda _: ends.append(_now(device)) if next(count) in (warm_up, warm_up + steps) else None):
        Stage(profile, job["what"]).fit(config, run)
    most = peak_memory(device.type)

    stage, clock = Stage(profile, job["what"]), PartClock(lambda: _now(device))
    clock.watch(stage)
    with each_step(lambda _: clock.mark(STEP)):
        stage.fit(config, run, clock)
    return {
        "seconds": (ends[1] - ends[0]) / steps,
        "peak_mib": most / MIB,
        "parts": seconds_per_part(_last_steps(clock.marks, steps)),
        "precision": str(dtype).removeprefix("torch."),
        **clock.found,
    }


def _last_steps(marks: Marks, steps: int) -> Marks:
    """From the end of the warm-up on."""
    ends = [index for index, (part, _) in enumerate(marks) if part == STEP]
    return marks[ends[-1 - steps] :]


def measure_capacity(job: dict) -> dict:
    """{"flops": of a step of each of `what`, per image; "peaks": FLOPs a second of matrix products, by dtype}."""
    profile, device = load_profile(job["profile"], job["overrides"]), training_device()
    peaks = {"float32": _fastest_product(torch.float32, device, job["size"])}
    peaks["bfloat16"] = _fastest_product(torch.bfloat16, device, job["size"])
    return {"flops": {what: _count_flops(profile, what) for what in job["what"]}, "peaks": peaks}


def _count_flops(profile, what: str) -> float:
    """FLOPs of a step's convolutions and matrix products, per image. The second step's: the first has no queue yet."""
    config, seen = _few(config_of(profile, what), 2, FEW, "float32"), []
    run = replace(profile.run, channels_last="never", compile="never")
    stage = Stage(profile, what)
    with FlopCounterMode(display=False) as counter, each_step(lambda _: seen.append(counter.get_total_flops())):
        stage.fit(config, run)
    return (seen[1] - seen[0]) / FEW


def _fastest_product(dtype: torch.dtype, device: torch.device, size: int, tries: int = 3) -> float:
    """FLOPs a second of the fastest of a few square matrix products of `size` and half of it."""
    best = 0.0
    with tf32_context("float32", device):
        for n in (size // 2, size):
            a = torch.randn(n, n, device=device).to(dtype)
            a @ a
            for _ in range(tries):
                began = _now(device)
                a @ a
                best = max(best, 2 * n**3 / (_now(device) - began))
    return best


def _few(config: TrainConfig, iterations: int, batch: int, precision: str) -> TrainConfig:
    parts = config.accumulate if batch % config.accumulate == 0 else 1
    return replace(config, iterations=iterations, batch_size=batch, precision=precision, accumulate=parts)


def _is_channels_last(module: torch.nn.Module) -> bool:
    kernels = [p for p in module.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def _is_compiled(module: torch.nn.Module) -> bool:
    return module._compiled_call_impl is not None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def format_steps(report: dict) -> str:
    """The report of `bench_step` as a table in plain text; below it, why figures are missing."""
    heads = ("what", "setting", "batch", "s/step", *PARTS, "sum", "images/s", "of peak", "MiB", "speed")
    body = [
        (
            row["what"],
            _label(row),
            str(row["batch"]),
            number(row["seconds"], ".3g"),
            *(number(row["parts"] and (row["parts"][part] or None), ".2g") for part in PARTS),
            number(row["parts_seconds"], ".3g"),
            number(row["images_per_second"], ".3g"),
            number(row["of_peak"], ".0%"),
            number(row["peak_mib"], ".0f"),
            number(row["ratio"], ".2f"),
        )
        for row in report["rows"]
    ]
    notes = [f"{row['what']}, {row['setting']}: {row['note']}" for row in report["rows"] if row["note"]]
    return "\n".join([aligned(heads, body, words=(0, 1)), *notes])


def _label(row: dict) -> str:
    if row["setting"] == "float32 eager" or row["precision"] is None:
        return row["setting"]
    how = [row["precision"], *["channels_last"] * bool(row["channels_last"]), *["compiled"] * bool(row["compiled"])]
    return f"{row['setting']}: {' '.join(how)}"
