"""The denoiser: network, parametrisation, schedule and guidance as one callable (z, t, y, w) -> x."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.schedule import Schedule, expand_to
from rddlib.diffusion.unet import NO_CLASS
from rddlib.utils.errors import GuidanceWarning

PREDICTIONS = ("x", "eps", "v")


def add_noise(x: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator | None = None) -> Tensor:
    """Noisy images z_t = alpha_t x + sigma_t eps with eps ~ N(0, I); x [N, C, H, W], t [N] in [0, 1] -> [N, C, H, W]."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return expand_to(schedule.alpha(t), x) * x + expand_to(schedule.sigma(t), x) * noise


def convert(prediction: Tensor, z: Tensor, t: Tensor, schedule: Schedule, source: str, target: str) -> Tensor:
    """Convert a prediction between the parametrisations "x", "eps" and "v", for z_t = alpha x + sigma eps.

    prediction, z [N, C, H, W], t [N] in [0, 1] -> [N, C, H, W]. With v = alpha eps - sigma x (Salimans & Ho 2022,
    App. D) the conversions from v are a rotation and divide by nothing:

        x = alpha z - sigma v,    eps = sigma z + alpha v.

    From eps, x = (z - sigma eps)/alpha and v = (eps - sigma z)/alpha need alpha_t > 0, so not t = 1 of the continuous
    schedule; from x, eps = (z - alpha x)/sigma and v = (alpha z - x)/sigma need sigma_t > 0, so not its t = 0.
    Raises ValueError for another name.
    """
    for kind in (source, target):
        if kind not in PREDICTIONS:
            raise ValueError(f"prediction is {kind!r}, expected one of {', '.join(PREDICTIONS)}")
    if source == target:
        return prediction
    alpha, sigma = expand_to(schedule.alpha(t), z), expand_to(schedule.sigma(t), z)
    formulas = {
        ("v", "x"): lambda v: alpha * z - sigma * v,
        ("v", "eps"): lambda v: sigma * z + alpha * v,
        ("eps", "x"): lambda eps: (z - sigma * eps) / alpha,
        ("eps", "v"): lambda eps: (eps - sigma * z) / alpha,
        ("x", "eps"): lambda x: (z - alpha * x) / sigma,
        ("x", "v"): lambda x: (alpha * z - x) / sigma,
    }
    return formulas[source, target](prediction)


def warn_beyond(guidance: tuple[float, ...], w: Tensor | float) -> None:
    """Issue a GuidanceWarning for a number w outside `guidance`, the range (w_min, w_max) or empty."""
    if guidance and not isinstance(w, Tensor) and not guidance[0] <= w <= guidance[1]:
        low, high = guidance
        warnings.warn(
            f"guidance {w:g} is outside the range this model was trained for, {low:g} to {high:g}",
            GuidanceWarning,
            stacklevel=3,
        )


class Denoiser(nn.Module):
    """x_theta(z_t, t, y, w): the denoised image, guided by w where one is given.

    network(z, t), network(z, t, y) or network(z, t, y, w) -> image-shaped output of the given kind ("x", "eps" or "v").
    num_classes: labels y are 0..num_classes-1, 0 for an unconditional network; unconditional: whether the network also
    takes the label NO_CLASS; guidance: (w_min, w_max) if the network takes w itself, else empty. By default these three
    are read from network.config. steps: of the sampler that it was distilled for, 0 for any number of steps.
    """

    def __init__(
        self,
        network: Callable,
        schedule: Schedule,
        prediction: str = "x",
        *,
        num_classes: int | None = None,
        unconditional: bool | None = None,
        guidance: tuple[float, ...] | None = None,
        steps: int = 0,
    ):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
        self.network, self.schedule, self.prediction, self.steps = network, schedule, prediction, steps
        config = getattr(network, "config", None)
        self.num_classes = getattr(config, "num_classes", 0) if num_classes is None else num_classes
        self.unconditional = getattr(config, "label_dropout", 0) > 0 if unconditional is None else unconditional
        self.guidance = getattr(config, "guidance", ()) if guidance is None else guidance

    @property
    def space(self) -> LatentSpace | None:
        """Where a latent model draws, None for a model of pixels."""
        return getattr(self.network, "space", None)

    def within(self, space: LatentSpace | None) -> "Denoiser":
        """The same weights in another latent space, such as one of other prompts. A model of pixels stays as it is."""
        if space is None:
            return self
        network = copy.copy(self.network)
        network.space = space
        return Denoiser(network, self.schedule, self.prediction, steps=self.steps).train(self.training)

    @property
    def evaluations(self) -> int:
        """Network evaluations for one guided x: 1 if the network takes w itself, else 2."""
        return 1 if self.guidance else 2

    def check_guidable(self) -> None:
        """Raise ValueError if this model cannot be guided."""
        if self.guidance:
            return
        if not self.num_classes:
            raise ValueError(
                "this model is unconditional and cannot be guided: train one with classes and label dropout"
            )
        if not self.unconditional:
            raise ValueError("this model was trained without label dropout and cannot be guided: it knows no NO_CLASS")

    def forward(self, z: Tensor, t: Tensor | float, y: Tensor | None = None, w: Tensor | float | None = None) -> Tensor:
        """The denoised images x [N, C, H, W] of z [N, C, H, W].

        t: a number or [N], in [0, 1]; y: [N] int64 or None; w: guidance weight, a number or [N], or None for no guidance.
        With w, a network that does not take w itself is evaluated twice (Ho & Salimans 2022; Meng et al. 2022),

            x^w(z, y) = (1 + w) x(z, y) - w x(z, none),

        so that w = 0 is conditional and w = -1 unconditional. Raises ValueError if the model cannot be guided or y is
        missing. A number w outside `guidance` is a GuidanceWarning.
        """
        t = torch.as_tensor(t, device=z.device, dtype=torch.float64).expand(z.shape[0])
        if w is None:
            return self._x(z, t, y)
        self.check_guidable()
        warn_beyond(self.guidance, w)
        if y is None:
            raise ValueError("guidance is towards a class: pass labels y")
        w = torch.as_tensor(w, device=z.device, dtype=torch.float64).expand(z.shape[0])
        if self.guidance:
            return self._x(z, t, y, w)
        w = expand_to(w, z)
        return (1 + w) * self._x(z, t, y) - w * self._x(z, t, torch.full_like(y, NO_CLASS))

    def _x(self, z: Tensor, t: Tensor, y: Tensor | None, *guidance: Tensor) -> Tensor:
        """The network's output, converted to x."""
        labels = () if y is None else (y,)
        output = self.network(z, t, *labels, *guidance)
        return convert(output.to(z.dtype), z, t, self.schedule, self.prediction, "x")


def as_denoiser(fn: Callable, schedule: Schedule, num_classes: int = 0) -> Denoiser:
    """Any function fn(z, t) -> x or fn(z, t, y) -> x as a Denoiser; z [N, C, H, W], t [N] float64 in [0, 1].

    num_classes: above 0 if fn takes labels y [N] in 0..num_classes-1 and NO_CLASS for the unconditional x. Such a model
    can be guided.
    """
    return Denoiser(fn, schedule, "x", num_classes=num_classes, unconditional=num_classes > 0)
