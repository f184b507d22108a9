"""All samplers by name: our own, and the training-free ones of the papers' tables: DDIM, PNDM and DPM-Solver.

The latter use the update rules of diffusers' schedulers, an extra (`pip install 'rddlib[baselines]'`) imported where it
is used; this file maps our schedules onto their grid. Index i of a scheduler is t = (i + 1)/T, i = 0..T-1, so that index
T - 1 is pure noise and the time before index 0 is t = 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.diffusers_unet import diffusers_class
from rddlib.diffusion.sampling import ddim_sample, stochastic_sample
from rddlib.diffusion.schedule import DiscreteCosineSchedule, Schedule
from rddlib.utils.errors import UserError, check_known
from rddlib.utils.text import counted

Sampler = Callable[..., Tensor]  # (denoiser, noise, steps, *, y=None, clip=True, guidance=None) -> images [N, C, H, W]

LARGEST_BETA = 0.999  # the usual cap (Nichol & Dhariwal 2021): alpha > 0 at t = 1, by which DPM-Solver divides
LEAST_GRID = 1024  # the papers' number of time steps


def grid_size(schedule: Schedule, steps: int) -> int:
    """T of the grid t = k/T: the first multiple of `steps` from 1024 on, or from a DiscreteCosineSchedule's own size on.

    It is a multiple because diffusers spaces `steps` times over T by whole numbers. Times between the grid points of a
    discrete schedule take the nearest alpha, as in ddim_sample.
    """
    least = schedule.steps if isinstance(schedule, DiscreteCosineSchedule) else LEAST_GRID
    return steps * math.ceil(least / steps)


def alpha_bars(schedule: Schedule, size: int) -> Tensor:
    """alpha_{k/T}^2 for k = 1..T = size, float64 [T]."""
    return schedule.alpha(torch.arange(1, size + 1, dtype=torch.float64) / size).square()


def grid_betas(schedule: Schedule, size: int) -> Tensor:
    """beta_k = min(1 - alpha_{k/T}^2 / alpha_{(k-1)/T}^2, 0.999), k = 1..T = size, float64 [T].

    The product of (1 - beta) up to k is alpha_{k/T}^2, starting from 1 at k = 0 even where a discrete schedule has
    alpha(0) < 1. On the continuous schedule the cap makes alpha(1) 5e-5 instead of 0.
    """
    later = alpha_bars(schedule, size)
    earlier = torch.cat([later.new_ones(1), later[:-1]])
    return (1 - later / earlier).clamp(max=LARGEST_BETA)


def _grid_of(name: str, schedule: Schedule, steps: int, multiple: int = 1) -> int:
    """T of a grid that `steps` steps of `multiple` indices each fit on. Raises UserError for too few or too many steps."""
    _check(name, steps)
    most = schedule.steps // multiple if isinstance(schedule, DiscreteCosineSchedule) else math.inf
    if steps > most:
        raise UserError(f"{name} got {counted(steps)} on a schedule of {schedule.steps}: choose at most {most}")
    return grid_size(schedule, multiple * steps)


def _prepare(scheduler: str, schedule: Schedule, size: int, **options):
    """A diffusers scheduler on our schedule's grid of T = size times. Raises UserError if diffusers is missing.

    diffusers keeps the betas in float32 and capped, so it also gets the schedule's own alpha^2 at each index.
    """
    betas = grid_betas(schedule, size)
    made = diffusers_class(scheduler)(num_train_timesteps=size, trained_betas=betas.tolist(), **options)
    made.alphas_cumprod = alpha_bars(schedule, size)
    made.final_alpha_cumprod = schedule.alpha(0.0).square()  # at t = 0, below 1 on a discrete schedule
    return made


def _run(
    scheduler,
    denoiser: Denoiser,
    noise: Tensor,
    output: Callable[[Tensor, Tensor, int], Tensor] = lambda x, z, index: x,
    *,
    y: Tensor | None = None,
    clip: bool = True,
    guidance: Tensor | float | None = None,
) -> Tensor:
    """Denoise and step at each of the scheduler's times; output(x, z, index): what the scheduler takes in place of x."""
    z, size, clip = noise, scheduler.config.num_train_timesteps, clip and denoiser.space is None
    for index in scheduler.timesteps.tolist():
        x = denoiser(z, (index + 1) / size, y, guidance)
        if clip:
            x = x.clamp(-1, 1)
        z = scheduler.step(output(x, z, index), index, z, return_dict=False)[0]
    return z.clamp(-1, 1) if clip else z


