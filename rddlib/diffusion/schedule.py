"""Noise schedules: alpha, sigma and log SNR of t, in float64.

z_t = alpha_t x + sigma_t eps with alpha_t^2 + sigma_t^2 = 1; t = 0 is the image, t = 1 is noise. Every method takes t of
any shape (tensor or number), clamps it to [0, 1], and returns float64 of that shape on t's device.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _time(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64).clamp(0.0, 1.0)  # straight to float64: float32 would round a number


@dataclass(frozen=True)
class CosineSchedule:
    """Continuous cosine schedule (Eq. 17, Nichol & Dhariwal 2021): alpha_t^2 = f(t)/f(0), f(t) = cos^2(((t+s)/(1+s)) pi/2).

    s is `offset`. alpha(1) and sigma(0) are exactly 0, alpha(0) and sigma(1) exactly 1.
    """

    offset: float = 0.008

    def _angle(self, t: Tensor | float) -> Tensor:
        return (_time(t) + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _start(self) -> float:
        return self.offset / (1 + self.offset) * (math.pi / 2)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal rate alpha_t in [0, 1]."""
        alpha = torch.cos(self._angle(t)) / math.cos(self._start)
        return torch.where(_time(t) == 1, 0.0, alpha)  # cos(pi/2) is 6e-17 in floating point

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise rate sigma_t in [0, 1], from sigma^2 = 1 - f(t)/f(0) = sin(a-a0) sin(a+a0)/cos^2(a0): exact near t = 0."""
        a, a0 = self._angle(t), self._start
        squared = torch.sin(a - a0) * torch.sin(a + a0) / math.cos(a0) ** 2
        return torch.where(_time(t) == 0, 0.0, squared.clamp(0.0, 1.0).sqrt())

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha_t^2 / sigma_t^2): +inf at t = 0, -inf at t = 1."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())


class _TableSchedule:
    """Rates from alpha^2 at t, which the subclass looks up in its table."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal rate alpha_t in [0, 1]."""
        return self._at(t).sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise rate sigma_t in [0, 1]."""
        return (1 - self._at(t)).clamp(min=0.0).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha_t^2 / sigma_t^2): +inf where sigma_t is 0, -inf where alpha_t is."""
        return self._at(t).log() - torch.log1p(-self._at(t))


@dataclass(frozen=True)
class DiscreteCosineSchedule(_TableSchedule):
    """The grid of the released RCFD/RDD code: t = k/steps, k = 0..steps, from the betas of a cosine on steps+1 steps.

    beta_k = min(1 - f((k+1)/(steps+1))/f(k/(steps+1)), 0.999) and alpha_k^2 = prod_{i<=k} (1 - beta_i), so unlike the
    continuous schedule sigma(0) > 0 and alpha(1) > 0. A time between grid points takes the nearest one.
    """

    steps: int = 1024
    offset: float = 0.008
    _alpha_bar: Tensor = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self):
        continuous = CosineSchedule(self.offset)
        f = continuous.alpha(torch.arange(self.steps + 2, dtype=torch.float64) / (self.steps + 1)).square()
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        object.__setattr__(self, "_alpha_bar", torch.cumprod(1 - betas, dim=0))

    def index(self, t: Tensor | float) -> Tensor:
        """Grid index k = round(t * steps), int64."""
        return (_time(t) * self.steps).round().long()

    def _at(self, t: Tensor | float) -> Tensor:
        k = self.index(t)
        return self._alpha_bar.to(k.device, non_blocking=True)[k]


@dataclass(frozen=True)
class BetaSchedule(_TableSchedule):
    """Any table beta_0, ..., beta_{T-1} of a variance-preserving diffusion, as models of other libraries are trained with.

    Index i is t = (i + 1)/T, with alpha_t^2 = prod_{j<=i} (1 - beta_j). alpha(0)^2 is `clean`: 1, or a little less for
    samplers that end at some noise. Between two of these times alpha^2 is interpolated linearly. Raises ValueError for an
    empty table and for numbers outside [0, 1].
    """

    betas: tuple[float, ...]
    clean: float = 1.0
    _alpha_bar: Tensor = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self):
        betas = torch.tensor(self.betas, dtype=torch.float64)
        if not len(betas) or not ((betas >= 0) & (betas <= 1)).all() or not 0 < self.clean <= 1:
            raise ValueError("betas must be at least one number, all in [0, 1], and clean in (0, 1]")
        object.__setattr__(self, "_alpha_bar", torch.cat([betas.new_tensor([self.clean]), (1 - betas).cumprod(0)]))

    @property
    def steps(self) -> int:
        """T, the number of times of the table."""
        return len(self.betas)

    def _at(self, t: Tensor | float) -> Tensor:
        position = _time(t) * self.steps  # i + 1
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-9, nearest, position)  # k/n * T can miss i + 1 by an ulp
        low = position.floor().long().clamp(max=self.steps - 1)
        alpha_bar = self._alpha_bar.to(position.device, non_blocking=True)
        return torch.lerp(alpha_bar[low], alpha_bar[low + 1], position - low)


Schedule = CosineSchedule | DiscreteCosineSchedule | BetaSchedule
SCHEDULES = {"continuous": CosineSchedule, "discrete": DiscreteCosineSchedule}  # the paper's, the released code's


def make_schedule(name: str, offset: float = 0.008) -> Schedule:
    """The schedule of that name in SCHEDULES, with the cosine's offset. Raises ValueError for another name."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}, expected one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](offset=offset)


def schedule_facts(schedule: Schedule) -> dict:
    """A schedule as JSON-serialisable facts, from which `schedule_of` makes it again."""
    if isinstance(schedule, BetaSchedule):
        return {"schedule": "betas", "betas": list(schedule.betas), "clean": schedule.clean}
    name = next(name for name, kind in SCHEDULES.items() if isinstance(schedule, kind))
    grid = {"schedule_steps": schedule.steps} if isinstance(schedule, DiscreteCosineSchedule) else {}
    return {"schedule": name, "schedule_offset": schedule.offset, **grid}


def schedule_of(facts: dict) -> Schedule:
    """The schedule that `schedule_facts` described. Files of earlier versions hold its offset only."""
    name = facts.get("schedule", "continuous")
    if name == "betas":
        return BetaSchedule(tuple(facts["betas"]), facts.get("clean", 1.0))
    if name == "discrete":
        return DiscreteCosineSchedule(facts.get("schedule_steps", 1024), facts["schedule_offset"])
    return make_schedule(name, facts["schedule_offset"])


def expand_to(coefficient: Tensor, images: Tensor) -> Tensor:
    """Reshape per-sample coefficients [N] to [N, 1, 1, ...] in the images' dtype and device, so that they broadcast."""
    coefficient = coefficient.to(device=images.device, dtype=images.dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (images.ndim - coefficient.ndim))
