"""The training loop on two processes: the same gradients as one, one artefact, and signals obeyed by both."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from two_processes import LAUNCH, environment, found_by_two, launched, leave

from rddlib.training import Checkpoints, RunConfig, TrainConfig, Trainer
from rddlib.utils.distributed import rank, world_size

CONFIG = TrainConfig(12, 8, 1e-2, lr_schedule="cosine", ema=0.9, accumulate=2)


def fit(files=None) -> dict:
    """Train on rows of a fixed table, so that the global batch is the same however many processes share it."""
    table, seen = torch.randn(100, 4, generator=torch.Generator().manual_seed(1)).double(), []

    def loss(model, step):
        x = table[step.rows]
        seen.append(len(x))
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean(), {}

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1)).double()
    trained = Trainer(CONFIG, files=files, run=RunConfig(save_every=0)).fit(network, loss, len(table))
    weights = torch.cat([p.flatten() for p in trained.parameters()])
    return {"world": world_size(), "weights": weights.tolist(), "seen": seen}


@pytest.mark.ci
def test_two_processes_train_as_one(tmp_path):
    expected = pytest.approx(fit()["weights"], rel=1e-9, abs=1e-12)
    for found in found_by_two(__file__, tmp_path):
        assert found["world"] == 2 and found["seen"] == [2] * 2 * CONFIG.iterations  # 8 images: 2 processes, 2 parts
        assert found["weights"] == expected
    # what two processes saved, one goes on from: nothing in it depends on their number
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == [12, 11]
    checkpoints.path(12).unlink()
    resumed = fit(tmp_path / "run")
    assert resumed["weights"] == expected and len(resumed["seen"]) == CONFIG.accumulate


@pytest.mark.slow
def test_the_command_on_two_processes_makes_one_artefact(tmp_path):
    options = ["--profile", "smoke", "--out", str(tmp_path / "out"), "--set", "base.train.iterations=30"]
    words = ["-m", "rddlib.cli", "train", *options, "--set"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen([*LAUNCH, *words, "run.save_every=0"], **pipes)
    while not list(tmp_path.glob("out/checkpoints/*.resume")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # the launcher passes it on
    process.communicate(timeout=120)
    assert process.returncode != 0
    log = next(tmp_path.glob("out/checkpoints/*.metrics.jsonl"))
    assert Checkpoints(log.with_suffix("").with_suffix("")).steps()
    again = launched(*words, "run.save_every=30")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("going on from iteration") == 1 and again.stdout.count("in float32") == 1
    names = sorted(p.suffix for p in tmp_path.glob("out/checkpoints/base-*"))
    assert names == [".json", ".jsonl", ".safetensors"]


@pytest.mark.ci
def test_bad_input_on_two_processes_is_said_once(tmp_path):
    done = launched("-m", "rddlib.cli", "train", "--set", "base.train.batch_size=33", "--out", str(tmp_path))
    assert done.returncode != 0 and done.stderr.count("rdd: batch_size 33 cannot be shared by 2 processes") == 1


def study_from_a_notebook(out):
    """What a notebook's cell hands to notebook_launcher."""
    from rddlib import open_study

    study = open_study("smoke", out)
    study.base()
    (study.out / f"world-{rank()}").write_text(str(world_size()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.ci
def test_a_notebook_launches_two_processes(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from accelerate import notebook_launcher
from test_distributed_training import study_from_a_notebook
notebook_launcher(study_from_a_notebook, ({str(tmp_path / "out")!r},), num_processes=2, use_port="29517")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / "out" / f"world-{k}").read_text() for k in range(2)] == ["2", "2"]
    assert len(list(tmp_path.glob("out/checkpoints/base-*.safetensors"))) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    leave(fit(Path(sys.argv[1]) / "run"), sys.argv[1])
