"""`rdd study`: the notebooks in order through papermill into the study's folder, then the report."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

import rddlib
from rddlib.distillation.extractor import EXTRACTORS
from rddlib.report.pages import lowest, write_report
from rddlib.study.engines import Outcome, on_this_machine
from rddlib.study.folder import STUDY_FILE, continue_study, recorded_overrides
from rddlib.study.profiles import load_profile
from rddlib.study.stage import key_of
from rddlib.study.study import Study, guided_study
from rddlib.training.hardware import say_if_busy
from rddlib.training.stopping import HeedsSignals
from rddlib.utils import progress
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import world_size
from rddlib.utils.errors import Interrupted, UserError
from rddlib.utils.installation import cores, shipped
from rddlib.utils.text import human_time, say

EXTRA = "the notebooks need extras: pip install 'rddlib[notebooks]'"
SHOWN_LINES = 12  # of a failing cell in the terminal
GUIDED = "08"  # the notebook of guided models, with a base model of their own to train
LATENT = "09"  # the notebook of latent models, which are given; all others show a base model of pixels that they train
LONGEST = "06"  # trains and scores all methods; nearly the whole time
BAR_EVERY = 30.0  # seconds between lines about a bar, where several notebooks share the terminal


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


def _stamp(notebook: Path, out: Path) -> Path:
    return out / "notebooks" / f".{notebook.stem}.json"


def _last_run(notebook: Path, out: Path) -> tuple[str, Executed | None]:
    """(key, run) of the notebook's last whole run in this folder, ("", None) where there was none."""
    target = out / "notebooks" / notebook.name
    try:
        done = json.loads(_stamp(notebook, out).read_text(encoding="utf-8"))
        return done["key"], Executed(notebook.stem, target, float(done["seconds"])) if target.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def executed_notebooks(out: Path) -> list[Executed]:
    """The notebooks of the series that have run to their end in this folder."""
    return [run for notebook in notebook_files() if (run := _last_run(notebook, out)[1])]


def _done_before(notebook: Path, out: Path) -> tuple[str, Executed | None]:
    """(key of the notebook and its inputs, its earlier run where that had the same)."""
    study = json.loads((out / STUDY_FILE).read_text(encoding="utf-8"))
    config = {name: value for name, value in study["config"].items() if name not in ("jobs", "run")}
    config |= {"shipped": study["config"]["run"]["shipped"]}  # whose students it shows
    key = key_of({"source": notebook.read_text(encoding="utf-8"), "config": config, "version": rddlib.__version__})
    earlier, run = _last_run(notebook, out)
    return key, run if earlier == key else None


def run_notebook(notebook: Path, out: Path, parameters: dict, place: str = "") -> Executed:
    """Execute one notebook into out/notebooks/, unless the same notebook already ran there with the same inputs.

    place: among those that run, " (3 of 8)".

    The executed file is kept also where a cell fails; then the cell is shown on standard error, and UserError names
    notebook, cell and error. SIGINT and SIGTERM let a training in the notebook save, then raise Interrupted.
    """
    target, stamp = out / "notebooks" / notebook.name, _stamp(notebook, out)
    key, done = _done_before(notebook, out)
    if done:
        print(f"{notebook.stem}: done before", flush=True)
        return done
    stamp.unlink(missing_ok=True)
    print(f"{notebook.stem}: running{place}", flush=True)
    began = time.perf_counter()
    _execute(notebook, target, parameters)
    seconds = time.perf_counter() - began
    write_atomically(stamp, json.dumps({"key": key, "seconds": seconds}))
    print(f"{notebook.stem}: done in {seconds:.0f} s", flush=True)
    return Executed(notebook.stem, target, seconds)


class _Stop(HeedsSignals):
    """SIGINT and SIGTERM while a notebook runs: its kernel is interrupted, so that a training saves; no cell follows.

    A kernel is in a process group of its own, where a terminal's Ctrl-C does not reach it, and it heeds a signal only
    while a cell runs. A second SIGINT acts at once.
    """

    def __init__(self, notebook: str):
        self.notebook, self.signal, self.client = notebook, 0, None
        self._running, self._process = False, None  # whether a cell runs; the kernel's process, once interrupted
        self._interrupts = 0

    def _note(self, number: int, frame) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.signal = number
        if self._running:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._process is None:
            self._process = self.client.km.provisioner.process
            self._process.send_signal(signal.SIGINT)  # it tells the processes that it started

    def before_cell(self, cell, cell_index: int) -> None:
        """nbclient's on_cell_execute."""
        if self.signal:
            raise Interrupted(f"{self.notebook}: stopped between two cells", self.signal)

    def hear(self, message: dict) -> None:
        """What the kernel says: that a cell begins to run, and that it is idle again."""
        if message["msg_type"] == "execute_input":
            self._running = True
            if self.signal:
                self._interrupt()
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            self._running = False
            if self._process is not None:  # interrupted while it wrote its reply, a kernel writes none, ever
                timer = threading.Timer(5, self._process.kill)
                timer.daemon = True
                timer.start()


