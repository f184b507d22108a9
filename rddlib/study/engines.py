"""Who performs tasks: this process, or several on this machine.

A task has a label and perform(), which says in a few words what came out; it may be handed to another process. Tasks are
independent: one that fails, or whose process dies, leaves the others. A study's cascades, a sweep's runs and notebooks that
run at the same time are such tasks.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from rddlib.utils import progress
from rddlib.utils.errors import Interrupted, UserError

ATTEMPTS = 3  # of a task whose process dies


class Task(Protocol):
    label: str

    def perform(self) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """Of a task: what came out or, with `failed`, what went wrong, in a line; seconds that it took."""

    task: Task
    said: str
    seconds: float
    failed: bool = False


Report = Callable[[Outcome], None]
Engine = Callable[[Sequence[Task], Report], None]


def attempt(task: Task) -> Outcome:
    """The task's outcome; only being told to stop is not held back."""
    began = time.perf_counter()
    try:
        said, failed = task.perform(), False
    except Exception as error:  # whatever it is, the other tasks go on
        said, failed = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}", True
    return Outcome(task, (said.splitlines() or [""])[0], time.perf_counter() - began, failed)


def in_turn(tasks: Sequence[Task], report: Report) -> None:
    """One after another, here."""
    for task in tasks:
        report(attempt(task))


def on_this_machine(jobs: int, count: Callable[[int], None] = lambda iterations: None) -> Engine:
    """`jobs` processes at a time, each with its share of the cores, and of several GPUs one in turn.

    A process that dies takes its pool with it; whatever ran is then tried again alone, up to ATTEMPTS times in all, so that
    only the culprit is given up. count: told twice a second how many iterations all of them have trained. Raises UserError
    for jobs < 1.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1")
    if jobs == 1:
        return in_turn

    def engine(tasks: Sequence[Task], report: Report) -> None:
        waiting, trained = list(tasks), multiprocessing.get_context("spawn").Value("q", 0)
        while waiting:
            suspects, waiting = _until_one_dies(waiting, jobs, report, trained, count)
            for task in suspects:
                _alone(task, jobs, report, trained, count)

    return engine


def _until_one_dies(tasks: list[Task], jobs: int, report: Report, trained, count) -> tuple[list[Task], list[Task]]:
    """Perform the tasks; ([], []) or, where a process dies, (what ran, what had not begun)."""
    waiting, running = list(tasks), {}
    with _pool(min(jobs, len(tasks)), jobs, trained) as pool:
        while waiting or running:
            try:
                while waiting and len(running) < jobs:  # no more: what runs when a process dies is then known
                    future = pool.submit(attempt, waiting[0])
                    running[future] = waiting.pop(0)
                done, _ = concurrent.futures.wait(running, 0.5, return_when=concurrent.futures.FIRST_COMPLETED)
                count(trained.value)
                for future in done:
                    if isinstance(future.exception(), Interrupted):  # somebody told that process to stop
                        waiting.append(running.pop(future))
                        continue
                    report(future.result())
                    del running[future]
            except BrokenProcessPool:
                return list(running.values()), waiting
    return [], []


def _alone(task: Task, jobs: int, report: Report, trained, count) -> None:
    """Perform a task by which or beside which a process died, with nothing beside it."""
    for _ in range(ATTEMPTS - 1):
        if not any(_until_one_dies([task], jobs, report, trained, count)):
            return
    said = f"its process died {ATTEMPTS} times, out of memory by the look of it"
    report(Outcome(task, said, 0.0, failed=True))


@contextmanager
def _pool(processes: int, jobs: int, trained) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """That many processes, each with a share of the cores as one of `jobs`. Where this process is told to stop, they are too:
    each saves a checkpoint first."""
    context, threads = multiprocessing.get_context("spawn"), max(1, torch.get_num_threads() // jobs)
    start = (threads, torch.cuda.device_count(), context.Value("q", 0), trained)
    with concurrent.futures.ProcessPoolExecutor(processes, context, _start_worker, start) as pool:
        try:
            yield pool
        except (KeyboardInterrupt, Interrupted):
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker(threads: int, gpus: int, started, trained) -> None:
    """Quiet, since several share a terminal, whose Ctrl-C reaches every process: the first one passes it on as SIGTERM,
    which a training heeds and which ends all else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes that it starts
    progress.report_to(trained)
    if gpus > 1:
        with started.get_lock():
            mine, started.value = started.value % gpus, started.value + 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[mine] if visible else str(mine)
