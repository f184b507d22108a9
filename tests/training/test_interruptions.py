"""Power cuts, signals, damaged files and full disks: nothing is lost but the iterations since the last checkpoint."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import QUEUE, conditional_denoiser, tiny_denoiser
from two_processes import environment

from rddlib.data import load_dataset
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import PD, RDD
from rddlib.distillation.train import distill, distill_guidance, takes_guidance, train_base, train_classifier
from rddlib.training import Checkpoints, Epochs, RunConfig, TrainConfig, Trainer
from rddlib.training.stopping import StopRequests
from rddlib.utils.checkpoint import digest, save_checkpoint
from rddlib.utils.errors import Interrupted, UserError

DIGITS = load_dataset("digits")
CONFIG = TrainConfig(12, 8, 1e-3, lr_schedule="cosine", warmup=3)
EACH = RunConfig(save_every=0, log_every=1)  # a checkpoint after each iteration
NEVER = replace(EACH, save_every=1e9)


def classifier():
    torch.manual_seed(0)
    return build_extractor("small_resnet", 1, 10)


def classified(trainer):
    return (train_classifier(classifier(), lambda out: out.logits, DIGITS, trainer),)


def distilled(trainer, width=8):
    """RDD with queue, head, EMA and dropout."""
    teacher, objective = tiny_denoiser(width=width, dropout=0.1), RDD(classifier(), 0.9, **QUEUE)
    return distill(teacher, DIGITS, 2, objective, trainer), objective


def halved(trainer, **options):
    teacher = conditional_denoiser()
    return (distill(teacher, DIGITS, 2, PD(teacher.schedule), trainer, **options),)


def guided(trainer):
    teacher = conditional_denoiser()
    return (distill_guidance(teacher, takes_guidance(teacher, (0.0, 4.0)), DIGITS, trainer),)


# what can be stopped: (recipe, changes of the configuration, changes of the run)
RECIPES = {
    "base model": (lambda t: (train_base(tiny_denoiser(dropout=0.1), DIGITS, t),), {"ema": 0.9}, {}),
    "classifier": (classified, {"optimizer": "sgd", "weight_decay": 0.1}, {}),
    "halving": (halved, {"accumulate": 2}, {"channels_last": "always"}),
    "RDD": (distilled, {"ema": 0.9}, {}),
    "guidance, stage one": (guided, {}, {}),
    "stochastic student": (lambda t: halved(t, stochastic=True), {}, {}),
}


def train(recipe, files=None, run=EACH, **changes):
    """Train it: the sha256 of all that comes out."""
    make, config, layout = RECIPES[recipe]
    trainer = Trainer(replace(CONFIG, **config), files=files, run=replace(run, **layout))
    states = [module.state_dict() for module in make(trainer, **changes)]
    return digest({f"{k}/{name}": value for k, state in enumerate(states) for name, value in state.items()}, "")


@pytest.fixture(scope="module")
def whole():
    """whole(recipe): the sha256 of a training that nothing stopped."""
    known = {}
    return lambda recipe: known[recipe] if recipe in known else known.setdefault(recipe, train(recipe))


def stop_at(patch, moment, stop):
    """Have `stop` called as iteration `moment` begins."""
    batch = Epochs.batch

    def stopping(self, step):
        if step == moment:
            stop()
        return batch(self, step)

    patch.setattr(Epochs, "batch", stopping)


def killed():
    raise KeyboardInterrupt  # nothing is saved any more


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_was_stopped_goes_on_and_ends_with_the_same_bits(recipe, how, whole, tmp_path, monkeypatch):
    files, number = tmp_path / "run", signal.SIGTERM
    with monkeypatch.context() as patch:
        if how == "killed":
            stop_at(patch, 7, killed)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, files)
            assert Checkpoints(files).steps() == [7, 6]
        else:
            before = signal.getsignal(number)
            stop_at(patch, 4, lambda: os.kill(os.getpid(), number))
            with pytest.raises(Interrupted, match="stopped after iteration 5, a checkpoint holds it") as stop:
                train(recipe, files, NEVER)
            assert stop.value.signal == number and signal.getsignal(number) == before
            assert Checkpoints(files).steps() == [5]
    assert train(recipe, files) == whole(recipe)
    lines = Path(f"{files}.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(CONFIG.iterations))


def test_a_signal_in_the_last_iteration_is_obeyed_too(whole, tmp_path, monkeypatch):
    files = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped after iteration 12, a checkpoint"):
        stop_at(patch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train("base model", files, NEVER)
    assert Checkpoints(files).steps() == [12] and train("base model", files) == whole("base model")


def test_several_processes_agree_now_and_then_and_at_the_last_iteration(monkeypatch):
    monkeypatch.setattr("rddlib.training.stopping.world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    stop = StopRequests(torch.device("cpu"))
    stop._note(signal.SIGTERM, None)
    assert [stop.requested(number, number == 12) for number in range(9, 13)] == [0, 15, 0, 15]


# kill -9


def in_a_child(folder, name):
    """Train in a forked process, which leaves its result in a file; returns its number."""
    if pid := os.fork():
        return pid
    result = train("RDD", folder / name)
    (folder / f"{name}.result").write_text(result)
    os._exit(0)


def survive_kills(folder, kills):
    """Kill `kills` trainings at random moments, let each go on, and print what came out as JSON."""
    torch.set_num_threads(1)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    expected, began = train("RDD"), time.monotonic()
    train("RDD", folder / "timed")
    length, chance, killed_at, results = time.monotonic() - began, random.Random(0), [], []
    for kill in range(kills):
        pid = in_a_child(folder, f"run{kill}")
        time.sleep(chance.uniform(0, length))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed_at.append(next(iter(Checkpoints(folder / f"run{kill}").steps()), 0))
        assert os.waitpid(in_a_child(folder, f"run{kill}"), 0)[1] == 0
        results.append((folder / f"run{kill}.result").read_text())
    os.write(out, json.dumps({"expected": expected, "results": results, "killed_at": killed_at}).encode())


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(tmp_path):
    command, options = [sys.executable, __file__, str(tmp_path)], {"capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=500, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["results"] == [found["expected"]] * 20
    assert len(set(found["killed_at"]) - {0, CONFIG.iterations}) >= 3, found["killed_at"]  # it did hit running ones


# damaged files


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """An RDD training killed at iteration 10, with its last three checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 10, killed)
        train("RDD", tmp_path / "run", replace(EACH, keep=3))
    assert Checkpoints(tmp_path / "run").steps() == [10, 9, 8]
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stopped, how, whole, capsys):
    DAMAGES[how](Checkpoints(stopped).path(10))
    assert train("RDD", stopped) == whole("RDD")
    printed = capsys.readouterr().out
    assert "run.00000010.resume is damaged" in printed and "using the one before it" in printed
    assert "going on from iteration 9" in printed


