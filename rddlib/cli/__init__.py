"""The `rdd` command. Bad input ends with one line and exit status 2, never a traceback."""

import os
import signal
import sys
import warnings
from collections.abc import Callable

import typer

from rddlib.cli import ablate, bench, exchange, images, show, study, training
from rddlib.utils.errors import GuidanceWarning, Interrupted, UserError

UsageError = typer.BadParameter.__bases__[0]  # click's, which newer typers carry inside under another name

KEEPING = ("study", "train", "extractor", "guide", "distill", "ablate", "sample", "evaluate")  # what was done so far

_show_warning = warnings.showwarning

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Relational Diffusion Distillation: study it, reproduce it, use it.",
)
for _command in (
    show.demo,
    study.study,
    study.plan,
    training.train,
    training.extractor,
    training.guide,
    training.distill,
    ablate.ablate,
    images.sample,
    images.evaluate,
    show.diagnose,
    show.report,
    show.app,
):
    app.command()(_command)
app.add_typer(exchange.importing, name="import")
app.add_typer(exchange.exporting, name="export")
app.add_typer(bench.bench, name="bench")
app.command("metric-network")(bench.metric_network)


@app.callback(invoke_without_command=True)
def _main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `rdd`: exit status 0; 1 where runs of a sweep failed, 2 for bad input, 130 after Ctrl-C, 143 after
    SIGTERM."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    warnings.simplefilter("always", GuidanceWarning)
    warnings.showwarning = _warner()
    try:
        if app(args=arguments, prog_name="rdd", standalone_mode=False) == 128 + signal.SIGINT:  # newer typers' Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        _leave(str(error), 2)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _leave(f"{error.strerror or error}{place}: check the folder and its permissions", 2)
    except UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _leave(f"{error.format_message()}{where}", 2)
    except (Interrupted, KeyboardInterrupt, typer.Abort) as stop:
        command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        kept = "goes on where this stopped" if command in KEEPING else "begins anew: nothing was kept"
        said = f"{str(stop) or 'interrupted'}; the same command {kept}"
        _leave(said, 128 + getattr(stop, "signal", signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(said: str, status: int) -> None:
    """Say it once, however many processes the run has, and go."""
    if os.environ.get("RANK", "0") == "0":
        print(f"rdd: {said}", file=sys.stderr)
    sys.exit(status)


def _warner() -> Callable:
    """Shows our own warnings as one line, each once; others as Python does."""
    said = set()

    def warn(message, category, *where, **more) -> None:
        if category is not GuidanceWarning:
            _show_warning(message, category, *where, **more)
        elif str(message) not in said and os.environ.get("RANK", "0") == "0":
            print(f"rdd: warning: {message}", file=sys.stderr)
        said.add(str(message))

    return warn


def _interrupt(number: int, frame) -> None:
    raise Interrupted("interrupted", number)
