"""`rdd bench`: speed and memory; `rdd metric-network`: the network that scores digits."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from rddlib.cli.options import ProfileOption, SetOption, listed, parse_overrides, whole
from rddlib.utils.errors import UserError, check_known
from rddlib.utils.text import say

bench = typer.Typer(help="Measure speed and memory, as ratios within one run.")
JsonOption = Annotated[Path | None, typer.Option(help="Also write the figures as JSON here.")]


def benchmark(name: str) -> ModuleType:
    """The module benchmarks.<name>, from beside the package in a checkout and from inside of it where it is installed."""
    from rddlib.utils.installation import shipped

    sys.path.insert(0, str(shipped(f"benchmarks/{name}.py").parents[1]))
    return importlib.import_module(f"benchmarks.{name}")


def _table(rows: list[dict], columns: Sequence) -> str:
    return benchmark("process").format_rows(rows, columns)


def _make_folder(out: Path | None) -> None:
    """A folder that cannot be made is better found out before anything is measured."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def _write(report: dict | list, out: Path | None, done: bool = True) -> None:
    """Also while it is measured: a benchmark that is cut off leaves what it has."""
    from rddlib.utils.checkpoint import write_atomically

    if out is not None:
        write_atomically(out, json.dumps(report, indent=1) + "\n")
        if done:
            print(f"Wrote {out}")


