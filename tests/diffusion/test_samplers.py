"""Samplers of diffusers on our schedules against exact flows, our own DDIM, and careless use."""

import math
import re
import sys
from itertools import product

import pytest
import torch
from exact_models import conditional, exact, mixture
from tiny import needs_diffusers, quiet, refused

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.samplers import SAMPLERS, evaluations, find_sampler, grid_betas, grid_size
from rddlib.diffusion.sampling import ddim_sample, stochastic_sample
from rddlib.diffusion.schedule import CosineSchedule, DiscreteCosineSchedule, expand_to
from rddlib.diffusion.unet import NO_CLASS
from rddlib.utils.errors import UserError

CONTINUOUS, DISCRETE = CosineSchedule(), DiscreteCosineSchedule(1024)
BORROWED = [name for name, entry in SAMPLERS.items() if entry.borrowed]
OWN = [name for name in SAMPLERS if name not in BORROWED]
pytestmark = quiet


def draw(count=500, dtype=torch.float64):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def error(images, reference):
    return float((images - reference).square().mean().sqrt())


def times_of(name, steps, schedule=CONTINUOUS):
    seen = []

    def denoise(z, t):
        assert t.dtype == torch.float64 and t.shape == (len(z),)
        seen.append(float(t[0]))
        return 0.3 * z

    find_sampler(name)(as_denoiser(denoise, schedule), draw(2), steps)
    return seen