def _register_engine(stop: _Stop) -> str:
    """papermill's own engine, but for `stop`, which hears its kernel, and for the kernel, which is this Python's; its name."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class Client(PapermillNotebookClient):
        def create_kernel_manager(self):
            manager = super().create_kernel_manager()
            # this Python's own kernel: a user's folders may hold a "python3" of another environment, with another rddlib
            manager.kernel_spec_manager.kernel_dirs = []
            return manager

        def process_message(self, message, *rest, **options):
            stop.hear(message)
            return super().process_message(message, *rest, **options)

    class StoppableEngine(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, input_path="", start_timeout=60, **options):
            stop.client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, **options)
            stop.client.execute()

    papermill_engines.register("stoppable", StoppableEngine)
    return "stoppable"


def failing_cell(notebook: str, error) -> str:
    """A papermill.PapermillExecutionError for the terminal: notebook, cell, its source with the failing line marked."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    marked = [0, *map(int, re.findall(rf"Cell In ?\[{error.exec_count}\], line (\d+)", trace))]
    lines, line = error.source.splitlines(), marked[-1]
    first = max(0, min(line - SHOWN_LINES // 2, len(lines) - SHOWN_LINES))
    numbered = list(enumerate(lines, 1))[first : first + SHOWN_LINES]
    shown = [f"{'-->' if number == line else '   '} {number:3} {text}" for number, text in numbered]
    before, after = ["    ..."] * (first > 0), ["    ..."] * (first + SHOWN_LINES < len(lines))
    head = f"{notebook}, cell [{error.exec_count}]:"
    return "\n".join([head, *before, *shown, *after, f"{error.ename}: {error.evalue}"])


def _execute(notebook: Path, target: Path, parameters: dict) -> None:
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".running.ipynb")
    os.environ.setdefault(progress.MODE_VARIABLE, "bar" if sys.stderr.isatty() else "line")
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((100, 24)).columns))
    try:
        with _Stop(notebook.name) as stop:
            papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(notebook.parent),
                autosave_cell_every=10,
                engine_name=_register_engine(stop),
                on_cell_execute=stop.before_cell,
                log=logging.getLogger("papermill"),
                extra_arguments=["--log-level=50"],  # a kernel reports being interrupted at its end as an error
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except (RuntimeError, TimeoutError, PapermillExecutionError) as error:  # at first: the kernel died or did not start
        if stop.signal:
            said = getattr(error, "evalue", "") or "stopped"
            raise Interrupted(f"{notebook.name}: {said}", stop.signal) from error
        os.replace(partial, target)
        if not isinstance(error, PapermillExecutionError):
            why = "died, out of memory by the look of it" if isinstance(error, DeadKernelError) else "did not answer"
            raise UserError(f"{notebook.name}: its kernel {why}; see {target}") from error
        say(failing_cell(notebook.name, error))
        message = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise UserError(f"{notebook.name} failed in cell {error.exec_count}: {message}; see {target}") from error
    if stop.signal:
        raise Interrupted(f"{notebook.name}: stopped at its end", stop.signal)
    # each stream as one output, with only the last state of its progress bars
    tidied, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.read(partial, as_version=4), {})
    write_atomically(target, nbformat.writes(tidied))
    partial.unlink()


# several at the same time


class Prefixed(io.TextIOBase):
    """Passes whole lines on, each with a prefix, so that several processes may share a terminal.

    Of a bar that redraws its line only a state every `every` seconds and the last one are passed on.
    """

    def __init__(self, stream, prefix: str, every: float = BAR_EVERY):
        self.stream, self.prefix, self.every, self._rest, self._said = stream, prefix, every, "", time.monotonic()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(line)
        if "\r" in self._rest:
            self._rest = collapse_carriage_returns(self._rest)
            if time.monotonic() - self._said > self.every:
                self._say(self._rest)
        return len(text)

    def _say(self, line: str) -> None:
        line = collapse_carriage_returns(line)
        if line.strip():
            self._said = time.monotonic()
            self.stream.write(f"{self.prefix}{line}\n")  # one write: lines of two processes never mix
            self.stream.flush()


