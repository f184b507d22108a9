"""Network + parametrisation + schedule as one callable (z, t, y) -> x: what samplers, targets and losses work with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rddlib.schedule import Schedule, expand_to

PREDICTIONS = ("x", "eps", "v")


def to_x(prediction: Tensor, z: Tensor, t: Tensor, schedule: Schedule, kind: str) -> Tensor:
    """Turn a network's output into x.

    kind "x": the output itself; "v": x = alpha z - sigma v (Salimans & Ho 2022, App. D), well-defined for every t;
    "eps": x = (z - sigma eps)/alpha, which needs alpha_t > 0 (not the continuous schedule's t = 1).
    """
    if kind == "x":
        return prediction
    alpha, sigma = expand_to(schedule.alpha(t), z), expand_to(schedule.sigma(t), z)
    if kind == "v":
        return alpha * z - sigma * prediction
    if kind == "eps":
        return (z - sigma * prediction) / alpha
    raise ValueError(f"prediction is {kind!r}, expected one of {PREDICTIONS}")


class Denoiser(nn.Module):
    """x_theta(z_t, t, y): the denoised image.

    network(z, t) or network(z, t, y) -> image-shaped output of the given kind ("x", "eps" or "v").
    Calling it: z [N, C, H, W], t a number or [N] in [0, 1], y [N] int64 or None -> x [N, C, H, W].
    """

    def __init__(self, network: Callable, schedule: Schedule, prediction: str = "x"):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {prediction!r}, expected one of {PREDICTIONS}")
        self.network, self.schedule, self.prediction = network, schedule, prediction

    @property
    def num_classes(self) -> int:
        """Classes that the network's labels may take; 0 for an unconditional network or a plain callable."""
        return getattr(getattr(self.network, "config", None), "num_classes", 0)

    def forward(self, z: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        t = torch.as_tensor(t, device=z.device, dtype=torch.float64).expand(z.shape[0])
        output = self.network(z, t) if y is None else self.network(z, t, y)
        return to_x(output.to(z.dtype), z, t, self.schedule, self.prediction)


def as_denoiser(fn: Callable, schedule: Schedule) -> Denoiser:
    """Wrap any callable fn(z, t) -> x or fn(z, t, y) -> x, with z [N, C, H, W] and t [N] float64 in [0, 1]."""
    return Denoiser(fn, schedule, "x")
