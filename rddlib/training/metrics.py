"""What a training writes down as it goes: metrics.jsonl, a tracker's records where asked for, and grids of samples."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from torch import Tensor

from rddlib.data import grid_png, to_uint8
from rddlib.utils.checkpoint import cannot_write, write_atomically
from rddlib.utils.errors import UserError


def _records(path: Path, before: int) -> list[dict]:
    """The file's records of iterations below `before`; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] >= before:
            break
        records.append(record)
    return records


def check_tracker(name: str) -> None:
    """Raise UserError where the package of a tracker (`TRACKERS`) is not installed."""
    if name != "none" and name not in map(str, get_available_trackers()):
        raise UserError(f"run.tracker={name} needs a package: pip install {name}, or leave run.tracker out")


def new_tracker(name: str, files: Path, start: int) -> GeneralTracker:
    """accelerate's tracker of that name, started. All of them write beside `files`; wandb and mlflow go elsewhere where their
    own variables (WANDB_MODE, MLFLOW_TRACKING_URI) say so."""
    check_tracker(name)
    folder = str(files.parent.resolve())
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    options = {
        "tensorboard": dict(run_name=f"{files.name}.tensorboard", logging_dir=folder, purge_step=start),
        "wandb": dict(run_name="rddlib", name=files.name, dir=folder, mode=os.environ.get("WANDB_MODE", "offline")),
        "mlflow": dict(experiment_name="rddlib", run_name=files.name, logging_dir=f"{folder}/mlruns"),
        "aim": dict(run_name=files.name, logging_dir=folder),
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
    tracker.start()
    return tracker


class MetricsLogger:
    """The records of a training, in files and as `history`.

    Args:
        files: how the names begin: files.metrics.jsonl, files.samples/; None: nothing is written.
        start: the iteration that training begins at; later records of an earlier run are dropped, since they come again.
        tracker: who gets the records too, one of `TRACKERS`.
    """

    def __init__(self, files: Path | None, start: int, tracker: str = "none"):
        self.files, self.history, self._log, self._tracker = files, [], None, None
        if files is None:
            return
        path = files.with_name(files.name + ".metrics.jsonl")
        self.history = _records(path, start)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in self.history))
        self._log = path.open("a", encoding="utf-8")
        if tracker != "none":
            self._tracker = new_tracker(tracker, files, start)

    def add(self, record: dict) -> None:
        """Append one record: "step" and numbers by name. Raises UserError where the disk is full."""
        self.history.append(record)
        if self._log is not None:
            with self._refusing():
                self._log.write(json.dumps(record) + "\n")
                self._log.flush()
        if self._tracker is not None:
            self._tracker.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Inside, a disk that takes no more is a UserError."""
        try:
            yield
        except OSError as error:
            raise cannot_write(Path(self._log.name), error) from error

    def keep(self) -> None:
        """Force what was written to the disk, as a checkpoint that counts on it is about to be.

        Raises UserError where the disk is full.
        """
        if self._log is not None:
            with self._refusing():
                os.fsync(self._log.fileno())

    def grid(self, images: Tensor, step: int) -> None:
        """Write images [N, C, H, W] in [-1, 1] as files.samples/<step>.png."""
        if self.files is None:
            return
        folder = self.files.with_name(self.files.name + ".samples")
        write_atomically(folder / f"{step:08d}.png", grid_png(to_uint8(images)))

    def close(self) -> None:
        """Close the files; a full disk was reported before, so it is not raised again here."""
        for close in filter(None, (self._log and self._log.close, self._tracker and self._tracker.finish)):
            with contextlib.suppress(OSError):
                close()
