"""The `rdd` command. Bad input ends with one line and exit status 2, never a traceback."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rddlib.errors import UserError

UsageError = typer.BadParameter.__bases__[0]  # click's, which newer typers carry inside under another name

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Relational Diffusion Distillation: study it, reproduce it, use it.",
)  # fmt: skip

ProfileOption = Annotated[
    str,
    typer.Option("--profile", "-p", help="Whose numbers to use: smoke, digits, cifar10_small, cifar10, imagenet64."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one number, e.g. --set distill.train.batch_size=32; repeatable."),
]


def parse_overrides(settings: list[str] | None) -> dict[str, str]:
    """["a.b=1"] -> {"a.b": "1"}; UserError for one without "="."""
    overrides = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting}: write it as section.field=value")
        overrides[key.strip()] = value.strip()
    return overrides


@app.callback(invoke_without_command=True)
def _main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def study(
    profile: ProfileOption = "digits",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default runs/<profile>.")] = None,
    settings: SetOption = None,
    seed: Annotated[int, typer.Option(help="Of base model, extractor and halvings.")] = 0,
    only: Annotated[str, typer.Option(help="Only these notebooks, e.g. 03,04.")] = "",
    start: Annotated[str, typer.Option("--from", help="This notebook and those after it, e.g. 04.")] = "",
    update: Annotated[bool, typer.Option(help="Let a folder take a changed configuration.")] = False,
) -> None:
    """Run the whole study: notebooks in order, models, scores, figures and index.html.

    What is done is not done again: a second run takes seconds, a killed one goes on where it stopped.

    \b
    Examples:
      rdd study
      rdd study --profile smoke --out runs/try
      rdd study --set loss.alpha=100 --out runs/alpha100
    """
    from rddlib.runner import run_study
    from rddlib.study import default_out

    page = run_study(profile, parse_overrides(settings), out or default_out(profile), seed, only=only, start=start,
                     update=update)  # fmt: skip
    print(f"Open {page} in a browser.")


bench = typer.Typer(help="Measure speed and memory, as ratios within one run.")
app.add_typer(bench, name="bench")


@bench.command("losses")
def bench_losses_command(
    loss: Annotated[str, typer.Option(help="is_p2p or m_p2p.")] = "is_p2p",
    size: Annotated[str, typer.Option(help="cifar10, imagenet64, sweep (over N) or all.")] = "all",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float64, or several with commas.")
    ] = "float32,bfloat16",
    repetitions: Annotated[int, typer.Option(min=1, help="Timed passes of each form; the median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for PyTorch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the rows as JSON here.")] = None,
) -> None:
    """Extra peak memory and time of the relational losses' two forms, forward and backward, each in its own process.

    \b
    Examples:
      rdd bench losses --size cifar10
      rdd bench losses --out data/results/bench_losses.json
    """
    import torch

    from rddlib.bench import SIZES, bench_losses, format_table, write_json
    from rddlib.progress import make_bar

    sizes = [s for s in SIZES if size in ("all", s.name)]
    if not sizes:
        raise UserError(f"unknown --size {size!r}: known are all, {', '.join(dict.fromkeys(s.name for s in SIZES))}")
    dtypes = dtype.split(",")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: this machine has cpu{' and cuda' * torch.cuda.is_available()}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is better found out now
    bar = make_bar("bench losses", len(sizes) * len(dtypes), unit="rows")
    try:
        rows = bench_losses(sizes, loss=loss, dtypes=dtypes, repetitions=repetitions, threads=threads or None,
                            device=device, progress=lambda _: bar.update())  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
    bar.close()
    print(format_table(rows))
    print("ratio: chunked over reference")
    if out is not None:
        write_json(rows, out)
        print(f"Wrote {out}")


@app.command("metric-network")
def metric_network(
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("data/digits_metric_network.safetensors"),
) -> None:
    """Train the network that scores digits (the shipped one was made by this command; a new one changes every FID)."""
    from rddlib.recipes import train_metric_network

    if out.exists() or out.with_suffix(".json").exists():
        raise UserError(
            f"{out} (or its .json) exists and scores made with it would no longer compare: choose another --out"
        )
    for name, value in train_metric_network(out).items():
        print(f"{name}: {value}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `rdd`: exit status 0, 2 for bad input, 130 when interrupted."""
    try:
        app(args=arguments, prog_name="rdd", standalone_mode=False)
    except UserError as error:
        print(f"rdd: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(f"rdd: {error.strerror or error}{place}: check the folder and its permissions", file=sys.stderr)
        sys.exit(2)
    except UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        print(f"rdd: {error.format_message()}{where}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("rdd: interrupted; the same command goes on where this stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
