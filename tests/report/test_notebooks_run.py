"""Notebooks that fail, several at a time, and real signals to the command that runs them."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from rddlib.report import notebooks as runner
from rddlib.report.notebooks import Prefixed, failing_cell, run_study
from rddlib.study.folder import STUDY_FILE
from rddlib.utils.errors import Interrupted, UserError

FAILS = """a = 1


def divide(b):
    return a / b


divide(0)"""


def notebook(folder: Path, name: str, *cells: str) -> Path:
    """A notebook with the series' parameters and these cells."""
    parameters = nbformat.v4.new_code_cell('profile = "digits"\nseed = 0\nout = ""', metadata={"tags": ["parameters"]})
    cells = [parameters, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path = folder / f"{name}.ipynb"
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def series(tmp_path, monkeypatch):
    """Makes the given notebooks the whole series."""

    def make(**cells: list[str]) -> Path:
        folder = tmp_path / "series"
        folder.mkdir()
        files = [notebook(folder, name.removeprefix("n"), *sources) for name, sources in cells.items()]
        monkeypatch.setattr(runner, "notebook_files", lambda: files)
        return tmp_path / "out"

    return make


def outputs(path: Path) -> list:
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def test_notebooks_run_in_this_python_whatever_kernels_the_user_has(series, tmp_path, monkeypatch, capfd):
    """A "python3" kernel of another environment goes before one's own in Jupyter's folders."""
    foreign = tmp_path / "jupyter/kernels/python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    out = series(n01_where=["import sys; print(sys.executable)"])
    run_study("smoke", {}, out)
    assert [o.text.strip() for o in outputs(out / "notebooks/01_where.ipynb")] == [sys.executable]
    assert "01_where: running (1 of 1)" in capfd.readouterr().out


def test_a_notebook_is_done_for_the_students_that_it_showed(tmp_path):
    path = notebook(tmp_path, "01_a", "1")

    def key(**run) -> str:
        (tmp_path / STUDY_FILE).write_text(
            json.dumps({"config": {"name": "digits", "run": {"shipped": "start"} | run}})
        )
        return runner._done_before(path, tmp_path)[0]

    assert key() == key(threads=3) != key(shipped="earlier")


# failing cells


def test_a_failing_cell_is_shown_and_kept(series, capfd):
    out = series(n01_fails=["print('before')", FAILS, "print('never')"], n02_after=["1"])
    with pytest.raises(UserError, match=r"01_fails.ipynb failed in cell 4: ZeroDivisionError: division by zero; see "):
        run_study("smoke", {}, out)
    shown = capfd.readouterr().err.splitlines()
    assert "01_fails.ipynb, cell [4]:" in shown and shown[-1] == "ZeroDivisionError: division by zero"
    assert "-->   5     return a / b" in shown and "      8 divide(0)" in shown
    kept = out / "notebooks" / "01_fails.ipynb"
    assert [o.ename for o in outputs(kept) if o.output_type == "error"] == ["ZeroDivisionError"]
    assert [o.text for o in outputs(kept) if o.output_type == "stream"] == ["before\n"]
    assert [path.name for path in kept.parent.iterdir()] == ["01_fails.ipynb"]  # 02 did not run, nothing half is left


def test_a_long_cell_is_cut_around_the_failing_line():
    class Error(Exception):
        source, exec_count, ename, evalue = "\n".join(f"x{n} = {n}" for n in range(1, 41)), 3, "NameError", "x"
        traceback = ["\x1b[31mCell \x1b[0mIn[3], line 30\x1b[0m"]

    lines = failing_cell("01_x.ipynb", Error()).splitlines()
    assert len(lines) == runner.SHOWN_LINES + 4 and lines[1] == lines[-2] == "    ..."
    assert sum(line.startswith("-->") for line in lines) == 1 and "-->  30 x30 = 30" in lines


def test_a_dead_kernel_is_named(series):
    out = series(n01_dies=["import os; os._exit(1)"])
    with pytest.raises(UserError, match="01_dies.ipynb: its kernel died"):
        run_study("smoke", {}, out)
    assert [path.name for path in (out / "notebooks").iterdir()] == ["01_dies.ipynb"]


# several at a time


@pytest.mark.slow
def test_notebooks_run_at_the_same_time_on_their_share_of_the_cores(series, capfd, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    meet = """import os, pathlib, time
    pathlib.Path(out, "{}").touch()
    while not pathlib.Path(out, "{}").exists(): time.sleep(0.05)
    print("met with", os.environ["OMP_NUM_THREADS"], "threads")"""
    source = ["if True:\n    " + meet.format(*names) for names in (("a", "b"), ("b", "a"))]
    out = series(n01_a=source[:1], n02_b=source[1:])
    run_study("smoke", {}, out, jobs=2)
    printed = capfd.readouterr().out.splitlines()
    assert {"01 | met with 2 threads", "02 | met with 2 threads"} <= set(printed)
    *lines, took = filter(None, printed)
    assert all(line.startswith(("01 | ", "02 | ")) for line in lines) and took.startswith("This run took")
    run_study("smoke", {}, out, jobs=2)
    assert capfd.readouterr().out.split("\n")[:2] == ["01_a: done before", "02_b: done before"]


@pytest.mark.ci
def test_where_one_fails_the_others_end_well_and_no_other_begins(series, capfd):
    out = series(n01_fails=["1 / 0"], n02_lasts=["import time; time.sleep(6)"], n03_waits=["1"])
    with pytest.raises(UserError, match="01_fails.ipynb failed in cell 3: ZeroDivisionError"):
        run_study("smoke", {}, out, jobs=2)
    assert "01 | ZeroDivisionError: division by zero" in capfd.readouterr().err
    done = [executed.name for executed in runner.executed_notebooks(out)]
    assert done == ["02_lasts"] and not (out / "notebooks" / "03_waits.ipynb").exists()


@pytest.mark.slow
def test_what_several_need_is_made_once_and_first(series, capfd):
    cell = "from rddlib import open_study\nstudy = open_study(profile, out, seed)\nstudy.teacher()\nprint('got it')"
    out = series(n01_a=[cell], n02_b=[cell])
    run_study("smoke", {"base.train.iterations": "5"}, out, jobs=2)
    printed = capfd.readouterr().out
    assert printed.count("base model: 5 it") == 1 == printed.count("teacher | base model")
    assert printed.count("got it") == 2 and "extractor" not in printed


def test_lines_of_several_processes_stay_whole():
    shown = io.StringIO()
    stream = Prefixed(shown, "03 | ", every=1e9)
    for text in ("a", "b\nc", "\n\r10%", "\r50%", "\r100%", "\n", "rest"):
        stream.write(text)
    assert shown.getvalue() == "03 | ab\n03 | c\n03 | 100%\n"
    eager = Prefixed(shown := io.StringIO(), "", every=0.0)
    eager.write("\r10%"), eager.write("\r20%")
    assert shown.getvalue() == "10%\n20%\n"


# signals


@pytest.mark.parametrize("cell", ["import time; time.sleep(60)", "pass"])
def test_an_interrupted_kernel_that_never_replies_is_given_up(series, monkeypatch, cell):
    """The signal comes while the cell runs, or when the kernel has heeded it in the middle of its reply."""
    out, hear = series(n01_a=[cell, "1"]), runner._Stop.hear

    def signal_on(self, message):
        hear(self, message)
        if message["msg_type"] == "execute_input" and cell == message["content"]["code"]:
            os.kill(os.getpid(), signal.SIGTERM)

    def mute(self, cell, cell_index):
        if cell.source == "pass":  # stands for a reply that does not come
            self.client.kc.shell_channel.get_msg = never

    async def never(**options):
        await asyncio.sleep(3600)

    timer = runner.threading.Timer
    monkeypatch.setattr(runner.threading, "Timer", lambda seconds, call: timer(seconds / 10, call))
    monkeypatch.setattr(runner._Stop, "hear", signal_on)
    monkeypatch.setattr(runner._Stop, "before_cell", mute)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="01_a.ipynb: "):
        run_study("smoke", {}, out)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (out / "notebooks" / ".01_a.json").exists()


def start(out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rddlib.cli", "study", "--profile", "smoke", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(
    "number, to_all, jobs, status",
    [
        pytest.param(signal.SIGINT, True, "1", 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, "1", 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, "2", 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_study_saves_leaves_no_process_and_goes_on(tmp_path, number, to_all, jobs, status):
    """Ctrl-C reaches the terminal's whole process group, kill one process; kernels are in groups of their own."""
    out, options = tmp_path / "out", ["--only", "02,03" if jobs == "2" else "02", "--jobs", jobs]
    options += ["--set", "base.train.iterations=3000", "--set", "run.save_every=0.5"]
    process = start(out, *options)
    while not list(out.glob("checkpoints/base-*.resume")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status and errors.endswith("goes on where this stopped\n"), errors
    assert "Traceback" not in errors
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert started and not alive
    again = start(out, *options)
    try:
        goes_on = next(line for line in again.stdout if "base model: " in line)
        assert "base model: going on from iteration" in goes_on
    finally:
        again.terminate()
        again.communicate(timeout=120)
