"""Noise schedules against their definitions, in float64, at their ends, on their grids and on file."""

import json
import math

import pytest
import torch

from rddlib.diffusion.schedule import (
    BetaSchedule,
    CosineSchedule,
    DiscreteCosineSchedule,
    expand_to,
    make_schedule,
    schedule_facts,
    schedule_of,
)

T = torch.linspace(0, 1, 1001, dtype=torch.float64)


BETAS = tuple(0.05 * math.sin(k) ** 2 + 1e-4 for k in range(50))


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(),
        DiscreteCosineSchedule(),
        BetaSchedule(BETAS),
        BetaSchedule(BETAS, 0.99995),
        BetaSchedule((0.3, 1.0)),
    ],
)
def test_rates_lie_on_the_circle_and_are_monotone(schedule):
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    assert alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=0, atol=1e-14)
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()


def test_cosine_equals_its_definition():
    s = 0.008
    f = lambda t: math.cos((t + s) / (1 + s) * math.pi / 2) ** 2  # noqa: E731
    for t in (0.1, 0.37, 0.5, 0.9):
        assert float(CosineSchedule(s).alpha(t)) ** 2 == pytest.approx(f(t) / f(0), rel=1e-13)


def test_ends_are_exact():
    c = CosineSchedule()
    assert c.alpha(1) == 0 and c.sigma(1) == 1 and c.sigma(0) == 0 and float(c.alpha(0)) == pytest.approx(1, abs=1e-15)
    assert c.log_snr(1) == -math.inf and c.log_snr(0) == math.inf


def test_sigma_keeps_its_digits_near_zero():
    # sigma^2 ~ t * 2 tan(a0) da/dt near 0; 1 - alpha^2 would have lost every digit of it at t = 1e-14
    t, s = 1e-14, 0.008
    slope = 2 * math.tan(s / (1 + s) * math.pi / 2) * (math.pi / 2) / (1 + s)
    assert float(CosineSchedule(s).sigma(t)) ** 2 == pytest.approx(slope * t, rel=1e-6)


def test_discrete_grid_ends_as_in_the_released_code():
    d = DiscreteCosineSchedule(1024)
    assert float(d.sigma(0)) == pytest.approx(0.0063, abs=5e-5)
    assert float(d.alpha(1)) == pytest.approx(4.8e-5, abs=5e-7)
    assert d.log_snr(torch.tensor([0.0, 1.0])).isfinite().all()


def test_discrete_grid_equals_a_literal_loop():
    steps, s = 16, 0.008
    f = lambda k: math.cos((k / (steps + 1) + s) / (1 + s) * math.pi / 2) ** 2  # noqa: E731
    product, d = 1.0, DiscreteCosineSchedule(steps)
    for k in range(steps + 1):
        product *= 1 - min(1 - f(k + 1) / f(k), 0.999)
        for t in (k / steps, (k + 0.4) / steps, (k - 0.4) / steps):  # the nearest one's
            assert float(d.alpha(t)) == pytest.approx(math.sqrt(product), rel=1e-10)


def test_expand_to():
    assert expand_to(torch.ones(3, dtype=torch.float64), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)
    assert expand_to(torch.tensor(2.0), torch.zeros(3, 1, 2, 2)).shape == (1, 1, 1, 1)


# Any table of betas


def products(betas, clean=1.0):
    """alpha^2 at t = 0, 1/T, ..., 1, multiplied out by hand."""
    return [clean] + [math.prod(1 - beta for beta in betas[: i + 1]) for i in range(len(betas))]


