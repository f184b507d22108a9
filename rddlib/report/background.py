"""Training apart from a notebook's kernel: the `rdd` command in a process of its own, that any later kernel finds again.

What runs is known by a lock that the process itself holds, so neither a restarted kernel nor a number that another
program got meanwhile can mistake it. How far it is, is read from the files that every training writes.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rddlib.study.folder import STUDY_FILE
from rddlib.study.stage import Stage
from rddlib.study.study import Study
from rddlib.training import Checkpoints
from rddlib.utils import progress
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.text import human_time

GOES_ON = "goes on where this stopped"  # how the command's last line ends after a signal
IDLE = "not trained yet, nor being trained in the background; a cell that asks for it trains it"
LINE_EVERY = 30.0  # seconds between lines where nobody watches


class Run:
    """One training in the background, running or not: made again in another process it is the same run.

    `start` trains `stage` and what it needs in a process of its own and returns at once. When it is done the study finds the
    artefact as if it had been trained in place. Raises UserError for a stage that the study does not have.

    Args:
        study: in a folder.
        stage, arguments: "base"; "extractor"; "teacher" and its steps (default the profile's); "student", method and steps
            (default 1).
    """

    def __init__(self, study: Study, stage: str, *arguments):
        if not (study.out / STUDY_FILE).exists():
            raise UserError(f"{study.out} is no study's folder yet: open it with open_study")
        self.name, self.stages, self.command = _plan(study, stage, *arguments)
        self.study = study
        self._files = study.out / "background" / self.name
        self.log = self._file("log")

    def _file(self, kind: str) -> Path:
        return self._files.with_name(f"{self._files.name}.{kind}")

    # the process

    def start(self) -> "Run":
        """Start it, unless it runs or its model is there."""
        if self.stages[-1].done or (lock := _take(self._file("lock"))) is None:
            return self
        record, p = self._file("json"), self.study.profile
        where = ["--profile", p.name, "--out", str(self.study.out.resolve()), "--seed", str(self.study.seed)]
        command = [sys.executable, "-m", "rddlib.cli", *self.command, *where]
        try:
            record.unlink(missing_ok=True)
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],
                    env={**os.environ, progress.MODE_VARIABLE: "line"},
                )
            write_atomically(record, json.dumps({"pid": process.pid, "command": command}, indent=1) + "\n")
        finally:
            os.close(lock)  # from here on the process alone holds it
        threading.Thread(target=process.wait, daemon=True).start()  # else it would stay a zombie
        return self

    @property
    def running(self) -> bool:
        """Whether a process holds this run's lock."""
        try:
            handle = os.open(self._file("lock"), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(handle)

    def stop(self, wait: bool = True) -> None:
        """Ask it to save and end, and wait until it has; `start` goes on from there."""
        record = self._file("json")
        while self.running and not record.exists():  # it is just being started
            time.sleep(0.05)
        if self.running:
            os.kill(json.loads(record.read_text(encoding="utf-8"))["pid"], signal.SIGTERM)
        while wait and self.running:
            time.sleep(0.1)

    # how far it is

    def progress(self) -> dict:
        """state: "idle", "running", "stopped", "failed" or "done"; stage, number of `stages` that it is; iteration
        of total, loss, images_per_second and seconds_left of that stage (None where not known yet); message: why it
        stopped or failed, or what idle means."""
        running = self.running  # asked first: what ends meanwhile still counts as running
        missing = self.stages[-1].missing()
        stage = (missing or self.stages[-1:])[0]
        last = _last_record(stage.files.with_name(stage.files.name + ".metrics.jsonl"))
        steps = Checkpoints(stage.files).steps()
        iteration = max([last.get("step", -1) + 1, *steps]) if missing else stage.iterations
        speed, left = last.get("images_per_second"), stage.iterations - iteration
        state, message = self._state(running, bool(missing))
        return {
            "state": state,
            "stage": stage.label,
            "number": self.stages.index(stage) + 1,
            "stages": len(self.stages),
            "iteration": iteration,
            "total": stage.iterations,
            "loss": last.get("loss"),
            "images_per_second": speed,
            "seconds_left": left * stage.config.batch_size / speed if speed else None,
            "message": message,
        }

    def _state(self, running: bool, missing: bool) -> tuple[str, str]:
        if running or not missing:
            return ("running" if running else "done"), ""
        if not self.log.exists():
            last = self.stages[-1]
            return "idle", "comes with rddlib, taken when a cell asks for it" if last.ships else IDLE
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
        if last.endswith(GOES_ON):
            return "stopped", last.removeprefix("rdd: ")
        if last.startswith("rdd: "):
            return "failed", last.removeprefix("rdd: ")
        return "failed", f"it was killed or crashed, start it to go on; the last that {self.log} says: {last}"

    def __str__(self) -> str:
        return _line(self.name, self.progress())

    # watching

    def watch(self, every: float = 1.0):
        """A live view with buttons to start and stop it: after a restart of the kernel, run the cell again.

        Where nobody watches (a program executes the notebook, or there is none), it prints lines until the run has ended.
        every: seconds between two looks. Raises UserError, where nobody watches, if the run ends without its model.
        """
        return _panel(self, every) if _watched() else self._wait(every)

    def _wait(self, every: float) -> None:
        was_running, said, at = self.running, None, 0.0
        while (now := self.progress())["state"] == "running":
            if now["stage"] != said or time.monotonic() - at > LINE_EVERY:
                print(_line(self.name, now), flush=True)
                said, at = now["stage"], time.monotonic()
            time.sleep(every)
        if was_running and now["state"] != "done":
            raise UserError(f"{self.name} {now['state']}: {now['message']}")
        print(_line(self.name, now), flush=True)


# what there is to train


def _plan(study: Study, stage: str, *arguments) -> tuple[str, list[Stage], list[str]]:
    """(a name, the stages in the order they are trained, the command that trains them)."""
    whole, middle, stages = study.profile.base.steps, study.profile.progressive.teacher_steps, study.stages
    match (stage, *arguments):
        case ("base",):
            return "base", stages.base.lineage(), ["train"]
        case ("extractor",):
            return "extractor", stages.extractor.lineage(), ["extractor"]
        case ("teacher",) | ("teacher", int()):
            steps = arguments[0] if arguments else middle
            command = ["distill", "--objective", "pd", "--from", str(whole), "--to", str(steps)]
            return f"teacher-{steps}", stages.teacher(steps).lineage(), command if steps != whole else ["train"]
        case ("student", str(method)) | ("student", str(method), int()):
            study.profile.method(method)
            steps = arguments[1] if len(arguments) > 1 else 1
            lineage = stages.student(method, steps, study.profile.seeds[0]).lineage()
            return f"student-{method}-{steps}", lineage, ["distill", "--objective", method, "--to", str(steps)]
    asked = " ".join(map(str, (stage, *arguments)))
    raise UserError(f"cannot train {asked!r}: give base, extractor, teacher [steps] or student method [steps]")


# files


def _take(path: Path) -> int | None:
    """Lock a file; its handle, None where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(20):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            time.sleep(0.01)  # somebody may just be looking whether it is held
    os.close(handle)
    return None


def _last_record(path: Path) -> dict:
    """The newest whole record of a metrics.jsonl, {} where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:  # still being written, or the first one cut
            continue
    return {}


# shown


def _line(name: str, now: dict) -> str:
    """Progress in one line."""
    if now["state"] == "done":
        return f"{name}: done"
    if now["state"] == "idle":
        return f"{name}: {now['message']}"
    parts = [f"{now['stage']} ({now['number']} of {now['stages']})", f"iteration {now['iteration']} of {now['total']}"]
    if now["loss"] is not None:
        parts.append(f"loss {now['loss']:.4g}")
    if now["state"] == "running" and now["images_per_second"]:
        parts += [f"{now['images_per_second']:.0f} images/s", f"{human_time(now['seconds_left'])} left"]
    return f"{name}: {now['state']}, " + ", ".join(parts) + (f"; {now['message']}" if now["message"] else "")


def _watched() -> bool:
    """Whether somebody sits before this: JupyterLab may ask for input, papermill and nbconvert may not."""
    try:
        from IPython import get_ipython
    except ModuleNotFoundError:
        return False
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def _panel(run: Run, every: float):
    import ipywidgets

    from rddlib.report.explorers import Live

    bar, text = ipywidgets.IntProgress(layout=ipywidgets.Layout(width="30rem")), ipywidgets.Label()
    start, stop = ipywidgets.Button(description="Start"), ipywidgets.Button(description="Save and stop")

    def show() -> bool:
        now = run.progress()
        bar.max, bar.value, text.value = now["total"], now["iteration"], _line(run.name, now)
        running = now["state"] == "running"
        start.disabled, stop.disabled = running or now["state"] == "done", not running
        return running

    def follow() -> None:
        while show():
            time.sleep(every)

    def begin(_button=None) -> None:
        run.start()
        threading.Thread(target=follow, daemon=True).start()

    start.on_click(begin)
    stop.on_click(lambda _button: run.stop(wait=False))
    if show():
        threading.Thread(target=follow, daemon=True).start()
    panel = Live([bar, text, ipywidgets.HBox([start, stop])])
    panel.gone = "Run this cell to see how far the training is."
    return panel
