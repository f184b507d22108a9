"""The RDD objective and the training loop on two processes: one global batch, one queue, different noise."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import RDD, WEIGHTS, gradient_report
from rddlib.distillation.train import distill
from rddlib.training import TrainConfig
from rddlib.utils.distributed import rank, world_size

N = 4


def parts(weights="fixed"):
    torch.manual_seed(0)
    student = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    extractor = build_extractor("small_resnet", 1, 10).double()
    objective = RDD(extractor, 0.9, alpha=3.0, beta=0.7, queue_size=50, draws=16, per_image=4, weights=weights)
    objective = objective.double()
    x, x_T = torch.rand(2, N, 1, 8, 8, dtype=torch.float64) * 2 - 1
    return student, objective, x, x_T


def measure(student, objective, x, x_T) -> dict:
    """Two iterations on this process's share; the second compares with the queue that the first filled."""
    shared, t = torch.Generator().manual_seed(1), torch.full((len(x),), 0.5)
    for _ in range(2):
        student.zero_grad()
        objective.zero_grad()
        x_S = student(x)
        total, terms = objective(x_S, x_T, t, shared)
        seen = {name: float(value) for name, value in gradient_report(terms, x_S).items()}
        total.backward()
        objective.after_step(shared)
    flat = lambda module: torch.cat([p.grad.flatten() for p in module.parameters()]).tolist()  # noqa: E731
    return {
        "terms": {name: float(value.detach()) for name, value in terms.items()},
        "student": flat(student),
        "head": flat(objective.head),
        "seen": seen,
        "queue": objective.queue.rows.flatten().tolist(),
    }


def trained(released=()) -> dict:
    """A short distillation through the training loop: what must agree between processes, and what must not."""
    torch.manual_seed(0)
    schedule, seen = CosineSchedule(), []
    teacher = Denoiser(UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4)), schedule, "v")
    objective = RDD(build_extractor("small_resnet", 1, 10), 0.9, queue_size=50, draws=16, per_image=2)
    original = objective.terms

    def spy(x_student, x_teacher, t, generator):
        seen.append([float(x_teacher.sum()), *t.tolist()])
        return original(x_student, x_teacher, t, generator)

    objective.terms = spy
    student = distill(teacher, load_dataset("digits"), 4, objective, TrainConfig(3, 8, 1e-3), seed=0, released=released)
    weights = torch.cat([p.flatten() for p in student.parameters()])
    return {"weights": weights.tolist(), "rows": objective.queue.rows.flatten().tolist(), "seen": seen}


def worker(folder):
    torch.distributed.init_process_group("gloo")
    found, mine = {}, slice(rank() * N // 2, (rank() + 1) * N // 2)
    for weights in WEIGHTS:
        student, objective, x, x_T = parts(weights)
        student = torch.nn.parallel.DistributedDataParallel(student)
        found[weights] = measure(student, objective, x[mine], x_T[mine])
    found |= {"world": world_size(), "trained": trained(), "alike": trained(["same_seed"])}
    with open(f"{folder}/{rank()}.json", "w") as file:
        json.dump(found, file)
    torch.distributed.barrier()
    os._exit(0)  # at once: gloo's threads sometimes abort a process that tears itself down in the ordinary way


def test_two_processes_equal_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["env", "ACCELERATE_USE_CPU=true", *launch, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2))
    assert first["world"] == second["world"] == 2

    for weights in WEIGHTS:
        expected = measure(*parts(weights))
        for found in (first[weights], second[weights]):
            for part in ("student", "head", "queue"):
                close = (
                    dict(rtol=1e-9, atol=1e-12) if part != "queue" else dict(rtol=1e-6, atol=1e-7)
                )  # held in float32
                torch.testing.assert_close(torch.tensor(found[part]), torch.tensor(expected[part]), **close)
            for name in ("is_p2p", "m_p2p"):  # of the whole batch on every process
                assert abs(found["terms"][name] - expected["terms"][name]) < 1e-10
            assert found["seen"] == pytest.approx(expected["seen"], rel=1e-7)
        shares = (first[weights]["terms"]["cfd"] + second[weights]["terms"]["cfd"]) / 2
        assert abs(shares - expected["terms"]["cfd"]) < 1e-10  # each process has its part, the mean is the whole

    assert first["trained"]["weights"] == second["trained"]["weights"]
    assert first["trained"]["rows"] == second["trained"]["rows"]
    assert all(a != b for a, b in zip(first["trained"]["seen"], second["trained"]["seen"], strict=True))
    times = [[seen[1:] for seen in found["alike"]["seen"]] for found in (first, second)]
    assert times[0] == times[1] and first["alike"]["seen"] != second["alike"]["seen"]  # same times, other images
    assert len(first["trained"]["seen"][0]) == 1 + 4  # a batch of 8 is 4 for each process


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(sys.argv[1])
