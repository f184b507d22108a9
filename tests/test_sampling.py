import pytest
import torch

from rddlib.data import GaussianMixture
from rddlib.denoiser import Denoiser, as_denoiser
from rddlib.sampling import ddim_sample, ddim_step, two_step_target
from rddlib.schedule import CosineSchedule, DiscreteCosineSchedule, expand_to

SCHEDULE = CosineSchedule()


def mixture(components=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(components, 4, 4, generator=g, dtype=torch.float64) * 0.4
    means = torch.randn(components, 1, 2, 2, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.rand(components, generator=g) + 0.2, means, root @ root.mT)


def exact(gmm, schedule=SCHEDULE):
    return as_denoiser(lambda z, t: gmm.denoise(z, t, schedule), schedule)


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


def test_mixture_refuses_disagreeing_shapes():
    with pytest.raises(ValueError, match="disagree"):
        GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0]]])


def test_ddim_converges_at_first_order_to_the_exact_flow():
    gmm = mixture(components=1)
    noise = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    end = gmm.flow_endpoint(noise, 1.0, SCHEDULE)
    errors = [(ddim_sample(exact(gmm), noise, n, clip=False) - end).norm() for n in (32, 64, 128, 256)]
    ratios = [float(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.85 < r < 2.15 for r in ratios), ratios


def test_ddim_on_a_mixture_halves_its_error_with_each_doubling():
    gmm, noise = mixture(), torch.randn(64, 1, 2, 2, dtype=torch.float64)
    end = ddim_sample(exact(gmm), noise, 8192, clip=False)
    errors = [(ddim_sample(exact(gmm), noise, n, clip=False) - end).norm() for n in (64, 128, 256)]
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7


def test_last_step_returns_x_exactly():
    z, x = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    torch.testing.assert_close(ddim_step(z, x, 0.25, 0.0, SCHEDULE), x, rtol=1e-6, atol=1e-7)


def test_first_step_from_pure_noise_is_finite():
    z = torch.randn(4, 1, 2, 2)
    assert ddim_step(z, torch.zeros_like(z), 1.0, 0.5, SCHEDULE).isfinite().all()


def test_ddim_step_keeps_the_noise_direction():
    # eps implied by (z, x) is the same before and after the step: that is what makes DDIM deterministic
    z, x = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double()
    t, s = torch.tensor([0.9, 0.5, 0.3]).double(), torch.tensor([0.6, 0.1, 0.2]).double()
    eps = lambda z, u: (z - expand_to(SCHEDULE.alpha(u), z) * x) / expand_to(SCHEDULE.sigma(u), z)  # noqa: E731
    torch.testing.assert_close(eps(ddim_step(z, x, t, s, SCHEDULE), s), eps(z, t))


def test_sampler_calls_back_before_each_step_and_clips():
    seen = []
    loud = as_denoiser(lambda z, t: 3 * torch.ones_like(z), SCHEDULE)
    out = ddim_sample(loud, torch.randn(2, 1, 2, 2), 4, callback=lambda k, t, z, x: seen.append((k, t, x.max())))
    assert [(k, t) for k, t, _ in seen] == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)]
    assert all(x == 1 for *_, x in seen) and (out == 1).all()
    with pytest.raises(ValueError, match="steps"):
        ddim_sample(loud, torch.randn(1, 1, 2, 2), 0)


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


def test_target_equals_the_literal_equation():
    teacher, step = exact(mixture()), 1 / 16
    t = torch.tensor([4, 8, 16]).double() / 16
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    z1 = ddim_step(z, teacher(z, t), t, t - step, SCHEDULE)
    z2 = ddim_step(z1, teacher(z1, t - step), t - step, t - 2 * step, SCHEDULE)
    a, s = SCHEDULE.alpha, SCHEDULE.sigma
    ratio = expand_to(s(t - 2 * step) / s(t), z)
    literal = (z2 - ratio * z) / (expand_to(a(t - 2 * step), z) - ratio * expand_to(a(t), z))
    torch.testing.assert_close(two_step_target(teacher, z, t, step), literal, rtol=1e-9, atol=1e-10)


def test_target_is_the_last_prediction_where_the_second_step_ends_at_zero():
    teacher = exact(mixture())
    z, t = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.full((2,), 1 / 4, dtype=torch.float64)
    z1 = ddim_step(z, teacher(z, t), t, 1 / 8, SCHEDULE)
    torch.testing.assert_close(two_step_target(teacher, z, t, 1 / 8), teacher(z1, 1 / 8), rtol=1e-12, atol=0)


def test_target_in_float32_stays_near_float64():
    teacher, t = exact(mixture()), torch.arange(2, 129, 2).double() / 128
    z = torch.randn(len(t), 1, 2, 2, dtype=torch.float64)
    single = two_step_target(teacher, z.float(), t, 1 / 128)
    assert (single.double() - two_step_target(teacher, z, t, 1 / 128)).abs().max() < 5e-6


def test_target_carries_no_gradient():
    z = torch.randn(2, 1, 2, 2, requires_grad=True)
    assert not two_step_target(exact(mixture()), z, 0.5, 0.25).requires_grad


def test_unknown_parametrisation_is_refused():
    with pytest.raises(ValueError, match="prediction"):
        Denoiser(lambda z, t: z, SCHEDULE, "score")


def test_any_callable_with_labels_is_a_denoiser():
    denoiser = as_denoiser(lambda z, t, y: z * y[:, None, None, None], SCHEDULE)
    z, y = torch.ones(2, 1, 2, 2), torch.tensor([2, 3])
    assert denoiser(z, 0.5, y)[:, 0, 0, 0].tolist() == [2, 3]
