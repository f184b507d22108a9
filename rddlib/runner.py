"""`rdd study`: the notebooks in order through papermill into the study's folder, then the report."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import rddlib
from rddlib import progress
from rddlib.checkpoint import write_atomically
from rddlib.distributed import world_size
from rddlib.errors import UserError
from rddlib.installation import shipped
from rddlib.profiles import load_profile
from rddlib.study import Study, continue_study, key_of

EXTRA = "the notebooks need extras: pip install 'rddlib[notebooks]'"


@dataclass(frozen=True)
class Executed:
    """One notebook of a run: its name, the executed file and the seconds it took when it last ran."""

    name: str
    path: Path
    seconds: float


def notebook_files() -> list[Path]:
    """The series in order."""
    return sorted(shipped("notebooks").glob("[0-9][0-9]_*.ipynb"))


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Raise UserError where the notebook's parameters cell lacks one of the given names (papermill only warns)."""
    try:
        import papermill
    except ModuleNotFoundError as error:
        raise UserError(EXTRA) from error

    known = papermill.inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}: known are {', '.join(known)}")


def collapse_carriage_returns(text: str) -> str:
    """What a terminal would show of text that redraws lines with carriage returns."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _tidy(path: Path) -> None:
    """Keep only the last state of progress bars in an executed notebook, each stream as one output."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        tidied: list = []
        for output in cell.get("outputs", []):
            last = tidied[-1] if tidied else None
            if output.output_type == "stream" and last and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
            else:
                tidied.append(output)
        for output in tidied:
            if output.output_type == "stream":
                output.text = collapse_carriage_returns(output.text)
        if "outputs" in cell:
            cell.outputs = tidied
    write_atomically(path, nbformat.writes(notebook))


def _stamp(notebook: Path, out: Path) -> Path:
    return out / "notebooks" / f".{notebook.stem}.json"


def _stamped(notebook: Path, out: Path) -> dict | None:
    """{"key", "seconds"} of the notebook's last whole run in this folder, None where there was none."""
    try:
        done = json.loads(_stamp(notebook, out).read_text())
        return (
            {"key": done["key"], "seconds": float(done["seconds"])}
            if (out / "notebooks" / notebook.name).exists()
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def executed_notebooks(out: Path) -> list[Executed]:
    """The notebooks of the series that have run to their end in this folder."""
    stamps = [(notebook, _stamped(notebook, out)) for notebook in notebook_files()]
    return [Executed(n.stem, out / "notebooks" / n.name, done["seconds"]) for n, done in stamps if done]


def run_notebook(notebook: Path, out: Path, parameters: dict) -> Executed:
    """Execute one notebook into out/notebooks/, unless the same notebook already ran there with the same inputs.

    The executed file is kept also where a cell fails; then UserError names notebook, cell and error.
    """
    check_parameters(notebook, parameters)
    target, stamp = out / "notebooks" / notebook.name, _stamp(notebook, out)
    study = json.loads((out / "study.json").read_text())
    config = {name: value for name, value in study["config"].items() if name not in ("jobs", "run")}
    key = key_of({"source": notebook.read_text(), "config": config, "version": rddlib.__version__})
    done = _stamped(notebook, out)
    if done and done["key"] == key:
        print(f"{notebook.stem}: done before", flush=True)
        return Executed(notebook.stem, target, done["seconds"])
    stamp.unlink(missing_ok=True)
    began = time.perf_counter()
    _execute(notebook, target, parameters)
    seconds = time.perf_counter() - began
    write_atomically(stamp, json.dumps({"key": key, "seconds": seconds}))
    print(f"{notebook.stem}: {seconds:.0f} s", flush=True)
    return Executed(notebook.stem, target, seconds)


def _execute(notebook: Path, target: Path, parameters: dict) -> None:
    import logging

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".running.ipynb")
    live = {"stdout_file": sys.stdout, "stderr_file": sys.stderr}
    os.environ.setdefault(progress.MODE_VARIABLE, "bar" if sys.stderr.isatty() else "line")
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((100, 24)).columns))
    try:
        papermill.execute_notebook(
            str(notebook), str(partial), parameters={k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()},
            kernel_name="python3", progress_bar=False, cwd=str(notebook.parent), autosave_cell_every=10,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}), **live,
        )  # fmt: skip
    except DeadKernelError as error:
        raise UserError(f"{notebook.name}: its kernel died, out of memory by the look of it; see {partial}") from error
    except PapermillExecutionError as error:
        os.replace(partial, target)
        message = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise UserError(f"{notebook.name} failed in cell {error.exec_count}: {message}; see {target}") from error
    os.replace(partial, target)
    _tidy(target)


def selected(only: str = "", start: str = "") -> list[Path]:
    """The notebooks of the series whose numbers are in `only` ("03,04"), or from `start` ("04") on."""
    files = notebook_files()
    numbers = [file.name[:2] for file in files]
    wanted = [n.strip().zfill(2) for n in re.split(r"[,\s]+", only) if n.strip()] or numbers
    if start and only:
        raise UserError("--only and --from exclude each other: give one of them")
    if start:
        wanted = [n for n in numbers if n >= start.zfill(2)]
    unknown = [n for n in wanted if n not in numbers]
    if unknown or not wanted:
        raise UserError(f"no notebook {', '.join(unknown) or start}: there are {', '.join(numbers)}")
    return [file for file in files if file.name[:2] in wanted]


def run_study(
    profile_name: str, overrides: dict[str, str], out: Path, seed: int = 0, *, only: str = "", start: str = "",
    update: bool = False,
) -> Path:  # fmt: skip
    """Run the series (or part of it) into `out` and write the report; returns index.html's path.

    Raises UserError for bad input (nothing is written then) and for a failing notebook.
    """
    from rddlib.report import write_report

    load_profile(profile_name, overrides)  # wrong numbers first: all else takes longer
    notebooks = selected(only, start)
    parameters = {"profile": profile_name, "seed": seed, "out": out.resolve()}
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    if world_size() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a study is one process: run it without torchrun (profile field jobs sets its workers)")
    study = continue_study(profile_name, overrides, out, seed, update, check=Study.check_scoring)
    with _alone_in(out):
        for notebook in notebooks:
            run_notebook(notebook, out, parameters)
        return write_report(study, executed_notebooks(out))


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the study's folder; the lock goes with the process, however that ends."""
    lock = FileLock(out / ".running")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is running the study in {out}: wait for it or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
