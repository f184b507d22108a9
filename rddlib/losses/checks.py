"""Argument checks, the debug switch and the numerics that all losses share."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

_finite_checks: ContextVar[bool] = ContextVar("finite_checks", default=False)


class NonFiniteError(ValueError):
    """A loss was given NaN or infinity inside `finite_checks()`. The message names the argument and counts the values."""


@contextmanager
def finite_checks(enabled: bool = True) -> Iterator[None]:
    """Debug switch: inside this context every loss raises NonFiniteError on NaN or infinite inputs.

    Off by default, because reading the values back stalls an accelerator. Applies to the current thread or task only.
    """
    token = _finite_checks.set(enabled)
    try:
        yield
    finally:
        _finite_checks.reset(token)


def check_tensor(name: str, x: Tensor, shape: str) -> None:
    """Raise unless x is a floating tensor with as many dimensions as `shape` names, none of them empty.

    shape goes into the message and is checked: "[N, C, H, W]" means four dimensions, "[N, ...]" one or more.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a floating-point tensor {shape}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has shape {list(x.shape)} and dtype {x.dtype}, expected a floating-point tensor {shape}"
        )
    dimensions = shape.count(",") + 1
    fits = x.ndim >= dimensions - 1 if "..." in shape else x.ndim == dimensions
    if not fits or x.numel() == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}, expected {shape}, none of them 0")
    if _finite_checks.get() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise NonFiniteError(f"{name} of shape {list(x.shape)} holds {bad} NaN or infinite of {x.numel()} values")


def check_same(name: str, x: Tensor, other_name: str, other: Tensor, dims: tuple[int, ...] | None = None) -> None:
    """Raise unless x and other are on one device and agree in the given dimensions (all of them by default)."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}, {other_name} on {other.device}: expected the same device")
    agree = x.shape == other.shape if dims is None else all(x.shape[d] == other.shape[d] for d in dims)
    if not agree:
        where = "the same shape" if dims is None else f"the same sizes in dimensions {list(dims)}"
        raise ValueError(
            f"{name} has shape {list(x.shape)}, {other_name} has shape {list(other.shape)}: expected {where}"
        )


def check_pair(
    name: str, x: Tensor, other_name: str, other: Tensor, shape: str, dims: tuple[int, ...] | None = None
) -> None:
    """Raise unless both are tensors of that `shape` on one device and agree in the given dimensions (by default in all)."""
    check_tensor(name, x, shape)
    check_tensor(other_name, other, shape)
    check_same(name, x, other_name, other, dims)


def check_temperature(temperature: float) -> None:
    """Raise unless temperature > 0 (and not NaN or infinite)."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a number above 0")


def check_maps(map_student: Tensor, map_teacher: Tensor, temperature: float, same_channels: bool = False) -> None:
    """Raise unless both are feature maps [N, C, H, W] of one batch, with equal channel counts if `same_channels`."""
    dims = None if same_channels else (0, 2, 3)
    check_pair("map_student", map_student, "map_teacher", map_teacher, "[N, C, H, W]", dims)
    check_temperature(temperature)


def at_least_float32(x: Tensor) -> Tensor:
    """x in the precision that losses are computed in: float64 stays, every other dtype becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """Context without autocast, which would round the relations to bf16."""
    return torch.autocast(x.device.type, enabled=False)


def length(x: Tensor, dim: int) -> Tensor:
    """L2 norm along dim, kept as size 1. Infinite for a zero vector, so that x / length and its gradient are 0."""
    norm = x.norm(dim=dim, keepdim=True)
    return norm.masked_fill(norm == 0, torch.inf)


def unit(x: Tensor, dim: int) -> Tensor:
    """x with its vectors along dim L2-normalised, in float32 or float64."""
    x = at_least_float32(x)
    return x / length(x, dim)


def kl(logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension (Eq. 5, Feng et al. 2024): [..., C] -> [...].

    In nats, at least 0 up to rounding. No gradient flows to the teacher's logits.
    """
    log_p_S = logits_student.log_softmax(dim=-1)
    log_p_T = logits_teacher.detach().log_softmax(dim=-1)
    return F.kl_div(log_p_S, log_p_T, log_target=True, reduction="none").sum(dim=-1)
