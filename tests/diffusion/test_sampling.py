"""DDIM, the stochastic sampler and distillation targets against exact denoisers, flows and the equations written out."""

import pytest
import torch
from exact_models import SCHEDULE, conditional, exact, mixture

from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.diffusion.sampling import (
    ddim_sample,
    ddim_step,
    noise_step,
    stochastic_sample,
    stochastic_target,
    two_step_target,
)
from rddlib.diffusion.schedule import CosineSchedule, DiscreteCosineSchedule, expand_to
from rddlib.diffusion.unet import NO_CLASS


def test_mixture_denoiser_equals_bayes_by_quadrature():
    # One dimension: integrate E[x | z] on a fine grid, independently of the closed form.
    gmm = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[[0.04]], [[0.25]]])
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    prior = 0.3 / 0.2 * torch.exp(-((x + 1) ** 2) / 0.08) + 0.7 / 0.5 * torch.exp(-((x - 0.5) ** 2) / 0.5)
    for t in (0.05, 0.4, 0.8, 1.0):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        for z in (-0.7, 0.0, 1.3):
            weight = prior * torch.exp(-((z - alpha * x) ** 2) / (2 * sigma**2))
            expected = (weight * x).sum() / weight.sum()
            got = gmm.denoise(torch.tensor([[z]], dtype=torch.float64), t, SCHEDULE)
            torch.testing.assert_close(got[0, 0], expected, rtol=1e-8, atol=1e-8)


def test_mixture_samples_have_its_moments():
    gmm = GaussianMixture([1.0], [[1.0, -2.0]], [[[0.5, 0.3], [0.3, 0.4]]])
    x = gmm.sample(200_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0], dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double(), atol=0.01, rtol=0)


def test_mixtures_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="disagree"):
        GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0]]])
    with pytest.raises(ValueError, match="positive semi-definite"):
        GaussianMixture([1.0], [[0.0]], [[[-1.0]]])
    with pytest.raises(ValueError, match="one Gaussian only"):
        mixture().flow_endpoint(torch.zeros(1, 1, 2, 2), 1.0, SCHEDULE)