@pytest.mark.parametrize("clean", [1.0, 0.99])
def test_betas_on_their_own_times_are_multiplied_out(clean):
    schedule, size = BetaSchedule(BETAS, clean), len(BETAS)
    t = torch.arange(size + 1, dtype=torch.float64) / size
    expected = torch.tensor(products(BETAS, clean), dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert schedule.steps == size and alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha, expected.sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(sigma, (1 - expected).sqrt(), rtol=0, atol=1e-9)  # 1 - alpha^2 loses digits near t = 0
    torch.testing.assert_close(schedule.log_snr(t)[1:], (expected / (1 - expected)).log()[1:], rtol=1e-10, atol=0)


def test_betas_between_their_times_are_interpolated():
    schedule, known = BetaSchedule(BETAS, 0.99), products(BETAS, 0.99)
    for i in (0, 1, 24, 49):
        for share in (0.01, 0.5, 0.9):
            expected = (1 - share) * known[i] + share * known[i + 1]
            assert float(schedule.alpha((i + share) / 50)) ** 2 == pytest.approx(expected, rel=1e-13)
            assert float(schedule.sigma((i + share) / 50)) ** 2 == pytest.approx(1 - expected, rel=1e-12)


def test_ends_of_betas():
    plain, noisy, whole = BetaSchedule((0.1, 0.2)), BetaSchedule((0.1, 0.2), 0.9), BetaSchedule((0.5, 1.0))
    assert plain.alpha(0) == 1 and plain.sigma(0) == 0 and plain.log_snr(0) == math.inf
    assert float(noisy.alpha(0)) ** 2 == pytest.approx(0.9) and float(noisy.sigma(0)) ** 2 == pytest.approx(0.1)
    assert float(plain.alpha(1)) ** 2 == pytest.approx(0.72) and plain.log_snr(1).isfinite()
    assert whole.alpha(1) == 0 and whole.sigma(1) == 1 and whole.log_snr(1) == -math.inf
    for t, end in ((-0.5, 0.0), (1.5, 1.0), (1 + 1e-12, 1.0)):
        assert plain.alpha(t) == plain.alpha(end)


@pytest.mark.parametrize("size", [1, 7, 49, 50, 1000])
def test_a_time_that_misses_the_grid_by_rounding_is_on_it(size):
    """Neighbours that jump between 1/2 and 1/4: a time between two of them, however near, would be seen."""
    betas = tuple(0.5 if k % 2 else 1e-9 for k in range(size))
    schedule = BetaSchedule(betas)
    k = torch.arange(size + 1, dtype=torch.float64)
    exact = schedule._alpha_bar.sqrt()
    assert torch.equal(schedule.alpha(k / size), exact)
    below, above = ((k / size).nextafter(torch.tensor(end, dtype=torch.float64)) for end in (-1.0, 2.0))
    assert torch.equal(schedule.alpha(below), exact) and torch.equal(schedule.alpha(above), exact)
    assert size == 1 or not torch.equal(schedule.alpha(k / size + 1e-6), exact)


def test_betas_of_any_shape_and_of_numbers_at_once():
    schedule = BetaSchedule((0.1,) * 10)
    assert schedule.alpha(torch.zeros(2, 3)).shape == (2, 3) and schedule.alpha(0.3).shape == ()
    assert float(schedule.alpha(0.3)) ** 2 == pytest.approx(0.9**3, rel=1e-14)  # 0.3 in float32 is no 3/10


@pytest.mark.parametrize(
    "betas, clean", [((), 1.0), ((-0.1,), 1.0), ((0.1, 1.1), 1.0), ((math.nan,), 1.0), ((0.1,), 0.0)]
)
def test_betas_outside_their_range_are_refused(betas, clean):
    with pytest.raises(ValueError, match="betas must be at least one number, all in .0, 1., and clean in .0, 1."):
        BetaSchedule(betas, clean)


# On file


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(),
        CosineSchedule(0.02),
        DiscreteCosineSchedule(),
        DiscreteCosineSchedule(64, 0.02),
        BetaSchedule(BETAS),
        BetaSchedule((0.1, 1.0), 0.9),
    ],
)
def test_a_schedule_is_made_again_from_its_facts(schedule):
    facts = json.loads(json.dumps(schedule_facts(schedule)))
    again = schedule_of({**facts, "prediction": "v"})
    assert again == schedule and type(again) is type(schedule) and schedule_facts(again) == facts
    assert torch.equal(again.alpha(T), schedule.alpha(T)) and torch.equal(again.sigma(T), schedule.sigma(T))


def test_schedules_that_differ_are_not_equal():
    made = [
        CosineSchedule(),
        CosineSchedule(0.02),
        DiscreteCosineSchedule(),
        DiscreteCosineSchedule(64),
        BetaSchedule(BETAS),
        BetaSchedule(BETAS, 0.99),
        BetaSchedule(BETAS[:-1]),
    ]
    assert len(set(made)) == len(made) and all(a != b for k, a in enumerate(made) for b in made[:k])
    assert len({json.dumps(schedule_facts(schedule)) for schedule in made}) == len(made)


def test_facts_of_earlier_versions_are_still_read():
    assert schedule_of({"schedule_offset": 0.008}) == CosineSchedule(0.008)
    assert schedule_of({"schedule": "continuous", "schedule_offset": 0.02}) == CosineSchedule(0.02)
    assert schedule_of({"schedule": "discrete", "schedule_offset": 0.008}) == DiscreteCosineSchedule(1024, 0.008)


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="schedule is 'linear', expected one of continuous, discrete"):
        make_schedule("linear")
    with pytest.raises(ValueError, match="schedule is 'linear'"):
        schedule_of({"schedule": "linear", "schedule_offset": 0.008})
