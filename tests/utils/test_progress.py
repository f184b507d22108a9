"""Bars in a terminal, one line in a log, silence in a worker that counts for another process."""

import multiprocessing
import os
import pty
import subprocess
import sys

from rddlib.utils import progress
from rddlib.utils.text import counted

CODE = "from rddlib.utils.progress import Progress\nlist(Progress('stage', 6))"


def test_a_terminal_gets_a_bar_even_one_without_a_size():
    leader, follower = pty.openpty()  # 0 x 0
    environment = {k: v for k, v in os.environ.items() if k not in (progress.MODE_VARIABLE, "COLUMNS")}
    subprocess.run([sys.executable, "-c", CODE], stdout=follower, stderr=follower, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 10_000).decode()
    assert "stage" in shown and "6/6" in shown and "it/s" in shown


def test_a_log_gets_one_line():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("stage: 6 iterations in ") and not done.stderr


def test_a_long_stage_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setenv(progress.MODE_VARIABLE, "line")
    clock = iter(range(0, 10_000, 10))  # each look takes ten seconds
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    list(progress.Progress("stage", 14, start=4))
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "stage: 7 of 14, about 70 s left" and second == "stage: 10 of 14, about 40 s left"
    assert last.startswith("stage: 10 iterations in ")


def test_a_worker_only_counts(monkeypatch, capsys):
    count = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(progress, "_shared_count", None)
    progress.report_to(count)
    assert list(progress.Progress("stage", 5, start=2)) == [2, 3, 4]
    list(progress.Progress("part", 4, quiet=True))
    assert count.value == 3 and capsys.readouterr() == ("", "")


def test_one_is_no_plural(monkeypatch, capsys):
    monkeypatch.setenv(progress.MODE_VARIABLE, "line")
    list(progress.Progress("stage", 1))
    list(progress.Progress("part", 2, unit="batch"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("stage: 1 iteration in ") and second.startswith("part: 2 batches in ")
    assert counted(1, "class") == "1 class" and counted(50_000, "image", ",") == "50,000 images"


def test_what_other_processes_have_done_is_said_in_a_log_alone(monkeypatch, capsys):
    for kind, lines in (
        ("line", ["2 students: 6 iterations to do", "PD, seed 0: FID 1.2", "2 students: 6 iterations in "]),
        ("bar", []),
    ):
        monkeypatch.setenv(progress.MODE_VARIABLE, kind)
        with progress.Bar("2 students", 6) as bar:
            bar.count(6)
            bar.say("PD, seed 0: FID 1.2")
        said = capsys.readouterr().out.splitlines()
        assert len(said) == len(lines) and all(line.startswith(start) for line, start in zip(said, lines, strict=True))
