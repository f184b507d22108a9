"""Power cuts, signals, damaged files and full disks: nothing is lost but the iterations since the last checkpoint."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import RDD
from rddlib.distillation.train import distill
from rddlib.training import Checkpoints, RunConfig, TrainConfig
from rddlib.utils.checkpoint import digest, load_checkpoint, save_checkpoint
from rddlib.utils.errors import Interrupted, UserError

CONFIG = TrainConfig(40, 8, 1e-3, lr_schedule="cosine", ema=0.9)


def train(files=None, config=CONFIG, width=8, **run):
    """A short RDD distillation with queue, head, EMA and dropout: the sha256 of all that it trains."""
    torch.manual_seed(0)
    unet = UNetConfig(8, 1, width, (1,), 1, attention=(), groups=4, dropout=0.1)
    teacher = Denoiser(UNet(unet), CosineSchedule(), "v")
    objective = RDD(build_extractor("small_resnet", 1, 10), 0.9, queue_size=50, draws=16, per_image=2)
    run = RunConfig(**{"save_every": 0, "log_every": 1, **run})
    student = distill(teacher, load_dataset("digits"), 2, objective, config, seed=0, files=files, run=run)
    parts = {"student": student.state_dict(), "objective": objective.state_dict()}
    return digest({f"{m}/{k}": v for m, state in parts.items() for k, v in state.items()}, "")


@pytest.fixture(scope="module")
def whole():
    return train()


# kill -9


def in_a_child(folder, name):
    """Train in a forked process, which leaves its result in a file; returns its number."""
    if pid := os.fork():
        return pid
    result = train(folder / name)
    (folder / f"{name}.result").write_text(result)
    os._exit(0)


def survive_kills(folder, kills):
    """Kill `kills` trainings at random moments, let each go on, and print what came out as JSON."""
    torch.set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    out = os.dup(1)
    os.dup2(devnull, 1)
    expected, began = train(), time.monotonic()
    train(folder / "timed")
    length, chance, killed_at, results = time.monotonic() - began, random.Random(0), [], []
    for kill in range(kills):
        pid = in_a_child(folder, f"run{kill}")
        time.sleep(chance.uniform(0, length))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed_at.append(next(iter(Checkpoints(folder / f"run{kill}").steps()), 0))
        assert os.waitpid(in_a_child(folder, f"run{kill}"), 0)[1] == 0
        results.append((folder / f"run{kill}.result").read_text())
        lines = (folder / f"run{kill}.metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(CONFIG.iterations))
    os.write(out, json.dumps({"expected": expected, "results": results, "killed_at": killed_at}).encode())


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["results"] == [found["expected"]] * 20
    assert len(set(found["killed_at"]) - {0, CONFIG.iterations}) >= 3, found["killed_at"]  # it did hit running ones


# damaged files


@pytest.fixture
def stopped(tmp_path):
    """A training cut off at iteration 30, with its last three checkpoints."""
    save, files = Checkpoints.save, tmp_path / "run"

    def stop(self, tensors, info, step):
        save(self, tensors, info, step)
        if step == 30:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", stop)
        train(files, keep=3)
    assert Checkpoints(files).steps() == [30, 29, 28]
    return files


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[-1000] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stopped, how, whole, capsys):
    damage(Checkpoints(stopped).path(30), how)
    assert train(stopped, keep=3) == whole
    printed = capsys.readouterr().out
    assert "run.00000030.resume is damaged" in printed and "using the one before it" in printed
    assert "going on from iteration 29" in printed


def test_if_all_are_damaged_nothing_is_overwritten(stopped):
    for step in Checkpoints(stopped).steps():
        damage(Checkpoints(stopped).path(step), "flipped")
    before = {p: p.read_bytes() for p in stopped.parent.iterdir()}
    with pytest.raises(UserError, match="are damaged: delete them"):
        train(stopped)
    assert {p: p.read_bytes() for p in stopped.parent.iterdir()} == before


def test_foreign_checkpoints_are_refused(stopped):
    before = sorted(stopped.parent.iterdir())
    with pytest.raises(UserError, match="another run"):
        train(stopped, config=TrainConfig(41, 8, 1e-3))
    with pytest.raises(UserError, match="another architecture"):
        train(stopped, width=16)
    save_checkpoint(Checkpoints(stopped).path(31), {"x": torch.zeros(2)}, {"kind": "something else"})
    with pytest.raises(UserError, match="another run"):
        train(stopped)
    assert set(before) < set(stopped.parent.iterdir())


# full disks


def test_a_failing_write_stops_cleanly_with_the_last_checkpoint_whole(tmp_path, monkeypatch, whole):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write .*No space left on device"):
        patch.setattr(os, "fsync", full)
        train(tmp_path / "run")
    assert not list(tmp_path.glob(".run*")) and Checkpoints(tmp_path / "run").steps()
    assert train(tmp_path / "run") == whole


def test_a_disk_that_is_really_full(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        train(disk / "run", keep=1, config=TrainConfig(1, 8, 1e-3))
        size = Checkpoints(disk / "run").path(1).stat().st_size
        Checkpoints(disk / "run").clear()
        room = shutil.disk_usage(disk).free - int(3.5 * size)  # for two checkpoints, not for the third beside them
        (disk / "ballast").write_bytes(bytes(room))
        with pytest.raises(UserError, match="No space left on device"):
            train(disk / "run", keep=9)
        steps = Checkpoints(disk / "run").steps()
        assert steps[0] >= 2 and all(load_checkpoint(Checkpoints(disk / "run").path(s)) for s in steps)
        (disk / "ballast").unlink()
        assert train(disk / "run") == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(tmp_path, number, whole, monkeypatch):
    before = signal.getsignal(number)
    original = RDD.after_step

    def interrupt(self, generator):
        original(self, generator)
        if self.queue.pushed == 16 * 10:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(RDD, "after_step", interrupt)
        train(tmp_path / "run", save_every=1e9)
    assert stop.value.signal == number and "iteration" in str(stop.value)
    assert Checkpoints(tmp_path / "run").steps() and signal.getsignal(number) == before
    assert train(tmp_path / "run", save_every=1e9) == whole


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_stops_on_a_signal_and_goes_on(tmp_path, number, status):
    command = [
        sys.executable,
        "-m",
        "rddlib.cli",
        "train",
        "--profile",
        "smoke",
        "--out",
        str(tmp_path / "out"),
        "--set",
        "base.train.iterations=100",
        "--set",
        "run.save_every=0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/checkpoints/*.resume")):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.count("\n") == 1 and "goes on where this stopped" in errors, errors
    assert list(tmp_path.glob("out/checkpoints/*.resume"))
    again = subprocess.run([*command[:-1], "run.save_every=30"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "going on from iteration" in again.stdout, again.stderr
    assert not list(tmp_path.glob("out/checkpoints/*.resume")) and list(tmp_path.glob("out/checkpoints/base-*.json"))


if __name__ == "__main__":
    from pathlib import Path

    survive_kills(Path(sys.argv[1]), 20)