@pytest.mark.parametrize("schedule", [CONTINUOUS, DISCRETE, DiscreteCosineSchedule(64)])
@pytest.mark.parametrize("steps", [8, 12])
def test_betas_give_back_the_schedule_at_every_time_but_the_capped_one(schedule, steps):
    size = grid_size(schedule, steps)
    assert size % steps == 0
    betas = grid_betas(schedule, size)
    expected = schedule.alpha(torch.arange(1, size + 1, dtype=torch.float64) / size)
    assert betas.shape == (size,) and (betas >= 0).all() and (betas <= 0.999).all()
    torch.testing.assert_close((1 - betas).cumprod(0).sqrt()[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert 0 < (1 - betas).prod().sqrt() < 6e-5 or schedule == DiscreteCosineSchedule(64)


def test_the_grid_has_the_papers_size_where_the_steps_divide_it():
    sizes = {1: 1024, 8: 1024, 1024: 1024, 12: 1032, 700: 1400, 2000: 2000}
    assert {steps: grid_size(CONTINUOUS, steps) for steps in sizes} == sizes
    assert grid_size(DiscreteCosineSchedule(64), 8) == 64


@pytest.mark.parametrize("name", [pytest.param(n, marks=[needs_diffusers] * (n in BORROWED)) for n in SAMPLERS])
def test_what_is_drawn_does_not_depend_on_how_pixels_lie(name):
    """Of a denoiser that treats each pixel alone."""
    denoiser, noise = as_denoiser(lambda z, t: 0.3 * z.tanh(), CONTINUOUS), draw(6).reshape(2, 2, 2, 3)

    def drawn(start):
        options = {"fresh": lambda k: torch.ones_like(start)} if name == "stochastic" else {}
        return find_sampler(name)(denoiser, start, 12, **options).flatten(2)

    torch.testing.assert_close(drawn(noise.reshape(2, 2, 1, 6)), drawn(noise))


EXACT, ROUNDED = (torch.float64, False), (torch.float32, True)
CASES = [
    *product((1, 2, 8, 3), (CONTINUOUS, DISCRETE), (EXACT, ROUNDED)),
    (700, CONTINUOUS, EXACT),
    (1024, DISCRETE, EXACT),
]


@needs_diffusers
@pytest.mark.parametrize("steps, schedule, number", CASES)  # 3 and 700 do not divide 1024
def test_our_ddim_is_that_of_diffusers(steps, schedule, number):
    dtype, clip = number
    denoiser, noise = exact(mixture(3), schedule), draw(50, dtype)
    images = find_sampler("diffusers-ddim")(denoiser, noise, steps, clip=clip)
    assert images.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(images, ddim_sample(denoiser, noise, steps, clip=clip), rtol=0, atol=bound)


@needs_diffusers
@pytest.mark.parametrize("name", BORROWED)
@pytest.mark.parametrize("schedule", [CONTINUOUS, DISCRETE])
def test_error_against_the_exact_flow_falls_with_steps(name, schedule):
    gaussian, noise = mixture(1), draw()
    end = gaussian.flow_endpoint(noise, 1.0, schedule)
    run = find_sampler(name)
    errors = [error(run(exact(gaussian, schedule), noise, n, clip=False), end) for n in (4, 8, 16, 32, 64)]
    order = {"diffusers-ddim": 1, "pndm": 1, "dpm-solver": 2}[name]  # PNDM's start after t = 1 costs it its order
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors
    assert math.log2(errors[-2] / errors[-1]) > 0.8 * order, errors
    assert errors[-1] < (0.03 if order == 1 else 0.003)


@needs_diffusers
@pytest.mark.parametrize("schedule", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("components", [1, 3])
def test_dpm_solver_is_nearer_to_the_flow_than_ddim_at_twelve_steps(schedule, components):
    gmm, noise = mixture(components), draw()
    denoiser = exact(gmm, schedule)
    if components == 1:
        end = gmm.flow_endpoint(noise, 1.0, schedule)
    else:  # by steps enough that what they miss is 2% of what twelve do
        end = ddim_sample(denoiser, noise, 512, clip=False)
    ddim, dpm = (error(find_sampler(name)(denoiser, noise, 12, clip=False), end) for name in ("ddim", "dpm-solver"))
    assert dpm < ddim * (0.4 if components == 1 else 0.7)  # few paths of the mixture end at another component


@needs_diffusers
def test_dpm_solver_of_one_or_two_steps_is_ddim():
    denoiser, noise = exact(mixture(3), DISCRETE), draw()
    for steps in (1, 2):
        images = find_sampler("dpm-solver")(denoiser, noise, steps, clip=False)
        torch.testing.assert_close(images, ddim_sample(denoiser, noise, steps, clip=False), rtol=0, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize("steps, bound", [(4, 0.05), (5, 0.05), (10, 0.02), (20, 0.005), (64, 1e-3), (1024, 1e-5)])
def test_pndm_follows_the_flow_from_where_it_starts(steps, bound):
    gaussian, noise = mixture(1), draw()
    start = times_of("pndm", steps)[0]
    assert start == pytest.approx(1 - 1 / steps, abs=1 / 1024)
    images = find_sampler("pndm")(exact(gaussian, CONTINUOUS), noise, steps, clip=False)
    assert error(images, gaussian.flow_endpoint(noise, start, CONTINUOUS)) < bound


@needs_diffusers
@pytest.mark.parametrize("steps", [1, 4, 12])
@pytest.mark.parametrize("schedule", [CONTINUOUS, DISCRETE])
def test_samplers_ask_the_denoiser_at_the_times_of_ddim(steps, schedule):
    expected = [(steps - k) / steps for k in range(steps)]
    for name in ("ddim", "stochastic", "diffusers-ddim", "dpm-solver"):
        assert times_of(name, steps, schedule) == pytest.approx(expected, abs=1e-12), name


@needs_diffusers
@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_are_those_counted(name):
    for steps in (SAMPLERS[name].least, 5, 10, 64):
        assert evaluations(name, steps) == len(times_of(name, steps)) == steps + SAMPLERS[name].warm_up


EVERY = [*OWN, *(pytest.param(name, marks=needs_diffusers) for name in BORROWED)]


def run(name, denoiser, count, steps, **options):
    """Draw, with the same fresh noise each time where the sampler takes some."""
    if name == "stochastic":
        g = torch.Generator().manual_seed(2)
        options["fresh"] = lambda k: torch.randn(count, 1, 2, 2, generator=g, dtype=torch.float64)
    return find_sampler(name)(denoiser, draw(count), steps, **options)


@pytest.mark.parametrize("schedule, clip", [(CONTINUOUS, True), (DISCRETE, False)])
@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_guides(name, schedule, clip):
    denoiser, count, steps, y = conditional(mixture(2), schedule), 6, 8, torch.arange(6) % 2
    plain = run(name, denoiser, count, steps, y=y, clip=clip)
    assert torch.equal(run(name, denoiser, count, steps, y=y, clip=clip, guidance=0.0), plain)
    for w in (1.5, torch.linspace(-1, 4, count, dtype=torch.float64)):

        def beforehand(z, t, y, w=w):
            given = expand_to(torch.as_tensor(w).expand(len(z)), z)
            return (1 + given) * denoiser(z, t, y) - given * denoiser(z, t, torch.full_like(y, NO_CLASS))

        guided = run(name, denoiser, count, steps, y=y, clip=clip, guidance=w)
        expected = run(name, as_denoiser(beforehand, schedule), count, steps, y=y, clip=clip)
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-12)
        assert (guided - plain).abs().max() > 0.1


@needs_diffusers
@pytest.mark.parametrize("name", BORROWED)
def test_clip_holds_predictions_and_images(name):
    loud = as_denoiser(lambda z, t: 3 * torch.ones_like(z), DISCRETE)
    bounded = as_denoiser(lambda z, t: torch.ones_like(z), DISCRETE)
    run = find_sampler(name)
    clipped = run(loud, draw(8), 10, clip=True)
    assert clipped.abs().max() <= 1
    torch.testing.assert_close(clipped, run(bounded, draw(8), 10, clip=False).clamp(-1, 1))
    assert run(loud, draw(8), 10, clip=False).mean() > 2


@needs_diffusers
@pytest.mark.parametrize("name", BORROWED)
def test_images_in_float32_without_gradients_or_random_numbers(name):
    weight, shape = torch.nn.Parameter(torch.tensor(0.5)), (2, 3, 8, 12)
    denoiser = as_denoiser(lambda z, t: torch.tanh(weight * z), CONTINUOUS)
    noise = torch.randn(shape)
    before, state = noise.clone(), torch.get_rng_state()
    for steps in {SAMPLERS[name].least, 5, 17}:
        images = find_sampler(name)(denoiser, noise, steps)
        assert images.shape == shape and images.dtype == torch.float32 and not images.requires_grad
        assert images.isfinite().all() and images.abs().max() <= 1
        assert torch.equal(images, find_sampler(name)(denoiser, noise, steps))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(noise, before)


@needs_diffusers
@pytest.mark.parametrize("name", BORROWED)
def test_too_few_or_too_many_steps_are_refused_in_one_line(name):
    denoiser = exact(mixture(1), DiscreteCosineSchedule(64))
    with pytest.raises(UserError, match=rf"^{name} got {SAMPLERS[name].least - 1} steps: choose at least \d$"):
        find_sampler(name)(denoiser, draw(2), SAMPLERS[name].least - 1)
    assert re.search(rf"^{name} got ", refused(find_sampler, name, SAMPLERS[name].least - 1))
    most = 32 if name == "pndm" else 64  # PNDM goes by half steps
    with pytest.raises(UserError, match=rf"^{name} got {most + 1} steps on a schedule of 64: choose at most {most}$"):
        find_sampler(name)(denoiser, draw(2), most + 1)
    assert find_sampler(name, most)(denoiser, draw(2), most).isfinite().all()


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    known = "ddim, stochastic, diffusers-ddim, pndm, dpm-solver"
    assert re.search(f"unknown sampler 'huen': known are {known}$", refused(find_sampler, "huen"))


def test_without_diffusers_only_our_own_samplers_are_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert find_sampler("ddim") is ddim_sample and find_sampler("stochastic") is stochastic_sample
    for name in BORROWED:
        assert re.search(r"needs diffusers.*: pip install 'rddlib\[baselines\]'$", refused(find_sampler, name))
        assert "needs diffusers" in refused(SAMPLERS[name].sample, exact(mixture(1), CONTINUOUS), draw(2), 8)
