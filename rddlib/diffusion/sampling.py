"""The DDIM step, the samplers built from it, and the targets that a student learns from two of its teacher's steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import Schedule, expand_to


def _times(t: Tensor | float, z: Tensor) -> Tensor:
    return torch.as_tensor(t, device=z.device, dtype=torch.float64).expand(z.shape[0])


def ddim_step(z: Tensor, x: Tensor, t: Tensor | float, s: Tensor | float, schedule: Schedule) -> Tensor:
    """One DDIM step from z_t to z_s: z_s = alpha_s x + sigma_s (z_t - alpha_t x)/sigma_t  (Eq. 1, Feng et al. 2024).

    z: z_t, x: its denoised image, both [N, C, H, W]; t, s: numbers or [N] in [0, 1] with s < t. Returns z_s
    [N, C, H, W]; with the continuous schedule, s = 0 returns x.
    """
    t, s = _times(t, z), _times(s, z)
    alpha_t, sigma_t = expand_to(schedule.alpha(t), z), expand_to(schedule.sigma(t), z)
    alpha_s, sigma_s = expand_to(schedule.alpha(s), z), expand_to(schedule.sigma(s), z)
    return alpha_s * x + sigma_s * ((z - alpha_t * x) / sigma_t)


def noise_step(z: Tensor, s: Tensor | float, t: Tensor | float, schedule: Schedule, eps: Tensor) -> Tensor:
    """Add fresh noise to z_s: a sample of p(z_t | z_s), t >= s.

        z_t = (alpha_t/alpha_s) z_s + sigma_{t|s} eps,    sigma_{t|s}^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2

    (Section 2.1 of the notes on Meng et al. 2022). z, eps: [N, C, H, W], eps standard normal; s, t: numbers or [N] in
    [0, 1] with s <= t and s < 1.
    """
    s, t = _times(s, z), _times(t, z)
    ratio = schedule.alpha(t) / schedule.alpha(s)
    variance = schedule.sigma(t).square() - (ratio * schedule.sigma(s)).square()
    return expand_to(ratio, z) * z + expand_to(variance.clamp(min=0).sqrt(), z) * eps


Callback = Callable[[int, float, Tensor, Tensor], None]


@torch.no_grad()
def ddim_sample(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    y: Tensor | None = None,
    clip: bool = True,
    guidance: Tensor | float | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM sampler: steps of Eq. 1, Feng et al. 2024, from t = 1 over 1 - 1/steps, ..., 1/steps to 0.

    noise: [N, C, H, W], standard normal; steps >= 1; y: [N] labels or None; clip: clamp each x to [-1, 1], as the papers'
    code does and their Eq. 1 does not (latents never are); guidance: weight w, a number or [N], or None for no guidance;
    callback(k, t, z_t, x) is called before step k = 0, 1, ...
    Returns images [N, C, H, W], in [-1, 1] with clip. Raises ValueError for steps < 1 and for a model that cannot be guided.
    """
    z = noise
    for k, i in enumerate(_countdown(steps)):
        x = _estimate(denoiser, z, k, i / steps, y, guidance, clip, callback)
        z = ddim_step(z, x, i / steps, (i - 1) / steps, denoiser.schedule)
    return z.clamp(-1, 1) if _clips(denoiser, clip) else z