def test_if_all_are_damaged_nothing_is_overwritten(stopped):
    for step in Checkpoints(stopped).steps():
        flip(Checkpoints(stopped).path(step))
    before = {p: p.read_bytes() for p in stopped.parent.iterdir()}
    with pytest.raises(UserError, match="are damaged: delete them"):
        train("RDD", stopped)
    assert {p: p.read_bytes() for p in stopped.parent.iterdir()} == before


def test_foreign_checkpoints_are_refused(stopped):
    before = sorted(stopped.parent.iterdir())
    with pytest.raises(UserError, match="another run"):
        train("halving", stopped)
    with pytest.raises(UserError, match="another run"):
        train("RDD", stopped, width=16)
    save_checkpoint(Checkpoints(stopped).path(11), {"x": torch.zeros(2)}, {"kind": "something else"})
    with pytest.raises(UserError, match="another run"):
        train("RDD", stopped)
    assert set(before) < set(stopped.parent.iterdir())


# full disks


@pytest.mark.parametrize("writes", [20, 21, 22])  # of the log, of a checkpoint, of the folder
def test_a_full_disk_stops_cleanly_with_the_last_checkpoint_whole(tmp_path, monkeypatch, whole, writes):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write .*No space left on device"):
        patch.setattr(os, "fsync", full)
        train("RDD", tmp_path / "run")
    assert not list(tmp_path.glob(".run*")) and Checkpoints(tmp_path / "run").newest_whole({}) >= 5
    assert train("RDD", tmp_path / "run") == whole("RDD")


# the command


@pytest.mark.ci
def test_the_command_stops_on_a_signal_and_goes_on(tmp_path):
    words = [sys.executable, "-m", "rddlib.cli", "train", "--profile", "smoke", "--out", str(tmp_path / "out")]
    words += ["--set", "base.train.iterations=100", "--set"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    saved = lambda: max((int(p.suffixes[-2][1:]) for p in tmp_path.glob("out/checkpoints/*.resume")), default=0)  # noqa: E731
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before, process = saved(), subprocess.Popen([*words, "run.save_every=0"], **pipes)
        while saved() <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert errors.count("\n") == 1 and "goes on where this stopped" in errors, errors
    reached = saved()
    again = subprocess.run([*words, "run.save_every=30"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and f"going on from iteration {reached}" in again.stdout, again.stderr
    assert not saved() and list(tmp_path.glob("out/checkpoints/base-*.json"))


if __name__ == "__main__":
    survive_kills(Path(sys.argv[1]), 20)
