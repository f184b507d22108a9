"""Who performs a sweep: processes that die, two commands on one folder, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from tiny import settings
from tiny_study import TINY

from rddlib.study.engines import ATTEMPTS, Outcome, attempt, in_turn, on_this_machine
from rddlib.utils.errors import UserError


@dataclass(frozen=True)
class Note:
    """A task that notes each time it is performed; does: what else."""

    folder: Path
    number: int
    does: str = ""

    @property
    def label(self) -> str:
        return f"note {self.number}"

    def perform(self) -> str:
        file = self.folder / str(self.number)
        times = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(str(times))
        if self.does == "raise":
            raise ValueError("no luck\nat all")
        if self.does == "refuse":
            raise UserError("wrong input")
        if self.does == "die" or (self.does == "die once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 120  # a process alone would wait in vain
        while self.does == "wait for 2" and not (self.folder / "2").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # longer than it takes the other process to begin
        return f"done by {os.getpid()}"


def noted(folder: Path) -> dict[int, int]:
    return {int(file.name): int(file.read_text()) for file in folder.iterdir()}


def outcomes(engine, tasks) -> dict[int, Outcome]:
    found: list[Outcome] = []
    engine(tasks, found.append)
    assert len({outcome.task for outcome in found}) == len(found)  # each reported once
    return {outcome.task.number: outcome for outcome in found}


def test_in_turn_reports_as_it_goes(tmp_path):
    seen = []
    tasks = [Note(tmp_path, 1), Note(tmp_path, 2)]
    in_turn(tasks, lambda outcome: seen.append((outcome.task.number, len(noted(tmp_path)))))
    assert seen == [(1, 1), (2, 2)]


def test_an_error_is_an_outcome_of_one_line(tmp_path):
    assert attempt(Note(tmp_path, 1, "raise")).said == "ValueError: no luck"
    assert attempt(Note(tmp_path, 2, "refuse")).said == "wrong input"
    assert attempt(Note(tmp_path, 2, "refuse")).failed and not attempt(Note(tmp_path, 3)).failed


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.ci)])
def test_failures_leave_the_others(tmp_path, jobs):
    does = {1: "raise"} | ({0: "wait for 2"} if jobs == 2 else {})
    tasks = [Note(tmp_path, k, does.get(k, "")) for k in range(5)]
    found = outcomes(on_this_machine(jobs), tasks)
    assert noted(tmp_path) == dict.fromkeys(range(5), 1)
    assert [number for number, outcome in found.items() if outcome.failed] == [1]
    assert len({outcome.said for outcome in found.values() if not outcome.failed}) == jobs  # processes that did them


@pytest.mark.ci
def test_a_task_whose_process_dies_is_tried_again_and_given_up_in_the_end(tmp_path):
    tasks = [Note(tmp_path, 0, "die"), Note(tmp_path, 1, "die once"), Note(tmp_path, 2)]
    found = outcomes(on_this_machine(2), tasks)
    assert [number for number, outcome in found.items() if outcome.failed] == [0]
    assert f"died {ATTEMPTS} times" in found[0].said
    times = noted(tmp_path)  # at first one of the two may die before the other begins
    assert times[0] in (ATTEMPTS - 1, ATTEMPTS) and times[1] in (1, 2)
    assert times[2] == 1  # what had not begun was none of its business


# the real thing, in processes of their own

SWEEP = ["ablate", "alpha", "--profile", "smoke", "--axis", "loss.alpha=0.5,1,2", "--seeds", "2"]
RUNS = (3 + 1) * 2  # three weights and CFD, two seeds


def start(folder, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "rddlib.cli", *SWEEP, "--out", str(folder), *settings(TINY), *more],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process) -> tuple[str, str]:
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return printed, errors


def trained_once(folder) -> None:
    """Every model's logger has each of its iterations once: nothing was trained twice."""
    journals = sorted((folder / "checkpoints").glob("*.metrics.jsonl"))
    assert len(journals) == 1 + 1 + 1 + RUNS  # base, teacher, extractor, students
    for journal in journals:
        steps = [json.loads(line)["step"] for line in journal.read_text().splitlines()]
        assert Counter(steps) == Counter(dict.fromkeys(steps, 1)), journal


def whole_table(folder) -> pd.DataFrame:
    (path,) = (folder / "ablations").glob("alpha-*.csv")  # of values other than the ablation's own
    table = pd.read_csv(path)
    assert len(table) == RUNS and table["fid"].notna().all()
    return table


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    ended(start(folder))
    return whole_table(folder)


def same_numbers(table, other) -> None:
    columns = ["setting", "seed", "steps", "fid", "pfd", "is", "record"]
    pd.testing.assert_frame_equal(table[columns], other[columns], rtol=1e-4)


@pytest.mark.slow
def test_two_commands_finish_one_sweep_and_nothing_runs_twice(tmp_path, undisturbed):
    both = [start(tmp_path / "study", "--jobs", "2"), start(tmp_path / "study")]
    for process in both:
        ended(process)
    trained_once(tmp_path / "study")
    same_numbers(whole_table(tmp_path / "study"), undisturbed)


def children(pid: int) -> list[int]:
    """Its worker processes, multiprocessing's own helper left out."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in task.read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition, process, seconds=300):
    began = time.monotonic()
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() - began < seconds
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_killed_worker_leaves_a_sweep_that_ends_complete(tmp_path, undisturbed):
    process = start(tmp_path / "study", "--jobs", "2")
    wait_for(lambda: list((tmp_path / "study").rglob("scores/rdd-4-*.json")), process)
    victim = wait_for(lambda: children(process.pid), process)[0]
    os.kill(victim, signal.SIGKILL)
    ended(process)
    same_numbers(whole_table(tmp_path / "study"), undisturbed)


@pytest.mark.slow
def test_ctrl_c_leaves_a_sweep_that_goes_on(tmp_path, undisturbed):
    process = start(tmp_path / "study", "--jobs", "2")
    wait_for(lambda: list((tmp_path / "study").rglob("scores/*.json")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on where this stopped" in errors and "Traceback" not in errors, errors
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("scores/*.json")}
    assert 0 < len(before) < RUNS
    ended(start(tmp_path / "study", "--jobs", "2"))
    same_numbers(whole_table(tmp_path / "study"), undisturbed)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


@pytest.mark.slow
def test_shards_of_a_sweep_together_are_all_of_it(tmp_path, undisturbed):
    for part in ("1/2", "2/2"):
        ended(start(tmp_path / "study", "--shard", part))
    trained_once(tmp_path / "study")
    same_numbers(whole_table(tmp_path / "study"), undisturbed)
