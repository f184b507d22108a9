"""One DDIM step, the sampler made of it, and the target a student learns from two of a teacher's steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from rddlib.denoiser import Denoiser
from rddlib.schedule import Schedule, expand_to


def _times(t: Tensor | float, z: Tensor) -> Tensor:
    return torch.as_tensor(t, device=z.device, dtype=torch.float64).expand(z.shape[0])


def ddim_step(z: Tensor, x: Tensor, t: Tensor | float, s: Tensor | float, schedule: Schedule) -> Tensor:
    """From z_t to z_s along the line through x: z_s = alpha_s x + sigma_s (z_t - alpha_t x)/sigma_t  (Eq. 1, Feng et al. 2024).

    z, x: [N, C, H, W]; t, s: numbers or [N] in [0, 1] with s < t. With the continuous schedule, s = 0 returns x.
    """
    t, s = _times(t, z), _times(s, z)
    alpha_t, sigma_t = expand_to(schedule.alpha(t), z), expand_to(schedule.sigma(t), z)
    alpha_s, sigma_s = expand_to(schedule.alpha(s), z), expand_to(schedule.sigma(s), z)
    return alpha_s * x + sigma_s * ((z - alpha_t * x) / sigma_t)


@torch.no_grad()
def ddim_sample(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    y: Tensor | None = None,
    clip: bool = True,
    callback: Callable[[int, float, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Run Eq. 1 over t = 1, 1 - 1/steps, ..., 1/steps, down to 0.

    noise: [N, C, H, W], standard normal; steps >= 1; y: [N] labels or None; clip: hold each x in [-1, 1] (the papers'
    Eq. 1 does not, their code does); callback(k, t, z_t, x) is called before each step, k counting from 0.
    Returns images [N, C, H, W] (in [-1, 1] with clip). Raises ValueError for steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    z = noise
    for k in range(steps):
        t, s = (steps - k) / steps, (steps - k - 1) / steps
        x = denoiser(z, t, y)
        if clip:
            x = x.clamp(-1, 1)
        if callback is not None:
            callback(k, t, z, x)
        z = ddim_step(z, x, t, s, denoiser.schedule)
    return z.clamp(-1, 1) if clip else z


@torch.no_grad()
def two_step_target(denoiser: Denoiser, z: Tensor, t: Tensor | float, step: float, y: Tensor | None = None) -> Tensor:
    """x_T, the one x whose single DDIM step t -> t'' lands where two teacher steps t -> t' -> t'' land.

    z: z_t [N, C, H, W]; t: number or [N] in [2 step, 1]; step: 1/N of the N-step teacher, t' = t - step, t'' = t - 2 step.
    Eq. 5 of the supplement, (z_t'' - (sigma_t''/sigma_t) z_t)/(alpha_t'' - (sigma_t''/sigma_t) alpha_t), rewritten:
    with r = alpha/sigma it is the mean of the teacher's two predictions

        x_T = x_2 + (x_1 - x_2) (r' - r)/(r'' - r),        x_1 = eta(z_t, t), x_2 = eta(z_t', t')

    which subtracts no nearly equal images, so float32 loses nothing, and gives x_2 where t'' = 0 (r'' is infinite).
    """
    schedule = denoiser.schedule
    t = _times(t, z)
    t1, t2 = (t - step).clamp(min=0), (t - 2 * step).clamp(min=0)
    t2 = torch.where(t2 < 1e-9, 0.0, t2)  # k/N - 2/N in floating point can miss 0 by an ulp
    x1 = denoiser(z, t, y)
    x2 = denoiser(ddim_step(z, x1, t, t1, schedule), t1, y)
    r, r1, r2 = (schedule.alpha(u) / schedule.sigma(u) for u in (t, t1, t2))
    return x2 + expand_to((r1 - r) / (r2 - r), z) * (x1 - x2)