def test_ddim_converges_at_first_order_to_the_exact_flow():
    gmm = mixture(components=1)
    noise = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    end = gmm.flow_endpoint(noise, 1.0, SCHEDULE)
    errors = [(ddim_sample(exact(gmm), noise, n, clip=False) - end).norm() for n in (32, 64, 128, 256)]
    ratios = [float(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.85 < r < 2.15 for r in ratios), ratios


def test_last_step_returns_x_exactly():
    z, x = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    torch.testing.assert_close(ddim_step(z, x, 0.25, 0.0, SCHEDULE), x, rtol=1e-6, atol=1e-7)


def test_ddim_step_keeps_the_noise_direction():
    # eps implied by (z, x) is the same before and after the step: that is what makes DDIM deterministic
    z, x = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double()
    t, s = torch.tensor([0.9, 0.5, 0.3]).double(), torch.tensor([0.6, 0.1, 0.2]).double()
    eps = lambda z, u: (z - expand_to(SCHEDULE.alpha(u), z) * x) / expand_to(SCHEDULE.sigma(u), z)  # noqa: E731
    torch.testing.assert_close(eps(ddim_step(z, x, t, s, SCHEDULE), s), eps(z, t))


@pytest.mark.parametrize("sample", [ddim_sample, stochastic_sample])
def test_samplers_call_back_before_each_step_and_clip(sample):
    seen, noise = [], torch.randn(2, 1, 2, 2)
    loud = as_denoiser(lambda z, t: 3 * torch.ones_like(z), SCHEDULE)
    out = sample(loud, noise, 4, callback=lambda *step: seen.append(step))
    assert [(k, t) for k, t, *_ in seen] == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)] and torch.equal(
        seen[0][2], noise
    )
    assert all((x == 1).all() for *_, x in seen) and (out == 1).all()
    assert (sample(loud, noise, 3, clip=False) == 3).all()
    with pytest.raises(ValueError, match="steps is 0"):
        sample(loud, noise, 0)


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule(1024)])
@pytest.mark.parametrize("teacher_steps", [2, 8, 128])
def test_target_is_the_value_for_which_one_student_step_lands_on_the_teachers_second(schedule, teacher_steps):
    gmm, step = mixture(), 1 / teacher_steps
    teacher = exact(gmm, schedule)
    k = torch.arange(1, teacher_steps // 2 + 1)
    t = (2 * k).double() / teacher_steps
    z = torch.randn(len(t), 1, 2, 2, dtype=torch.float64)
    z1 = ddim_step(z, teacher(z, t), t, t - step, schedule)
    z2 = ddim_step(z1, teacher(z1, t - step), t - step, t - 2 * step, schedule)
    x = two_step_target(teacher, z, t, step)
    torch.testing.assert_close(ddim_step(z, x, t, t - 2 * step, schedule), z2, rtol=1e-9, atol=1e-10)
    # and only that value: another x lands elsewhere, by the denominator of Eq. 5
    moved = ddim_step(z, x + 1, t, t - 2 * step, schedule) - z2
    ratio = schedule.sigma(t - 2 * step) / schedule.sigma(t)
    torch.testing.assert_close(moved[:, 0, 0, 0], schedule.alpha(t - 2 * step) - ratio * schedule.alpha(t))


# Noise added on the way


def gaussian_step(s, t, schedule):
    """noise_step's mean factor and variance, found by asking it."""
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert noise_step(none, s, t, schedule, none) == 0
    factor, spread = (noise_step(z, s, t, schedule, eps).item() for z, eps in ((one, none), (none, one)))
    return factor, spread**2


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule(1024)])
def test_noising_a_noised_image_gives_the_rates_of_the_later_time(schedule):
    for s, t in [(0, 0.25), (0.25, 0.5), (0.0, 1.0), (0.875, 1.0), (0.375, 0.375)]:
        factor, variance = gaussian_step(s, t, schedule)
        assert factor * float(schedule.alpha(s)) == pytest.approx(float(schedule.alpha(t)), rel=1e-14, abs=1e-16)
        noise = factor**2 * float(schedule.sigma(s)) ** 2 + variance
        assert noise == pytest.approx(float(schedule.sigma(t)) ** 2, rel=1e-14)
    assert gaussian_step(0.375, 0.375, schedule) == (1, 0)  # no time, no noise
    if isinstance(schedule, CosineSchedule):
        assert gaussian_step(0.5, 1, schedule) == (0, 1)  # nothing but fresh noise is left


# The stochastic sampler


def fixed_noise(shape):
    """fresh(k) of a stochastic sampler: the same each time."""
    return lambda k: torch.randn(shape, generator=torch.Generator().manual_seed(100 + k), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8])
def test_the_stochastic_sampler_asks_once_a_step_and_for_noise_after_all_but_the_last(steps):
    times, fresh = [], []
    denoiser = as_denoiser(lambda z, t: times.append(t.unique().item()) or 0.3 * z, SCHEDULE)
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    stochastic_sample(denoiser, noise, steps, fresh=lambda k: fresh.append(k) or noise)
    assert times == [i / steps for i in range(steps, 0, -1)] and fresh == list(range(steps - 1))


