"""What the losses compute with: one precision rule, one unit vector, one KL divergence; under every loss here."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x in the precision losses are computed in: float64 stays, every other dtype becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which matrix products keep their operands' dtype: autocast would round the relations to bf16."""
    return torch.autocast(x.device.type, enabled=False)


def length(x: Tensor, dim: int) -> Tensor:
    """l2 norm along dim, kept as size 1; infinite for a zero vector, so that x / length and its gradient are 0."""
    norm = x.norm(dim=dim, keepdim=True)
    return norm.masked_fill(norm == 0, torch.inf)


def unit(x: Tensor, dim: int) -> Tensor:
    """x with its vectors along dim l2-normalised, in float32 at least."""
    x = at_least_float32(x)
    return x / length(x, dim)


def kl(logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension (Eq. 5, Feng et al. 2024): [..., C] -> [...].

    In nats, at least 0 up to rounding. The teacher's logits get no gradient.
    """
    log_p_S = logits_student.log_softmax(dim=-1)
    log_p_T = logits_teacher.detach().log_softmax(dim=-1)
    return F.kl_div(log_p_S, log_p_T, log_target=True, reduction="none").sum(dim=-1)