@bench.command("losses")
def bench_losses_command(
    loss: Annotated[str, typer.Option(help="is_p2p or m_p2p.")] = "is_p2p",
    size: Annotated[
        str, typer.Option(help="cifar10, imagenet64, sweep (over N), several with commas, or all.")
    ] = "all",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float64, or several with commas.")
    ] = "float32,bfloat16",
    repetitions: Annotated[int, typer.Option(min=1, help="Timed passes of each form; the median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for PyTorch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: JsonOption = None,
) -> None:
    """Memory and time of the relational losses' three forms.

    Memory is the extra peak, time that of forward and backward, each in its own process. The fused form is measured on
    CUDA.

    \b
    Examples:
      rdd bench losses --size cifar10
      rdd bench losses --out data/results/bench_losses.json
      rdd bench losses --device cuda --loss m_p2p
    """
    import torch

    from rddlib.utils.progress import make_bar

    losses = benchmark("losses")
    known, chosen = dict.fromkeys(one.name for one in losses.SIZES), listed("--size", size)
    if unknown := [name for name in chosen if name not in ("all", *known)]:
        raise UserError(f"unknown --size {unknown[0]!r}: known are all, {', '.join(known)}")
    sizes = [one for one in losses.SIZES if one.name in chosen or "all" in chosen]
    dtypes = listed("--dtype", dtype)
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: this machine has cpu{' and cuda' * torch.cuda.is_available()}")
    _make_folder(out)
    options = {"repetitions": repetitions, "threads": threads or None, "device": device}
    so_far: list[dict] = []
    with make_bar("bench losses", len(sizes) * len(dtypes), unit="row") as bar:

        def keep(row: dict) -> None:
            so_far.append(row)
            _write(so_far, out, done=False)
            bar.update()

        try:
            rows = losses.bench_losses(sizes, loss=loss, dtypes=dtypes, **options, progress=keep)
        except ValueError as error:
            raise UserError(str(error)) from error
    print(_table(rows, losses.columns(rows)))
    print(
        "ratio: chunked over reference. of peak: the reference's matrix products in the fastest form's time, against the"
    )
    print("fastest large matrix product measured here.")
    _write(rows, out)


@bench.command("step")
def bench_step_command(
    profile: ProfileOption = "cifar10",
    settings: SetOption = None,
    what: Annotated[
        str, typer.Option(help="base, or a method (pd, cfd, rdd, cfd_is_pd, ..): one or several.")
    ] = "base,pd,rdd",
    how: Annotated[str, typer.Option(help='Settings, such as "float32 eager,auto"; default: all.')] = "",
    batch: Annotated[int, typer.Option(help="Images a step; 0: the profile's on a GPU, 32 on a CPU.")] = 0,
    steps: Annotated[int, typer.Option(help="Timed steps, after a warm-up.")] = 2,
    trace: Annotated[
        Path | None, typer.Option(help="A folder for the profiler's trace of each row, for Perfetto.")
    ] = None,
    out: JsonOption = None,
) -> None:
    """Where the time of one training step goes.

    In float32, in what "auto" chooses here, and in bf16; on a GPU in what lies between too. It trains on random images, on
    the GPU if there is one; no data set is needed. A cifar10 step takes seconds on a CPU: try --batch 4 first, or another
    profile.

    \b
    Examples:
      rdd bench step --profile smoke
      rdd bench step --what rdd --batch 4 --steps 1
      rdd bench step --profile imagenet64 --how "float32 eager,auto" --out step.json
    """
    step = benchmark("step")
    _make_folder(out)
    names = [name for name in what.split(",") if name]
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
    chosen = [name.strip() for name in how.split(",") if name.strip()]
    options = {"what": names, "how": chosen, "batch": batch, "steps": steps, "trace": trace, "progress": say}
    options["keep"] = lambda report: _write(report, out, done=False)
    report = step.bench_step(profile, parse_overrides(settings), **options)
    print(f"{profile} on {report['hardware']}, torch {report['torch']}")
    print(step.format_steps(report))
    peaks = ", ".join(f"{dtype} {flops / 1e9:.0f} GFLOP/s" for dtype, flops in report["peaks"].items())
    print(
        f"Seconds. s/step: untouched; {' + '.join(step.PARTS)} = sum:\n"
        "a second run that notes the time at each boundary. speed: images/s over float32 eager.\n"
        "kernels: how long a GPU worked in a step; the rest of it, it waited for Python.\n"
        "of peak: the step's convolutions and matrix products (counted at 2 images, scaled) against\n"
        f"the fastest large matrix product measured here: {peaks or 'none (' + report['note'] + ')'}."
    )
    _write(report, out)


@bench.command("export")
def bench_export_command(
    profile: ProfileOption = "digits",
    settings: SetOption = None,
    batch: Annotated[str, typer.Option(help="Images at a time: one number or several.")] = "1,64",
    repetitions: Annotated[int, typer.Option(min=1, help="Timed calls; the median counts.")] = 5,
    out: JsonOption = None,
) -> None:
    """Images a second on the CPU, of exported students too.

    The teacher draws in all its steps, the student in one, in Python and from its TorchScript file.

    The networks are untrained, which changes no time; no data set is needed.

    \b
    Examples:
      rdd bench export
      rdd bench export --profile cifar10 --batch 1,16 --out export.json
    """
    export = benchmark("export")
    batches = [whole("--batch", word) for word in listed("--batch", batch)]
    _make_folder(out)
    options = {"batches": batches, "repetitions": repetitions, "progress": say}
    report = export.bench_export(profile, parse_overrides(settings), **options)
    print(f"{profile} on {report['hardware']}, torch {report['torch']}")
    print(_table(report["rows"], export.COLUMNS))
    print(
        f"speed: images/s over the teacher's. The file's images differ from Python's by {report['difference']:.1g} at most."
    )
    _write(report, out)


@bench.command("sliders")
def bench_sliders_command(
    moves: Annotated[int, typer.Option(help="Of each control, at most; the median counts.")] = 6,
    out: JsonOption = None,
) -> None:
    """How soon the notebooks' sliders show a new picture.

    New is one that was not drawn before; on one thread.

    The networks are untrained, which changes no time; no data set is needed.

    \b
    Examples:
      rdd bench sliders
      rdd bench sliders --moves 20 --out sliders.json
    """
    sliders = benchmark("sliders")
    _make_folder(out)
    report = sliders.bench_sliders(moves)
    print(f"{report['hardware']}, torch {report['torch']}")
    print(_table(report["rows"], sliders.COLUMNS))
    print("ratio: the median over that of drawing an empty figure of the same size.")
    _write(report, out)


def metric_network(
    name: Annotated[str, typer.Argument(help="A profile: digits, photos or cifar10_small.")] = "digits",
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint to write; default, of those that ship, where they lie.")
    ] = None,
) -> None:
    """Train a network that scores.

    Those that are shipped were made by this command; a new one changes every FID.

    \b
    Examples:
      rdd metric-network digits --out mine.safetensors
      rdd metric-network photos --set data.download=true --out mine.safetensors
    """
    from dataclasses import replace

    from rddlib.distillation.train import METRIC_RECIPES, train_metric_network
    from rddlib.evaluation import shipped_network_file
    from rddlib.evaluation.networks import SHIPPED
    from rddlib.study.profiles import load_profile
    from rddlib.utils.installation import top_folder

    check_known("metric network", name, METRIC_RECIPES)
    if out is None and name not in SHIPPED.values():
        raise UserError(f"no metric network of {name} ships: name the checkpoint to write with --out")
    out = out or top_folder() / shipped_network_file(name)
    if out.exists() or out.with_suffix(".json").exists():
        raise UserError(
            f"{out} (or its .json) exists and scores made with it would no longer compare: choose another --out"
        )
    recipe = replace(METRIC_RECIPES[name], data=load_profile(name, parse_overrides(settings)).data)
    for key, value in train_metric_network(out, recipe).items():
        print(f"{key}: {value}")