@torch.no_grad()
def stochastic_sample(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    y: Tensor | None = None,
    clip: bool = True,
    guidance: Tensor | float | None = None,
    fresh: Callable[[int], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Stochastic sampler of Meng et al. 2022: two steps down, one step of noise back up; `steps` evaluations.

    At t = i/steps, i = steps, ..., 2: a DDIM step of double length to t - 2/steps, then fresh noise up to t - 1/steps
    (`noise_step`); at t = 1/steps a DDIM step to 0. With one step it is ddim_sample. The double step needs a student
    trained for it (`rddlib.distillation.train.distill` with stochastic=True) or many steps.

    fresh(k): standard normal noise [N, C, H, W] for step k = 0, 1, ...; by default from torch's global generator. The
    other arguments, the result and the errors are those of ddim_sample.
    """
    fresh, z = fresh or (lambda k: torch.randn_like(noise)), noise
    for k, i in enumerate(_countdown(steps)):
        t, s, u = (max(i - back, 0) / steps for back in (0, 1, 2))
        x = _estimate(denoiser, z, k, t, y, guidance, clip, callback)
        z = ddim_step(z, x, t, u, denoiser.schedule)
        if i > 1:
            z = noise_step(z, u, s, denoiser.schedule, fresh(k))
    return z.clamp(-1, 1) if _clips(denoiser, clip) else z


def _clips(denoiser: Denoiser, clip: bool) -> bool:
    """Whether x is clamped: latents have no bounds."""
    return clip and denoiser.space is None


def _countdown(steps: int) -> range:
    """The numerators i = steps, ..., 1 of the times i/steps."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    return range(steps, 0, -1)


def _estimate(denoiser, z, k, t, y, guidance, clip, callback) -> Tensor:
    """The denoised image x of step k, clamped if asked for and shown to the callback."""
    x = denoiser(z, t, y, guidance)
    if _clips(denoiser, clip):
        x = x.clamp(-1, 1)
    if callback is not None:
        callback(k, t, z, x)
    return x


@torch.no_grad()
def two_step_target(
    denoiser: Denoiser,
    z: Tensor,
    t: Tensor | float,
    step: float,
    y: Tensor | None = None,
    w: Tensor | float | None = None,
) -> Tensor:
    """Target x_T [N, C, H, W]: its single DDIM step t -> t'' ends where the teacher's two steps t -> t' -> t'' end.

    z: z_t [N, C, H, W]; t: number or [N] in [2 step, 1]; step: 1/N for an N-step teacher, t' = t - step,
    t'' = t - 2 step; y, w: labels and guidance weight of both teacher steps.
    Eq. 5 of the supplement, (z_t'' - (sigma_t''/sigma_t) z_t)/(alpha_t'' - (sigma_t''/sigma_t) alpha_t), rewritten:
    with r = alpha/sigma it is the mean of the teacher's two predictions

        x_T = x_2 + (x_1 - x_2) (r' - r)/(r'' - r),        x_1 = eta(z_t, t), x_2 = eta(z_t', t')

    which does not subtract nearly equal images, so float32 suffices, and gives x_2 at t'' = 0, where r'' is infinite.
    """
    t = _times(t, z)
    return _target(denoiser, z, t, (t - step).clamp(min=0), _or_zero(t - 2 * step), y, w)


@torch.no_grad()
def stochastic_target(
    denoiser: Denoiser,
    z: Tensor,
    t: Tensor | float,
    step: float,
    y: Tensor | None = None,
    w: Tensor | float | None = None,
) -> Tensor:
    """Target x_T [N, C, H, W] for the N-step stochastic sampler, step = 1/N (Meng et al. 2022; Section 3.2 of the notes).

    `two_step_target`, except at t = step, where the sampler takes a single step: there it is the teacher's own x.
    t: number or [N] of step, 2 step, ..., 1. The teacher is an N-step model: two of its steps make the sampler's double one.
    """
    t = _times(t, z)
    first = torch.where(t > 1.5 * step, t - step, t)  # at t = step the first of the two steps is empty
    return _target(denoiser, z, t, first, _or_zero(t - 2 * step), y, w)


def _or_zero(t: Tensor) -> Tensor:
    """t, with 0 for times below 1e-9: k/N - 2/N can miss 0 by rounding."""
    return torch.where(t < 1e-9, 0.0, t)


def _target(denoiser: Denoiser, z: Tensor, t: Tensor, t1: Tensor, t2: Tensor, y, w) -> Tensor:
    """The x whose single DDIM step t -> t2 ends where the denoiser's steps t -> t1 -> t2 end; times [N]."""
    schedule = denoiser.schedule
    x1 = denoiser(z, t, y, w)
    x2 = denoiser(ddim_step(z, x1, t, t1, schedule), t1, y, w)
    r, r1, r2 = (schedule.alpha(u) / schedule.sigma(u) for u in (t, t1, t2))
    return x2 + expand_to((r1 - r) / (r2 - r), z) * (x1 - x2)