@dataclass(frozen=True)
class Prefixing:
    """A task for an engine: work(*arguments), each line of what it prints with the label in front."""

    label: str
    work: Callable
    arguments: tuple

    def perform(self) -> str:
        plain = sys.stdout, sys.stderr
        os.environ["COLUMNS"] = str(shutil.get_terminal_size((100, 24)).columns - 12)
        sys.stdout, sys.stderr = (Prefixed(stream, f"{self.label} | ") for stream in plain)
        progress.report_to(None)  # what it trains is shown by lines of its own
        try:
            self.work(*self.arguments)
            return "done"
        except Interrupted as stop:
            raise UserError(f"{stop}; the same command goes on where this stopped") from stop
        finally:
            print(), print(file=sys.stderr)  # what is left of a line
            sys.stdout, sys.stderr = plain


def _run_at_once(study: Study, notebooks: list[Path], parameters: dict, jobs: int) -> None:
    """Notebooks in order, but for the longest, which is second, `jobs` at a time, each in a process of its own with its share
    of the cores.

    Teacher and extractor, where these ask for them, are begun before them: all would wait for the first that does. Where one
    fails, those that run are still finished, no other begins, and UserError says what failed.
    """

    def report(outcome: Outcome) -> None:
        if outcome.failed:
            raise UserError(outcome.said)

    first, *others = notebooks
    notebooks = [first, *sorted(others, key=lambda file: file.name[:2] != LONGEST)]
    sources = "".join(notebook.read_text(encoding="utf-8") for notebook in notebooks)
    stages = {"teacher": study.stages.teacher(), "extractor": study.stages.extractor}
    needed = [name for name, stage in stages.items() if f"study.{name}()" in sources and not stage.done]
    made = [Prefixing(name, getattr(study, name), ()) for name in needed]
    ran = [
        Prefixing(file.name[:2], run_notebook, (file, study.out, parameters, f" ({k} of {len(notebooks)})"))
        for k, file in enumerate(notebooks, 1)
    ]
    on_this_machine(jobs)([*made, *ran], report)


# the series


def selected(only: str = "", start: str = "") -> list[Path]:
    """The notebooks of the series whose numbers are in `only` ("03,04"), or from `start` ("04") on.

    Those that show other models than the study's, GUIDED and LATENT, are chosen by `only` alone.
    """
    files = notebook_files()
    numbers = [file.name[:2] for file in files]
    usual = [number for number in numbers if number not in (GUIDED, LATENT)]
    wanted = [n.strip().zfill(2) for n in re.split(r"[,\s]+", only) if n.strip()] or usual
    if start and only:
        raise UserError("--only and --from exclude each other: give one of them")
    if start:
        wanted = [n for n in usual if n >= start.zfill(2)]
        if start.zfill(2) in (GUIDED, LATENT):
            raise UserError(
                f"--from {start}: this notebook shows other models than the study's, choose it with --only {start}"
            )
    unknown = [n for n in wanted if n not in numbers]
    if unknown or not wanted:
        raise UserError(f"no notebook {', '.join(unknown) or start}: there are {', '.join(numbers)}")
    return [file for file in files if file.name[:2] in wanted]


