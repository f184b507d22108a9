"""What a training writes down as it goes: metrics.jsonl, TensorBoard where asked for, and grids of samples."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

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


def _tensorboard(folder: Path, start: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "run.tensorboard needs the package tensorboard: pip install tensorboard, or leave it off"
        ) from error
    return SummaryWriter(str(folder), purge_step=start)


class MetricsLogger:
    """The records of a training, in files and as `history`.

    Args:
        files: how the names begin: files.metrics.jsonl, files.tensorboard/, files.samples/; None: nothing is written.
        start: the iteration that training begins at; later records of an earlier run are dropped, since they come again.
        tensorboard: write the records for TensorBoard too.
    """

    def __init__(self, files: Path | None, start: int, tensorboard: bool = False):
        self.files, self.history, self._log, self._board = files, [], None, None
        if files is None:
            return
        path = files.with_name(files.name + ".metrics.jsonl")
        self.history = _records(path, start)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in self.history))
        self._log = path.open("a", encoding="utf-8")
        if tensorboard:
            self._board = _tensorboard(files.with_name(files.name + ".tensorboard"), start)

    def add(self, record: dict) -> None:
        """Append one record: "step" and numbers by name. Raises UserError where the disk is full."""
        self.history.append(record)
        if self._log is not None:
            with self._refusing():
                self._log.write(json.dumps(record) + "\n")
                self._log.flush()
        if self._board is not None:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, record["step"])

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
        for file in filter(None, (self._log, self._board)):
            with contextlib.suppress(OSError):
                file.close()
