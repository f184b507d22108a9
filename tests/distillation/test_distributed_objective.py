"""The RDD objective and its training on two processes: one global batch, one queue, different noise."""

import sys
from functools import partial

import pytest
import torch
from tiny import QUEUE, tiny_denoiser
from two_processes import found_by_two, leave

from rddlib.data import load_dataset
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import RDD, gradient_report
from rddlib.distillation.train import distill
from rddlib.training import TrainConfig, Trainer
from rddlib.utils.distributed import rank

N = 4
double = partial(torch.tensor, dtype=torch.float64)
FORMS = {"fixed": {"impl": "chunked"}, "balanced": {"weights": "balanced"}}


def parts(**options):
    torch.manual_seed(0)
    student = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    numbers = {"alpha": 3.0, "beta": 0.7, "queue_size": 50, "draws": 16, "per_image": 4}
    objective = RDD(build_extractor("small_resnet", 1, 10), 0.9, **numbers, **options).double()
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
    return {
        "terms": {name: float(value.detach()) for name, value in terms.items()},
        "student": [p.grad.tolist() for p in student.parameters()],
        "head": [p.grad.tolist() for p in objective.head.parameters()],
        "seen": seen,
        "queue": objective.queue.rows.tolist(),
    }


def trained(same_noise) -> dict:
    """A short distillation through the training loop: what must agree between processes, and what must not."""
    teacher, seen = tiny_denoiser(), []
    objective = RDD(build_extractor("small_resnet", 1, 10), 0.9, **QUEUE)
    original = objective.terms

    def spy(x_student, x_teacher, t, generator):
        seen.append([float(x_teacher.sum()), *t.tolist()])
        return original(x_student, x_teacher, t, generator)

    objective.terms = spy
    trainer = Trainer(TrainConfig(3, 8, 1e-3), same_noise=same_noise)
    student = distill(teacher, load_dataset("digits"), 4, objective, trainer)
    weights = [p.tolist() for p in student.parameters()]
    return {"weights": weights, "rows": objective.queue.rows.tolist(), "seen": seen}


def work() -> dict:
    torch.distributed.init_process_group("gloo")
    found, mine = {}, slice(rank() * N // 2, (rank() + 1) * N // 2)
    for name, options in FORMS.items():
        student, objective, x, x_T = parts(**options)
        found[name] = measure(torch.nn.parallel.DistributedDataParallel(student), objective, x[mine], x_T[mine])
    return found | {"trained": trained(False), "alike": trained(True)}


@pytest.mark.ci
def test_two_processes_equal_one(tmp_path):
    first, second = found_by_two(__file__, tmp_path)
    for name, options in FORMS.items():
        expected = measure(*parts(**options))
        for found in (first[name], second[name]):
            for part in ("student", "head"):
                for ours, theirs in zip(found[part], expected[part], strict=True):
                    torch.testing.assert_close(double(ours), double(theirs), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(torch.tensor(found["queue"]), torch.tensor(expected["queue"]))  # in float32
            for term in ("is_p2p", "m_p2p"):  # of the whole batch on every process
                assert abs(found["terms"][term] - expected["terms"][term]) < 1e-10
            assert found["seen"] == pytest.approx(expected["seen"], rel=1e-7)
        shares = (first[name]["terms"]["cfd"] + second[name]["terms"]["cfd"]) / 2
        assert abs(shares - expected["terms"]["cfd"]) < 1e-10  # each process has its part, the mean is the whole

    assert all(first["trained"][part] == second["trained"][part] for part in ("weights", "rows"))
    assert len(first["trained"]["seen"][0]) == 1 + 4  # a batch of 8 is 4 for each process
    assert all(a != b for a, b in zip(first["trained"]["seen"], second["trained"]["seen"], strict=True))
    times = [[seen[1:] for seen in found["alike"]["seen"]] for found in (first, second)]
    assert times[0] == times[1] and first["alike"]["seen"] != second["alike"]["seen"]  # same times, other images


if __name__ == "__main__":
    torch.set_num_threads(1)
    leave(work(), sys.argv[1])