@torch.no_grad()
def diffusers_ddim_sample(denoiser: Denoiser, noise: Tensor, steps: int, **options) -> Tensor:
    """DDIM (Song et al. 2021, eta = 0) by diffusers, at the times of ddim_sample: a cross-check that agrees to rounding.

    Arguments and result as in ddim_sample; steps >= 1. Raises UserError for fewer steps, for more than a discrete
    schedule has, and without diffusers.
    """
    schedule = denoiser.schedule
    scheduler = _prepare(
        "DDIMScheduler",
        schedule,
        _grid_of("diffusers-ddim", schedule, steps),
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return _run(scheduler, denoiser, noise, **options)


@torch.no_grad()
def pndm_sample(denoiser: Denoiser, noise: Tensor, steps: int, **options) -> Tensor:
    """F-PNDM (Algorithm 2, Liu et al. 2022): three Runge-Kutta steps of four evaluations each, then linear multistep.

    Arguments and result as in ddim_sample; steps >= 4, at a cost of steps + 9 evaluations. It steps in
    eps = (z - alpha x)/sigma and divides by alpha, so it cannot start at t = 1: as in its authors' code, the noise is
    used as z at t = 1 - 1/steps (and one index), an error that grows with fewer steps. clip bounds each x before it
    becomes eps, and the images. Raises UserError for fewer steps, for more than half of a discrete schedule's, and
    without diffusers.
    """
    schedule = denoiser.schedule
    size = _grid_of("pndm", schedule, steps, multiple=2)  # Runge-Kutta takes half steps, and the first ends above 0
    scheduler = _prepare("PNDMScheduler", schedule, size, timestep_spacing="leading")
    scheduler.set_timesteps(steps)

    def noise_of(x: Tensor, z: Tensor, index: int) -> Tensor:
        alpha_bar = scheduler.alphas_cumprod[index]
        return (z - alpha_bar.sqrt() * x) / (1 - alpha_bar).sqrt()

    return _run(scheduler, denoiser, noise, noise_of, **options)


@torch.no_grad()
def dpm_solver_sample(denoiser: Denoiser, noise: Tensor, steps: int, **options) -> Tensor:
    """DPM-Solver++(2M) (Algorithm 2, Lu et al. 2022): second-order multistep in the log SNR, one evaluation a step.

    Arguments, result and times as in ddim_sample; steps >= 1. The first and the last step are of first order, so one or
    two steps equal DDIM. It divides by alpha(1), which is 5e-5 on a continuous schedule because of the capped beta.
    diffusers computes each step in float32 for any dtype of the noise. Raises UserError for fewer steps, for more than a
    discrete schedule has, and without diffusers.
    """
    schedule = denoiser.schedule
    scheduler = _prepare(
        "DPMSolverMultistepScheduler",
        schedule,
        _grid_of("dpm-solver", schedule, steps),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    before_last, last = scheduler.alphas_cumprod[-2:]
    scheduler.alphas_cumprod[-1] = torch.maximum(last, (1 - LARGEST_BETA) * before_last)
    scheduler.set_timesteps(steps)
    scheduler.sigmas[-1] = schedule.sigma(0.0) / schedule.alpha(0.0)  # sigma/alpha at the end, t = 0
    return _run(scheduler, denoiser, noise, **options)


@dataclass(frozen=True)
class Entry:
    """A row of SAMPLERS.

    Args:
        sample: the function.
        least: steps it needs.
        warm_up: evaluations of the denoiser beyond one a step.
        borrowed: whether it needs diffusers.
        training_free: whether it draws with a base model as it is; any other needs students of its own.
    """

    sample: Sampler
    least: int = 1
    warm_up: int = 0
    borrowed: bool = False
    training_free: bool = True


SAMPLERS = {
    "ddim": Entry(ddim_sample),
    "stochastic": Entry(stochastic_sample, training_free=False),
    "diffusers-ddim": Entry(diffusers_ddim_sample, borrowed=True),
    "pndm": Entry(pndm_sample, least=4, warm_up=9, borrowed=True),  # three Runge-Kutta steps of four evaluations
    "dpm-solver": Entry(dpm_solver_sample, borrowed=True),
}
TRAINING_FREE = tuple(name for name, entry in SAMPLERS.items() if entry.training_free)


def _check(name: str, steps: int | None) -> None:
    check_known("sampler", name, SAMPLERS)
    if steps is not None and steps < SAMPLERS[name].least:
        raise UserError(f"{name} got {counted(steps)}: choose at least {SAMPLERS[name].least}")


def find_sampler(name: str, steps: int | None = None) -> Sampler:
    """The sampler of that name: (denoiser, noise, steps, *, y=None, clip=True, guidance=None) -> images, as ddim_sample.

    No sampler keeps gradients, and only "stochastic" draws random numbers (or takes them as `fresh`). Raises UserError
    for an unknown name, for fewer `steps` (if given) than it needs, and if the sampler needs diffusers and it is missing.
    """
    _check(name, steps)
    if SAMPLERS[name].borrowed:
        diffusers_class("DDIMScheduler")
    return SAMPLERS[name].sample


def evaluations(name: str, steps: int) -> int:
    """Evaluations of the denoiser per image (a guided one may run its network twice).

    Raises UserError for an unknown name or too few steps.
    """
    _check(name, steps)
    return steps + SAMPLERS[name].warm_up
