"""Where the time of a training step goes: teacher, student, extractor, losses, optimiser; for `rdd bench step`.

Stages are the study's own, on random images. Each setting runs in a process of its own, twice: once untouched, for the time
of the whole step and the peak of memory, and once with marks at every boundary, for the parts (on CUDA each mark waits for
the device). Marks are put around what the recipe hands to its trainer; the library knows nothing of them.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.process import MIB, format_rows, in_child, machine, measure_products, now
from rddlib.distillation import train
from rddlib.study.costs import Prober
from rddlib.study.profiles import Profile, load_profile
from rddlib.training import Trainer, chosen_precision, training_device
from rddlib.training.graphs import Recorded
from rddlib.training.hardware import peak_memory, release_memory, reset_peak
from rddlib.utils.errors import UserError

CUDA = torch.autograd.DeviceType.CUDA
PARTS = ("data", "teacher", "student", "extractor", "losses", "optimiser")
STEP = "step"  # the mark at the end of an optimiser's step
LONGEST = 30  # kernels that are named
FEW = 2  # images a step whose FLOPs are counted
NONE = {"channels_last": "never", "compile": "never", "graphs": "never"}
ALL = {"precision": "auto", "channels_last": "auto", "compile": "auto", "graphs": "auto"}
SETTINGS = {"float32 eager": NONE | {"precision": "float32"}, "auto": ALL, "bf16": ALL | {"precision": "bf16"}}
CUDA_SETTINGS = {  # what "auto" is made of there, and the losses that it does not choose
    "float32 eager": SETTINGS["float32 eager"],
    "tf32": NONE | {"precision": "tf32"},
    "bf16 eager": NONE | {"precision": "bf16"},
    "bf16 channels_last": NONE | {"precision": "bf16", "channels_last": "always"},
    "bf16 graphs": NONE | {"precision": "bf16", "channels_last": "always", "graphs": "auto"},
    "fused losses": NONE | {"precision": "bf16", "channels_last": "always", "graphs": "auto", "impl": "fused"},
    "bf16 blocks": ALL | {"precision": "bf16", "compile": "blocks"},
    "auto": ALL,
}

COLUMNS = (
    ("what", "what", ""),
    ("setting", "how", ""),
    ("batch", "batch", "d"),
    ("s/step", "seconds", ".3g"),
    *((part, part, ".2g") for part in PARTS),
    ("sum", "parts_seconds", ".3g"),
    ("kernels", "kernels", ".3g"),
    ("images/s", "images_per_second", ".3g"),
    ("of peak", "of_peak", ".0%"),
    ("MiB", "peak_mib", ".0f"),
    ("speed", "ratio", ".2f"),
)


# watching a training


@contextlib.contextmanager
def each_step(seen: Callable[[], None]) -> Iterator[None]:
    """Inside, seen() is called after every step of every optimiser."""
    handle = register_optimizer_step_post_hook(lambda *_: seen())
    try:
        yield
    finally:
        handle.remove()


def seconds_per_part(marks: Sequence[tuple[str, float]], steps: int) -> dict[str, float]:
    """Mean seconds by part of the last so many steps.

    marks: (part that ended, when), in order; STEP ends a step, and with it the optimiser's part. The parts' sum is the mean
    step.
    """
    ends = [index for index, (part, _) in enumerate(marks) if part == STEP]
    total = dict.fromkeys(PARTS, 0.0)
    for (_, before), (part, after) in itertools.pairwise(marks[ends[-1 - steps] : ends[-1] + 1]):
        total["optimiser" if part == STEP else part] += after - before
    return {part: seconds / steps for part, seconds in total.items()}


class PartClock:
    """Writes down when the parts of a step end; now() -> seconds. found: how the student turned out to run."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.marks, self.found = now, [], {}

    def mark(self, ended: str) -> None:
        """What was going on since the last mark was this part."""
        self.marks.append((ended, self.now()))

    @contextlib.contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Inside, a recipe that is given this trainer has its parts marked."""
        fit, target = trainer.fit, self._around("data", "teacher", train.two_step_target)

        def watched(model, loss, rows, *, auxiliary=None, after_step=lambda step: None, **options):
            networks = auxiliary.frozen() if auxiliary is not None else ()
            nearest = "extractor" if networks else "losses"

            def marked(model, step):
                self.mark("optimiser")
                found = loss(lambda *inputs: self._student(model, inputs, nearest), step)
                self.mark("losses")
                return found

            after = self._around("student", "losses", after_step)  # it is called once the gradient has been taken
            with self._watching_networks(networks):
                return fit(model, marked, rows, auxiliary=auxiliary, after_step=after, **options)

        with (
            mock.patch.object(trainer, "fit", watched),
            mock.patch.object(train, "two_step_target", target),
            each_step(lambda: self.mark(STEP)),
        ):
            yield

    def _around(self, before: str, part: str, function: Callable) -> Callable:
        """The function as `part`, and what goes on until it is called as `before`."""

        def marked(*arguments):
            self.mark(before)
            result = function(*arguments)
            self.mark(part)
            return result

        return marked

    def _student(self, model: nn.Module, inputs: Sequence, nearest: str) -> Tensor:
        """The student's image; nearest: the part that the gradient leaves when it arrives there."""
        x_student = self._around("data", "student", model)(*inputs)
        x_student.register_hook(lambda _: self.mark(nearest))
        calls = [module._compiled_call_impl for module in model.modules() if module._compiled_call_impl is not None]
        graphs = [call for call in calls if isinstance(call, Recorded)]
        compiled = len(calls) > len(graphs) or any(call.compiled for call in graphs)
        self.found = {"channels_last": _is_channels_last(model), "compiled": compiled, "graphs": bool(graphs)}
        return x_student

    @contextlib.contextmanager
    def _watching_networks(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, looking through these networks is marked as "extractor", forward and backward."""
        with contextlib.ExitStack() as patches:
            for kind, name in itertools.product({type(network) for network in networks}, ("__call__", "stages")):
                if hasattr(kind, name):
                    patches.enter_context(mock.patch.object(kind, name, self._look(getattr(kind, name))))
            yield

    def _look(self, function: Callable) -> Callable:
        look = self._around("losses", "extractor", function)

        def looked(*arguments):
            found = look(*arguments)
            seen = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if seen:  # the gradient is past the losses when it comes to the first of these
                register_multi_grad_hook(seen, lambda _: self.mark("losses"), mode="any")
            return found

        return looked


def _is_channels_last(module: nn.Module) -> bool:
    kernels = [p for p in module.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


# measuring


class Subject:
    """A stage to train for a few iterations on random images; what: "base", or a method for its first student."""

    def __init__(self, profile: Profile, what: str):
        prober = Prober(replace(profile, run=replace(profile.run, compile="never", graphs="never")))
        graph, first = prober.plain, (profile.student_steps[0], profile.seeds[0])
        self.run = replace(profile.run, sample_every=0, tracker="none")
        self.stage = graph.base if what == "base" else graph.student(what, *first)
        self.networks = [prober.network(parent) for parent in self.stage.parents]

    def trainer(self, iterations: int, batch: int, precision: str, **run) -> Trainer:
        parts = self.stage.config.accumulate
        few = {"iterations": iterations, "batch_size": batch, "accumulate": 1 if batch % parts else parts}
        trainer = self.stage.trainer(replace(self.stage.config, precision=precision, **few))
        trainer.run = replace(self.run, **run)
        return trainer

    def fit(self, trainer: Trainer) -> nn.Module:
        return self.stage.fit(trainer, *self.networks)[0]

    def flops(self) -> float:
        """FLOPs of a step's convolutions and matrix products, per image. The second step's: the first has no queue yet."""
        trainer, seen = self.trainer(2, FEW, "float32", compile="never", channels_last="never", graphs="never"), []
        with FlopCounterMode(display=False) as counter, each_step(lambda: seen.append(counter.get_total_flops())):
            self.fit(trainer)
        return (seen[1] - seen[0]) / FEW


def settings_of(device: torch.device, looks: bool) -> dict[str, dict[str, str]]:
    """What is measured on a device, of a method that looks through an extractor or of one that does not."""
    settings = CUDA_SETTINGS if device.type == "cuda" else SETTINGS
    left_out = {"bf16"} if chosen_precision("auto", device) == torch.bfloat16 else set()
    left_out |= set() if looks else {"fused losses"}
    return {name: setting for name, setting in settings.items() if name not in left_out}


def bench_step(
    profile: str = "cifar10",
    overrides: dict[str, str] | None = None,
    *,
    what: Sequence[str] = ("base", "pd", "rdd"),
    how: Sequence[str] = (),
    batch: int = 0,
    steps: int = 2,
    trace: Path | None = None,
    timeout: float = 3600.0,
    progress: Callable[[str], None] = lambda line: None,
    keep: Callable[[dict], None] = lambda report: None,
) -> dict:
    """Measure on `training_device()`: {"profile", "hardware", "peaks", ..., "rows"}, a row for each of `what` and setting.

    A row holds seconds of a step, kernels (seconds that a GPU worked in one), images_per_second, flops of a step (convolutions
    and matrix products, counted at 2 images and scaled), of_peak (a share of the fastest large matrix product in the same
    precision), peak_mib, ratio (images_per_second over float32 eager's), parts (seconds by PARTS), their sum parts_seconds,
    top_kernels (name, seconds, calls) of the longest, and note, which says why figures are missing.

    Args:
        what: "base" and the profile's methods, its own sums among them.
        how: of the settings that the device has, () for all; ratios are to the first, float32 eager.
        batch: images a step; 0 for the profile's on CUDA and 32 on a CPU.
        steps: timed, after a warm-up.
        trace: a folder, for a trace of a step of each row by PyTorch's profiler.
        timeout: seconds for one process.
        progress: called with a line before each measurement.
        keep: called with the report so far after each row.

    Raises UserError for wrong input.
    """
    loaded, device, threads = load_profile(profile, overrides), training_device(), torch.get_num_threads()
    known = ["base", *loaded.objectives]
    if not what or not set(what) <= set(known):
        raise UserError(f"--what {','.join(what)}: name some of {', '.join(known)}")
    if batch < 0 or steps < 1:
        raise UserError(
            f"--batch {batch} --steps {steps}: choose a batch of at least 1 (0: chosen here), 1 step or more"
        )
    settings = settings_of(device, any(one != "base" and loaded.objectives[one].looks for one in what))
    if not set(how) <= set(settings):
        raise UserError(f"--how {','.join(how)}: name some of {', '.join(settings)}")
    for method in set(what) - {"base"}:
        loaded.objectives[method].needs()
    if loaded.pretrained.teacher or loaded.pretrained.extractor:
        raise UserError(
            "rdd bench step measures the profile's own networks: leave pretrained.teacher and pretrained.extractor out"
        )
    common = {"profile": profile, "overrides": overrides or {}, "device": device.type}

    def run(function, **job) -> dict:
        return in_child(function, {**common, **job}, threads=threads, timeout=timeout)

    progress("measuring matrix products")
    peaks = run(measure_products, size=8192 if device.type == "cuda" else 1024)
    rows: list[dict] = []
    report = {**common, **machine(), "peaks": peaks.get("peaks", {}), "note": peaks.get("note", ""), "rows": rows}
    for one in dict.fromkeys(what):
        full = (loaded.base if one == "base" else loaded.distill).train.batch_size
        images = batch or (full if device.type == "cuda" else min(32, full))
        eager: dict = {}
        own = settings_of(device, one != "base" and loaded.objectives[one].looks)
        for setting in [name for name in own if name in how or not how]:
            progress(f"{one}, {setting}, batch {images}")
            job = {"what": one, "batch": images, "steps": steps}
            traced = {"trace": str(trace / f"{one}-{setting.replace(' ', '-')}.json")} if trace else {}
            row = {"setting": setting, **job, **run(measure_step, **job, **own[setting], **traced)}
            eager = row if setting == "float32 eager" else eager
            rows.append(with_ratios(row, eager, peaks))
            keep(report)
    return report


def with_ratios(row: dict, eager: dict, peaks: dict) -> dict:
    """The row with what follows from the others; None where a figure is missing."""
    figures = ("seconds", "kernels", "peak_mib", "parts", "precision", "channels_last", "compiled", "graphs", "flops")
    row = {"note": "", **dict.fromkeys(figures), **row}
    seconds, flops, top = row["seconds"], row["flops"], peaks.get("peaks", {}).get(row["precision"])
    row["images_per_second"] = row["batch"] / seconds if seconds else None
    row["of_peak"] = flops / seconds / top if seconds and flops and top else None
    row["ratio"] = eager["seconds"] / seconds if seconds and eager.get("seconds") else None
    row["parts_seconds"] = sum(row["parts"].values()) if row["parts"] else None
    return row


def measure_step(job: dict) -> dict:
    """What the process of one setting does."""
    overrides = job["overrides"] | ({"loss.impl": job["impl"]} if "impl" in job else {})
    profile, device, precision = load_profile(job["profile"], overrides), job["device"], job["precision"]
    run = replace(profile.run, channels_last=job["channels_last"], compile=job["compile"], graphs=job["graphs"])
    subject = Subject(replace(profile, run=run), job["what"])
    warm_up, steps, batch = 3 if device == "cuda" else 1, job["steps"], job["batch"]
    flops = subject.flops()

    ends, count = [], itertools.count(1)
    release_memory()
    reset_peak(device)
    with each_step(lambda: ends.append(now(device)) if next(count) in (warm_up, warm_up + steps) else None):
        subject.fit(subject.trainer(warm_up + steps, batch, precision))
    most = peak_memory(device)

    clock, trainer = PartClock(lambda: now(device)), subject.trainer(warm_up + steps, batch, precision)
    with clock.watching(trainer):
        subject.fit(trainer)
    kernels: list = []
    if "trace" in job or device == "cuda":
        when = torch.profiler.schedule(wait=warm_up - 1, warmup=1, active=1, repeat=1)
        ready = lambda profiler: "trace" in job and profiler.export_chrome_trace(job["trace"])  # noqa: E731
        with torch.profiler.profile(schedule=when, on_trace_ready=ready) as profiler, each_step(profiler.step):
            subject.fit(subject.trainer(warm_up + 1, batch, precision))
        kernels = kernels_of(profiler.key_averages())
    chosen = str(chosen_precision(precision, training_device())).removeprefix("torch.")
    return {
        "seconds": (ends[1] - ends[0]) / steps,
        "peak_mib": most / MIB,
        "parts": seconds_per_part(clock.marks, steps),
        "precision": precision if precision == "tf32" else chosen,
        "flops": flops * batch,
        "kernels": sum(seconds for _, seconds, _ in kernels) or None,
        "top_kernels": kernels[:LONGEST],
        **clock.found,
    }


def kernels_of(averages: Iterable) -> list[tuple[str, float, int]]:
    """(name, seconds, calls) of a GPU's kernels, the longest first; averages: what PyTorch's profiler saw."""
    seen = [one for one in averages if one.device_type == CUDA and not one.is_user_annotation]
    return sorted(((one.key[:100], one.self_device_time_total / 1e6, one.count) for one in seen), key=lambda k: -k[1])


# reading it


def format_steps(report: dict) -> str:
    """The report of `bench_step` as a table in plain text; below it, why figures are missing."""
    rows = []
    for row in report["rows"]:
        parts = {part: row["parts"][part] or None for part in PARTS} if row["parts"] else dict.fromkeys(PARTS)
        rows.append({**row, **parts, "how": _how(row)})
    notes = [f"{row['what']}, {row['setting']}: {row['note']}" for row in report["rows"] if row["note"]]
    return "\n".join([format_rows(rows, COLUMNS), *notes])


def _how(row: dict) -> str:
    if row["setting"] == "float32 eager" or row["precision"] is None:
        return row["setting"]
    how = [row["precision"], *(word for word in ("channels_last", "compiled", "graphs") if row.get(word))]
    return f"{row['setting']}: {' '.join(how)}"
