import math

import pytest
import torch

from rddlib.schedule import CosineSchedule, DiscreteCosineSchedule, expand_to

T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule()])
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
        assert float(d.alpha(k / steps)) == pytest.approx(math.sqrt(product), rel=1e-10)


def test_discrete_takes_the_nearest_grid_point():
    d = DiscreteCosineSchedule(8)
    assert d.index(torch.tensor([0.0, 0.06, 0.07, 1.0])).tolist() == [0, 0, 1, 8]


def test_expand_to():
    assert expand_to(torch.ones(3, dtype=torch.float64), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)
    assert expand_to(torch.tensor(2.0), torch.zeros(3, 1, 2, 2)).shape == (1, 1, 1, 1)
