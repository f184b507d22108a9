"""Losses on single images or pooled features: PD, CFD, and RCFD's regularisers, with the weights of PD."""

import torch
from torch import Tensor

from rddlib.diffusion.schedule import Schedule
from rddlib.losses.checks import at_least_float32, check_pair, check_same, check_temperature, check_tensor, kl

LOSS_WEIGHTS = ("truncated", "x", "eps", "v")


def loss_weight(kind: str, t: Tensor, schedule: Schedule, maximum: float | None = None) -> Tensor:
    """Weight w_t of ||x - x_theta||^2, in float64, of t's shape. It decides which squared error is minimised.

    With SNR = alpha_t^2/sigma_t^2 (Section 4, Salimans & Ho 2022): "x": 1, the error of x; "eps": SNR, that of eps;
    "v": SNR + 1, that of v ("SNR+1 weighting" there); "truncated": max(SNR, 1), the larger of those of x and eps.
    t in [0, 1], any shape; maximum: an upper bound. Without one, all but "x" are +inf where sigma_t = 0.
    Raises TypeError for an integer t, ValueError for another kind and for a maximum below 1.
    """
    if kind not in LOSS_WEIGHTS:
        raise ValueError(f"weight is {kind!r}, expected one of {', '.join(LOSS_WEIGHTS)}")
    check_tensor("t", t, "[...]")
    if maximum is not None and not maximum >= 1:
        raise ValueError(f"maximum is {maximum}, expected at least 1, the weight's lower end")
    snr = schedule.alpha(t).square() / schedule.sigma(t).square()
    weight = {"truncated": snr.clamp(min=1.0), "x": torch.ones_like(snr), "eps": snr, "v": snr + 1}[kind]
    return weight if maximum is None else weight.clamp(max=maximum)


def truncated_snr_weight(t: Tensor, schedule: Schedule, maximum: float | None = None) -> Tensor:
    """w_t = max(alpha_t^2 / sigma_t^2, 1), in float64, of t's shape (below Eq. 2, Feng et al. 2024).

    `loss_weight("truncated", ...)`: t in [0, 1], any shape. Base training bounds it by maximum = 1e3.
    """
    return loss_weight("truncated", t, schedule, maximum)


def pd_loss(
    x_student: Tensor, x_teacher: Tensor, t: Tensor, schedule: Schedule, maximum: float | None = None
) -> Tensor:
    """L_PD = w_t ||x_T - x_S||^2 / pixels, averaged over the batch (Eq. 2, Feng et al. 2024).

    x_student, x_teacher: images [N, ...] of one shape, in [-1, 1]. t: [N], in (0, 1]. The weight is
    `truncated_snr_weight(t, schedule, maximum)`; at t = 0 it is infinite unless a maximum is given, and so is the loss.
    Raises TypeError for integer tensors, ValueError for shapes or devices that differ.
    """
    check_pair("x_student", x_student, "x_teacher", x_teacher, "[N, ...]")
    check_tensor("t", t, "[N]")
    check_same("t", t, "x_student", x_student, (0,))
    squared = (at_least_float32(x_student) - at_least_float32(x_teacher.detach())).square()
    per_image = squared.reshape(len(t), -1).mean(dim=1)  # [N]
    return (truncated_snr_weight(t, schedule, maximum).to(per_image.dtype) * per_image).mean()


def cfd_loss(pooled_student: Tensor, pooled_teacher: Tensor, temperature: float = 1.0, dual: bool = False) -> Tensor:
    """L_CFD = KL(softmax(F_T / tau) || softmax(F_S)), averaged over the batch (Eq. 4, Feng et al. 2024).

    pooled_student, pooled_teacher: [N, C], average-pooled features, or class logits to distil predictions instead.
    temperature tau > 0 acts on the teacher alone (below 1 it sharpens). dual=True puts it on both sides and multiplies
    by tau^2 (Eq. 8, Sun et al. 2023, with the arguments in Eq. 4's order).
    Raises TypeError for integer tensors, ValueError for shapes or devices that differ and for tau <= 0.
    """
    check_pair("pooled_student", pooled_student, "pooled_teacher", pooled_teacher, "[N, C]")
    check_temperature(temperature)
    F_S, F_T = at_least_float32(pooled_student), at_least_float32(pooled_teacher)
    if dual:
        return temperature**2 * kl(F_S / temperature, F_T / temperature).mean()
    return kl(F_S, F_T / temperature).mean()


def entropy_loss(logits: Tensor) -> Tensor:
    """L_entropy = -sum_c p_c log p_c with p = softmax(logits), averaged over the batch (Eq. 5, Sun et al. 2023).

    logits: [N, classes] of the student's images. In [0, log(classes)], lowest for confident predictions.
    Raises TypeError for integer tensors, ValueError for another shape.
    """
    check_tensor("logits", logits, "[N, classes]")
    log_p = at_least_float32(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def diversity_loss(logits: Tensor) -> Tensor:
    """L_diversity = sum_c q_c log q_c with q the batch mean of softmax(logits) (Eq. 6, Sun et al. 2023).

    logits: [N, classes] of the student's images. In [-log(classes), 0], lowest where all classes are equally likely.
    Raises TypeError for integer tensors, ValueError for another shape.
    """
    check_tensor("logits", logits, "[N, classes]")
    log_p = at_least_float32(logits).log_softmax(dim=1)
    # finite even where a class has probability 0
    log_q = log_p.logsumexp(dim=0) - log_p.new_full((), len(logits)).log()
    return (log_q.exp() * log_q).sum()
