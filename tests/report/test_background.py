"""Trainings in processes of their own: found again, stopped, gone on with, and never mistaken for another program."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from jupyter_client.manager import KernelManager

from rddlib.report.background import Run, _line
from rddlib.study.folder import continue_study, open_study
from rddlib.utils.errors import UserError


def study_in(out, iterations):
    return continue_study("smoke", {"base.train.iterations": str(iterations), "run.log_every": "5"}, out)


def wait_for(answer, seconds=120):
    end = time.monotonic() + seconds
    while not answer():
        assert time.monotonic() < end
        time.sleep(0.1)


def pid_of(run):
    return json.loads(run._file("json").read_text())["pid"]


@pytest.fixture
def stopping():
    """Runs put in here are stopped in the end, whatever happens."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.stop()


@pytest.fixture
def other():
    """A program that has got the number that a training once had."""
    program = subprocess.Popen(["sleep", "600"])
    yield program
    program.kill()
    program.wait()


def test_it_trains_whatever_a_stale_record_says_and_the_study_finds_the_model(tmp_path, capsys, other):
    study = study_in(tmp_path / "out", 6)
    run = Run(study, "teacher")
    run._files.parent.mkdir()
    for pid in (other.pid, 2**22 - 1):
        run._file("json").write_text(json.dumps({"pid": pid, "command": []}))
        run._file("lock").touch()
        assert not run.running and run.progress()["state"] == "idle"
        said = "teacher-8: not trained yet, nor being trained in the background; a cell that asks for it trains it"
        assert str(run) == said
        run.stop()
        assert other.poll() is None
    run.start()
    assert run.running
    run.watch(every=0.1)
    assert other.poll() is None
    printed = capsys.readouterr().out
    assert "teacher-8: running, base model (1 of 2)" in printed and printed.endswith("teacher-8: done\n")
    now = run.progress()
    assert (now["state"], now["stage"], now["iteration"], now["total"]) == ("done", "PD 16 to 8 steps", 4, 4)
    assert now["loss"] > 0 and now["seconds_left"] in (0, None)
    before = study.stages.base.path.stat().st_mtime_ns
    assert study.teacher().schedule and study.stages.base.path.stat().st_mtime_ns == before
    run.start()
    assert not run.running  # nothing is left to do
    assert Run(study, "base").progress()["state"] == "done"


@pytest.mark.slow
def test_it_outlives_the_kernel_and_is_found_again(tmp_path, stopping):
    study = study_in(tmp_path / "out", 20_000)
    stopping.append(run := Run(study, "base"))
    code = f"""
from rddlib.report.background import Run
from rddlib import open_study
run = Run(open_study("smoke", {str(study.out)!r}), "base")"""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask(manager, code + ".start()")
        pid = pid_of(run)
        wait_for(lambda: run.progress()["iteration"] > 5)
        manager.restart_kernel(now=True)  # kills the kernel, group and all
        answer = ask(manager, code + ".start()\npanel = run.watch()\nprint(run.running, panel.children[0].value)")
        running, shown = answer.split()
        assert running == "True" and pid_of(run) == pid and run.running
        more = "import time\nfor _ in range(600):\n    time.sleep(0.1)\n    if panel.children[0].value > {}: break\nprint(panel.children[1].value)"
        line = ask(manager, more.format(int(shown) + 5))
        assert line.startswith("base: running, base model (1 of 1), iteration ") and "left" in line
    finally:
        manager.shutdown_kernel()
    assert run.running and int(run.progress()["images_per_second"]) > 0
    assert found_by_another_process(study.out) == f"True {pid}"
    run.stop()
    reached = run.progress()
    assert reached["state"] == "stopped" and "a checkpoint holds it" in reached["message"]
    run.start()
    wait_for(lambda: "base model: going on from iteration" in run.log.read_text())
    assert pid_of(run) != pid and run.progress()["iteration"] >= reached["iteration"]


def ask(manager, code):
    """What the code prints in that kernel, to somebody who could answer."""
    client, printed = manager.client(), []

    def hear(message):
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            printed.append(content["text"])

    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        reply = client.execute_interactive(code, output_hook=hear, timeout=180)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed).strip()
    finally:
        client.stop_channels()


def found_by_another_process(out):
    """It starts the training too: what runs is found instead."""
    code = """import json, sys
from rddlib.report.background import Run
from rddlib import open_study
run = Run(open_study("smoke", sys.argv[1]), "base").start()
print(run.running, json.loads(run._file("json").read_text())["pid"])"""
    return subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True).stdout.strip()


@pytest.mark.ci
def test_a_failed_training_says_why_in_one_line(tmp_path):
    study = study_in(tmp_path / "out", 6)
    base = study.stages.base.path
    base.parent.mkdir()
    base.with_name(f"{base.stem}.00000002.resume").write_bytes(b"nothing")
    run = Run(study, "base").start()
    with pytest.raises(UserError, match="base failed: all checkpoints .* are damaged: delete them"):
        run.watch(every=0.1)
    assert "\n" not in str(run) and run.progress()["state"] == "failed"


@pytest.mark.ci
def test_a_killed_training_is_no_running_one_and_goes_on(tmp_path, stopping):
    study = continue_study("smoke", {"base.train.iterations": "5000", "run.save_every": "0.2"}, tmp_path / "out")
    stopping.append(run := Run(study, "base").start())
    wait_for(lambda: list(study.out.glob("checkpoints/*.resume")))
    os.kill(pid_of(run), signal.SIGKILL)
    wait_for(lambda: not run.running)
    now = run.progress()
    assert now["state"] == "failed" and "killed or crashed" in now["message"]
    run.start()
    wait_for(lambda: "base model: going on from iteration" in run.log.read_text())


def test_what_there_is_to_train(tmp_path):
    study = open_study("smoke", tmp_path / "out")
    whole = Run(study, "student", "rdd")
    assert [stage.kind for stage in whole.stages] == ["base", "halving", "extractor", *["rdd"] * 3]
    assert whole.name == "student-rdd-1" and whole.command == ["distill", "--objective", "rdd", "--to", "1"]
    assert whole.progress()["total"] == 60 and Run(study, "extractor").progress()["total"] == 40
    assert Run(study, "teacher", 16).command == ["train"]
    assert "extractor" not in {stage.kind for stage in Run(study, "student", "pd", 2).stages}
    for wrong, said in {
        ("student",): "cannot train 'student'",
        ("x", 1): "cannot train 'x 1'",
        ("teacher", 3): "16, 8",
        ("student", "sgd"): "unknown method 'sgd'",
    }.items():
        with pytest.raises(UserError, match=said):
            Run(study, *wrong)
    assert not (study.out / "background").exists()


def test_what_comes_with_the_package_is_said_to(tmp_path):
    run = Run(open_study("digits", tmp_path / "out"), "teacher")
    assert str(run) == "teacher-8: comes with rddlib, taken when a cell asks for it"


def test_progress_fits_on_a_line():
    now = {
        "state": "running",
        "stage": "base model",
        "number": 1,
        "stages": 2,
        "iteration": 30,
        "total": 90,
        "loss": 0.25,
        "images_per_second": 8.0,
        "seconds_left": 3725.0,
        "message": "",
    }
    said = "teacher-8: running, base model (1 of 2), iteration 30 of 90, loss 0.25, 8 images/s, 62 min left"
    assert _line("teacher-8", now) == said