def run_study(
    profile_name: str,
    overrides: dict[str, str],
    out: Path,
    seed: int = 0,
    *,
    only: str = "",
    start: str = "",
    update: bool = False,
    jobs: int | None = 1,
    with_notebooks: bool = True,
) -> Path:
    """Run the series (or part of it) into `out` and write the report; returns index.html's path.

    jobs: notebooks that run at the same time, None: two where there are two cores; with_notebooks: False trains and scores
    the study without them, which needs neither papermill nor Jupyter. Raises UserError for bad input (nothing is written then)
    and for a failing notebook.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1")
    if not with_notebooks and (only or start or (jobs or 1) > 1):
        raise UserError(
            "--no-notebooks runs none: leave --only, --from and --jobs out (--set jobs=2 trains two at a time)"
        )
    load_profile(profile_name, overrides)  # wrong numbers first: all else takes longer
    notebooks = selected(only, start) if with_notebooks else []
    parameters = {"profile": profile_name, "seed": seed, "out": str(out.resolve())}
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    if world_size() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a study is one process: run it without torchrun (profile field jobs sets its workers)")
    if recorded_overrides(out).get("run.shipped", "all") == "all":
        overrides = {"run.shipped": "earlier", **overrides}  # the last halvings are trained, whoever opened it first
    latent = [notebook.name[:2] for notebook in notebooks] == [LATENT]
    guided = GUIDED in {notebook.name[:2] for notebook in notebooks}
    check = _check_latent if latent else partial(_check_notebooks, guided) if with_notebooks else _check_scoring
    lock = FileLock(out / ".running")  # which may be taken twice
    with contextlib.ExitStack() as running:

        def checked(study: Study) -> None:
            """Refuse before anything is written: what another process runs must not be changed."""
            check(study)
            _check_own(study)
            if (out / STUDY_FILE).exists():
                running.enter_context(_only_here(lock, out))

        study = continue_study(profile_name, overrides, out, seed, update, check=checked)
        running.enter_context(_only_here(lock, out))
        say_if_busy()
        began = time.monotonic()
        if latent:
            run_notebook(notebooks[0], out, parameters)
            return out / "notebooks" / notebooks[0].name
        if not with_notebooks:
            study.train_all()
            return _reported(study, began)
        waiting = [notebook for notebook in notebooks if not _done_before(notebook, out)[1]]
        jobs = jobs or min(2, cores())
        if jobs > 1 and len(waiting) > 1:
            for notebook in sorted(set(notebooks) - set(waiting)):
                print(f"{notebook.stem}: done before", flush=True)
            _run_at_once(study, waiting, parameters, min(jobs, len(waiting)))
        else:
            for k, notebook in enumerate(notebooks, 1):
                run_notebook(notebook, out, parameters, f" ({k} of {len(notebooks)})")
        return _reported(study, began)


def _reported(study: Study, began: float) -> Path:
    """Write the report; say which methods have the lowest FID, once all are scored, and how long this run took. Its path."""
    page, results = write_report(study, executed_notebooks(study.out)), study.scored()
    if len(results) == len(study.arms()):
        print(lowest(results, study.profile).replace("*", ""))
    print(f"This run took {human_time(time.monotonic() - began)}.")
    return page


def _only_here(lock: FileLock, out: Path) -> AbstractContextManager:
    """The folder's lock, which goes with the process, however that ends. Raises UserError where another holds it."""
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is running the study in {out}: wait for it or choose another --out"
        ) from error


def _check_own(study: Study) -> None:
    """Raise UserError where everything is to be trained and the folder holds models that came with rddlib."""
    if study.profile.run.shipped == "none" and (
        foreign := [stage.label for stage in study.lineage() if stage.noted().get("shipped")]
    ):
        raise UserError(
            f"{study.out} holds models that came with rddlib ({foreign[0]}): choose another --out to train them"
        )


def _check_scoring(study: Study) -> None:
    """Raise UserError where results could not be made and scored in the end."""
    if any(study.profile.method(name).looks for name in study.profile.methods):
        study.check_extractor()
    study.check_scoring()


def _check_latent(study: Study) -> None:
    """Raise UserError where there is no text-guided model to show."""
    if not (study.space and study.space.takes_prompts):
        raise UserError(
            f"notebook {LATENT} shows a text-guided model: python examples/text_guided.py FOLDER makes one, then rdd study "
            f"--profile text --only {LATENT} --set pretrained.teacher=FOLDER/pipeline --set data.root=FOLDER/images --set "
            "evaluation.network=FOLDER/metric.safetensors"
        )
    guided_study(study).check_scoring()


def _check_notebooks(guided: bool, study: Study) -> None:
    """The same, of the guided study too if asked; and where the notebooks would have nothing to show."""
    p = study.profile
    if p.pretrained.teacher:
        raise UserError(
            "the notebooks train and show a base model of their own: leave pretrained.teacher out, or add --no-notebooks"
        )
    if p.extractor.name not in EXTRACTORS:
        raise UserError(
            f"the notebooks show a classifier of the data set: leave extractor.name={p.extractor.name} out, or add "
            "--no-notebooks"
        )
    _check_scoring(study)
    if guided and study.dataset.num_classes:
        guided_study(study).check_scoring()
