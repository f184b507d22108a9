"""Progress that fits where it is read: a bar with time left in a terminal or JupyterLab; in a log a line for each stage, and
for a long one a line now and then."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from rddlib.utils.distributed import rank
from rddlib.utils.text import counted, human_time

MODE_VARIABLE = "RDD_PROGRESS"  # "bar" or "line"; a study sets it for the notebooks' kernels, which have no terminal
FIRST_LINE = 30.0  # seconds until a log gets its first line of how far it is; each next one comes after twice as long
_silent = False
_shared_count = None  # in a worker process: counts iterations for the bar of the process that started it


def report_to(count) -> None:
    """In a worker process: add iterations to a shared multiprocessing.Value and show nothing here."""
    global _shared_count
    _shared_count = count


@contextmanager
def silent() -> Iterator[None]:
    """Inside, no bar and no line is shown."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def mode() -> str:
    """ "bar", "line"; in a worker process "count"; in all but the first of several processes of one run "none"."""
    if _silent:
        return "none"
    if _shared_count is not None:
        return "count"
    if rank() > 0:
        return "none"
    chosen = os.environ.get(MODE_VARIABLE)
    if chosen in ("bar", "line"):
        return chosen
    return "bar" if sys.stderr.isatty() or "ipykernel" in sys.modules else "line"


def make_bar(label: str, total: int, initial: int = 0, unit: str = "it") -> tqdm:
    """A bar with rate and time left on standard error; invisible unless the mode is "bar"."""
    columns = min(shutil.get_terminal_size((100, 24)).columns, 120)  # a kernel has no terminal: the study tells it
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        file=sys.stderr,
        mininterval=0.5,
        ncols=columns,
        nrows=24,  # said, because a terminal that calls itself 0 x 0 would get no bar at all
        disable=mode() != "bar",
    )


class _Counting:
    """How far something long is: a bar; in a log a line now and then, and one at its end; of what is quiet no line.

    `note`: a word to show at the end.
    """

    def __init__(self, label: str, stop: int, start: int = 0, unit: str = "it", quiet: bool = False):
        self.label, self.start, self.stop, self.unit, self.quiet = label, start, stop, unit, quiet
        self.note = ""

    def __enter__(self):
        self._bar = make_bar(self.label, self.stop, self.start, self.unit)
        self._done, self._began, self._next = self.start, time.perf_counter(), FIRST_LINE
        return self

    def count(self, done: int) -> None:
        """Told often: `done` are done."""
        self._bar.update(done - self._done)
        self._done, gone = done, time.perf_counter() - self._began
        if gone >= self._next and self.start < done < self.stop:
            self._next = 2 * gone
            left = human_time(gone / (done - self.start) * (self.stop - done))
            self.say(f"{self.label}: {done:,} of {self.stop:,}, about {left} left")

    def say(self, line: str) -> None:
        """A line in a log."""
        if mode() == "line" and not self.quiet:
            print(line, flush=True)

    def __exit__(self, kind, *_) -> None:
        self._bar.close()
        if kind is None:
            done = counted(self._done - self.start, "iteration" if self.unit == "it" else self.unit)
            note = f", {self.note}" if self.note else ""
            self.say(f"{self.label}: {done} in {time.perf_counter() - self._began:.1f} s{note}")


class Bar(_Counting):
    """Progress of what other processes count, which a log hears of when it begins too.

    with Bar("4 students, 2 at a time", total) as bar: ... bar.count(done so far)
    """

    def __enter__(self) -> "Bar":
        if self.stop:
            self.say(f"{self.label}: {counted(self.stop, 'iteration', ',')} to do")
        return super().__enter__()


class Progress(_Counting):
    """Iterate over range(start, stop) with a label: `for step in Progress("base model", 1500): ...`.

    quiet: no line in a log and no count, for parts of a stage that has its own. Set `note` to show a word at the end.
    """

    def __iter__(self) -> Iterator[int]:
        with self:
            for step in range(self.start, self.stop):
                yield step
                self.count(step + 1)
                if self.note:
                    self._bar.set_postfix_str(self.note, refresh=False)
                if mode() == "count" and not self.quiet:
                    with _shared_count.get_lock():
                        _shared_count.value += 1