def test_the_stochastic_sampler_follows_its_fresh_noise_alone():
    denoiser, noise = exact(mixture()), torch.randn(8, 1, 2, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    first, again = (stochastic_sample(denoiser, noise, 4, fresh=fixed_noise(noise.shape)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    free = stochastic_sample(denoiser, noise, 4)
    assert not torch.allclose(free, first) and not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(stochastic_sample(denoiser, noise, 4), free)  # left out, the global generator's


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_stochastic_steps_are_those_of_the_equation(steps):
    """Section 3.2 of the notes on Meng et al. 2022, written out: two steps down, one back up, the last one plain."""
    denoiser, noise = exact(mixture()), torch.randn(8, 1, 2, 2, dtype=torch.float64)
    a, s = (lambda t, rate=rate: float(rate(t)) for rate in (SCHEDULE.alpha, SCHEDULE.sigma))
    fresh, z = fixed_noise(noise.shape), noise
    for k, i in enumerate(range(steps, 1, -1)):
        t, after, low = i / steps, (i - 1) / steps, (i - 2) / steps
        x = denoiser(z, t)
        z = a(low) * x + s(low) / s(t) * (z - a(t) * x)
        ratio = a(after) / a(low)
        z = ratio * z + (s(after) ** 2 - ratio**2 * s(low) ** 2) ** 0.5 * fresh(k)
    expected = denoiser(z, 1 / steps)
    found = stochastic_sample(denoiser, noise, steps, clip=False, fresh=fresh)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def drawn_moments(denoiser, steps, size=2):
    """Mean and covariance of what the stochastic sampler draws, exactly, for a denoiser that is affine in z.

    The images are then affine in all the noise, which is standard normal: b + J (noise, fresh_0, fresh_1, ...) has mean b
    and covariance J J^T. One row of the batch has no noise, each other one unit of it.
    """
    units = torch.eye(size * steps, dtype=torch.float64).reshape(-1, steps, size)
    rows = torch.cat([torch.zeros(1, steps, size, dtype=torch.float64), units])
    out = stochastic_sample(denoiser, rows[:, 0], steps, clip=False, fresh=lambda k: rows[:, k + 1])
    J = (out[1:] - out[0]).T  # [size, size * steps]
    return out[0], J @ J.T


CORRELATED = [[0.5, 0.3], [0.3, 0.4]]


def gaussian():
    gmm = GaussianMixture([1.0], [[0.6, -0.3]], [CORRELATED])
    return gmm, gmm.means[0], torch.tensor(CORRELATED, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule(1024)])
def test_stochastic_samples_of_a_gaussian_tend_to_it_at_first_order(schedule):
    gmm, mean, covariance = gaussian()
    # the law of z_0, which a discrete schedule ends at: a little noise is left there
    mean = schedule.alpha(0) * mean
    covariance = schedule.alpha(0) ** 2 * covariance + schedule.sigma(0) ** 2 * torch.eye(2, dtype=torch.float64)
    found = [drawn_moments(exact(gmm, schedule), n) for n in (64, 128, 256)]
    errors = [float((c - covariance).norm()) for _, c in found]
    assert all(1.8 < a / b < 2.2 for a, b in zip(errors, errors[1:], strict=False)), errors
    # the mean is carried along exactly, but that a discrete schedule's alpha(1) > 0 knows of it before noise does
    assert all((m - mean).norm() < max(1e-12, float(schedule.alpha(1))) for m, _ in found)


def landing(gmm, schedule, t, s, z):
    """Where the probability flow of one Gaussian takes z_t at time s: the noised Gaussian's own coordinates stay."""
    values, vectors, mean = gmm.eigenvalues[0], gmm.eigenvectors[0], gmm.means[0]
    spread = [(schedule.alpha(u) ** 2 * values + schedule.sigma(u) ** 2).sqrt() for u in (t, s)]
    return schedule.alpha(s) * mean + ((z - schedule.alpha(t) * mean) @ vectors * spread[1] / spread[0]) @ vectors.T


def ideal_student(gmm, steps, schedule=SCHEDULE):
    """The x whose DDIM step of double length (from 1/steps: of single length) lands where the flow does."""

    def student(z, t):
        t = t.unique().item()
        s = max(round(t * steps) - 2, 0) / steps
        ratio = schedule.sigma(s) / schedule.sigma(t)
        return (landing(gmm, schedule, t, s, z) - ratio * z) / (schedule.alpha(s) - ratio * schedule.alpha(t))

    return as_denoiser(student, schedule)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
def test_the_ideal_stochastic_student_draws_a_gaussian_exactly_in_any_number_of_steps(steps):
    gmm, mean, covariance = gaussian()
    found_mean, found_covariance = drawn_moments(ideal_student(gmm, steps), steps)
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found_covariance, covariance, rtol=0, atol=1e-9)
    # while the exact denoiser, which knows no finite steps, does not
    assert (drawn_moments(exact(gmm), steps)[1] - covariance).norm() > 1e-3


# Targets of stochastic students and of guided ones


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule(1024)])
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_stochastic_target_spans_two_steps_and_one_at_the_end(schedule, steps):
    teacher, step = exact(mixture(), schedule), 1 / steps
    t = torch.arange(1, steps + 1).double() / steps
    z = torch.randn(steps, 1, 2, 2, dtype=torch.float64)
    x = stochastic_target(teacher, z, t, step)
    torch.testing.assert_close(x[:1], teacher(z[:1], t[:1]), rtol=0, atol=1e-11)
    if steps > 1:
        torch.testing.assert_close(x[1:], two_step_target(teacher, z[1:], t[1:], step), rtol=1e-14, atol=0)
    # one of the student's steps ends where the teacher's two do, and its last where the teacher's one does
    middle, end = t - step, torch.where(t < 2.5 * step, 0.0, t - 2 * step)
    end[0] = middle[0] = 0.0
    landed = ddim_step(z, teacher(z, t), t, middle, schedule)
    landed[1:] = ddim_step(landed[1:], teacher(landed[1:], middle[1:]), middle[1:], end[1:], schedule)
    torch.testing.assert_close(ddim_step(z, x, t, end, schedule), landed, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("target", [two_step_target, stochastic_target])
def test_targets_in_float32_stay_near_float64_and_carry_no_gradient(target):
    teacher, t = exact(mixture()), torch.arange(2, 129, 2).double() / 128
    z = torch.randn(len(t), 1, 2, 2, dtype=torch.float64)
    single = target(teacher, z.float().requires_grad_(), t, 1 / 128)
    assert (single.double() - target(teacher, z, t, 1 / 128)).abs().max() < 5e-6
    assert single.dtype == torch.float32 and not single.requires_grad


@pytest.mark.parametrize("target", [two_step_target, stochastic_target])
def test_labels_and_weights_reach_both_steps_of_a_target(target):
    """Of what stage one aims at: one evaluation that takes the weight."""
    teacher, seen = conditional(mixture()), []

    def network(z, t, y, w):
        seen.append((float(t[0]), y, w))
        return teacher(z, t, y, w)

    student = Denoiser(network, teacher.schedule, num_classes=3, guidance=(-1.0, 4.0))
    z, y = torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    w = torch.linspace(-0.5, 4, 6, dtype=torch.float64)
    x = target(student, z, 0.75, 0.25, y, w)
    assert [t for t, *_ in seen] == [0.75, 0.5]
    assert all(labels is y and torch.equal(weights, w) for _, labels, weights in seen)
    # the two steps by hand, with the guided x as Ho & Salimans write it
    none = torch.full_like(y, NO_CLASS)
    guided = lambda z, t: expand_to(1 + w, z) * teacher(z, t, y) - expand_to(w, z) * teacher(z, t, none)  # noqa: E731
    z1 = ddim_step(z, guided(z, 0.75), 0.75, 0.5, SCHEDULE)
    z2 = ddim_step(z1, guided(z1, 0.5), 0.5, 0.25, SCHEDULE)
    torch.testing.assert_close(ddim_step(z, x, 0.75, 0.25, SCHEDULE), z2, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(x, target(teacher, z, 0.75, 0.25, y, w), rtol=1e-12, atol=1e-12)
