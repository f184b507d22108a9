"""Losses between sets of features: torch-fidelity's Fréchet distance, literal loops, invariances, gradients in float64."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from rddlib.losses import frechet_loss, kernel_loss


def features(seed, rows, channels=5):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_is_torch_fidelitys_distance_of_batch_and_memory_together():
    student, teacher, old_student, old_teacher = (features(k, n) for k, n in enumerate((12, 12, 30, 30)))
    statistics = []
    for rows in (torch.cat([old_student, 2 * student]), torch.cat([old_teacher, teacher + 1])):
        statistics.append({"mu": rows.mean(0).numpy(), "sigma": np.cov(rows.numpy(), rowvar=False)})
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    found = frechet_loss(2 * student, teacher + 1, old_student, old_teacher)
    assert math.isclose(float(found), expected, rel_tol=1e-6)


def test_frechet_is_nearly_zero_for_equal_sets_and_finite_with_fewer_rows_than_channels():
    rows = features(0, 40)
    assert abs(float(frechet_loss(rows, rows))) < 1e-4
    few = features(1, 3).requires_grad_()
    frechet_loss(few, features(2, 3)).backward()
    assert torch.isfinite(few.grad).all()


@pytest.mark.parametrize("loss", [frechet_loss, kernel_loss])
def test_gradients_go_to_the_student_alone(loss):
    student, teacher = features(0, 9, 3).requires_grad_(), features(1, 9, 3).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda rows: loss(rows, teacher.detach()), student)


def test_kernel_loss_is_its_double_sum_and_knows_no_order():
    S, T, tau = features(0, 6), features(1, 6), 0.7

    def k(a, b):
        return math.exp(-float((a - b).norm()) / (tau * 5**0.5))

    pairs = [sum(k(a, b) for a in A for b in B) / 36 for A, B in ((S, S), (T, T), (S, T))]
    expected = pairs[0] + pairs[1] - 2 * pairs[2]
    assert math.isclose(float(kernel_loss(S, T, tau)), expected, rel_tol=1e-9)
    assert math.isclose(float(kernel_loss(S.flip(0), T, tau)), expected, rel_tol=1e-9)
    assert float(kernel_loss(S, S.flip(0))) == pytest.approx(0, abs=1e-12)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected the same shape"):
        frechet_loss(features(0, 4), features(0, 5))
    with pytest.raises(ValueError, match="1 rows in all"):
        frechet_loss(features(0, 1), features(0, 1))
    with pytest.raises(ValueError, match="temperature is 0"):
        kernel_loss(features(0, 4), features(0, 4), 0)
