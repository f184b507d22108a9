"""Losses between the distributions of two sets of features: candidates beside the papers' terms, from newer work."""

import torch
from torch import Tensor

from rddlib.losses.checks import at_least_float32, check_pair, check_temperature, no_autocast


def frechet_loss(
    student: Tensor, teacher: Tensor, memory_student: Tensor | None = None, memory_teacher: Tensor | None = None
) -> Tensor:
    """Fréchet distance between Gaussians fitted to the student's and the teacher's features,

        |mu_S - mu_T|^2 + tr(C_S + C_T - 2 (C_T^(1/2) C_S C_T^(1/2))^(1/2))        (Eq. 6, Heusel et al. 2017),

    made a loss as in FD-loss (arXiv 2604.28190): the moments are those of this batch and of a memory of earlier ones.

    Args:
        student, teacher: [N, C] of this batch; the gradient goes to student.
        memory_student, memory_teacher: [M, C] of earlier batches, without gradient; M may be 0.

    Raises ValueError for shapes that differ and for fewer than 2 rows in all.
    """
    check_pair("student", student, "teacher", teacher, "[N, C]")
    with no_autocast(student):
        mu_S, C_S = _moments(student, memory_student)
        mu_T, C_T = _moments(teacher.detach(), memory_teacher)
        values, vectors = torch.linalg.eigh(C_T)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # C_T^(1/2)
        # The floor keeps the root's gradient finite where rows are fewer than channels.
        floor = 1e-6 * C_T.diagonal().sum()
        mixed = (torch.linalg.eigvalsh(root @ C_S @ root).clamp(min=0) + floor.square()).sqrt().sum()
        return (mu_S - mu_T).square().sum() + C_S.diagonal().sum() + C_T.diagonal().sum() - 2 * mixed


def _moments(rows: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] of all rows."""
    rows = at_least_float32(rows)
    if memory is not None and len(memory):
        rows = torch.cat([memory.detach().to(rows.dtype), rows])
    if len(rows) < 2:
        raise ValueError(f"features have {len(rows)} rows in all, expected at least 2")
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def kernel_loss(student: Tensor, teacher: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Squared maximum mean discrepancy between the student's and the teacher's features,

        E k(s, s') + E k(t, t') - 2 E k(s, t),        k(a, b) = exp(-|a - b| / (bandwidth sqrt(C)))

    over all pairs of the batch (Gretton et al. 2012, with the Laplace kernel that inductive moment matching, arXiv
    2503.07565, compares sets of images with). It asks for the right set of images, not for the right one from each noise.

    Args:
        student, teacher: [N, C]; the gradient goes to student.
        bandwidth: above 0, in units of a feature's own scale.

    In [0, 2]. Raises ValueError for shapes that differ and a bandwidth of 0 or less.
    """
    check_pair("student", student, "teacher", teacher, "[N, C]")
    check_temperature(bandwidth)
    S, T = at_least_float32(student), at_least_float32(teacher.detach())
    with no_autocast(student):
        return _mean_kernel(S, S, bandwidth) + _mean_kernel(T, T, bandwidth) - 2 * _mean_kernel(S, T, bandwidth)


def _mean_kernel(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    squared = (a[:, None] - b[None]).square().sum(dim=2)  # [N, N]
    distance = (squared + torch.finfo(a.dtype).tiny).sqrt()  # whose gradient is 0, not NaN, between a row and itself
    return (-distance / (bandwidth * a.shape[1] ** 0.5)).exp().mean()
