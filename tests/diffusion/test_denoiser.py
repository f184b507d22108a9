"""Parametrisations and guidance against analytic truth: mixtures whose denoisers and densities are known."""

import itertools
import math
import warnings

import pytest
import torch
from exact_models import SCHEDULE, component, conditional, labelled, mixture

from rddlib.diffusion.denoiser import PREDICTIONS, Denoiser, as_denoiser, convert
from rddlib.diffusion.schedule import DiscreteCosineSchedule, expand_to
from rddlib.diffusion.unet import NO_CLASS
from rddlib.utils.errors import GuidanceWarning

GRID = DiscreteCosineSchedule(1024)
DIRECTIONS = list(itertools.permutations(PREDICTIONS, 2))
DIVISORS = {"x": "sigma", "eps": "alpha"}  # what a conversion from it divides by; from v nothing is
EPSILON = torch.finfo(torch.float64).eps


def close(found, expected, tolerance=0.0):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# x, eps and v


def parametrised(schedule, t):
    """z_t and what a perfect network of each kind answers to it: {"x", "eps", "v"}."""
    x, eps = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha * x + sigma * eps, {"x": x, "eps": eps, "v": alpha * eps - sigma * x}


def rounding(schedule, t, *sources):
    """What a few roundings of numbers below 8 become once divided by."""
    divisor = math.prod(float(getattr(schedule, DIVISORS[source])(t)) for source in sources if source in DIVISORS)
    return 32 * EPSILON / divisor


INSIDE = [1e-6, 1e-3, 0.1, 0.5, 0.999, 1 - 1e-6]
TIMES = [(SCHEDULE, t) for t in INSIDE] + [(GRID, k / 1024) for k in (0, 1, 102, 512, 1023, 1024)]


@pytest.mark.parametrize("source, target", DIRECTIONS)
def test_each_parametrisation_becomes_each_other_and_comes_back(source, target):
    for schedule, t in TIMES:
        z, truth = parametrised(schedule, t)
        times = torch.full((len(z),), t, dtype=torch.float64)
        found = convert(truth[source], z, times, schedule, source, target)
        assert found.dtype == torch.float64
        close(found, truth[target], rounding(schedule, t, source))
        back = convert(found, z, times, schedule, target, source)
        close(back, truth[source], rounding(schedule, t, source, target))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_converts_where_the_continuous_schedule_ends(t):
    z, truth = parametrised(SCHEDULE, t)
    times = torch.full((len(z),), t, dtype=torch.float64)
    for target in ("x", "eps"):
        close(convert(truth["v"], z, times, SCHEDULE, "v", target), truth[target], 4 * EPSILON)
    # where the image alone is left, v is the noise; where the noise alone is left, v is minus the image
    assert torch.equal(truth["v"], truth["eps"] if t == 0 else -truth["x"])


def test_what_the_ends_do_not_know_is_not_finite():
    z, truth = parametrised(SCHEDULE, 0.5)
    ends = {0.0: [("x", "eps"), ("x", "v")], 1.0: [("eps", "x"), ("eps", "v")]}
    for t, unknown in ends.items():
        times = torch.full((len(z),), t, dtype=torch.float64)
        finite = {d: convert(truth[d[0]], z, times, SCHEDULE, *d).isfinite().all().item() for d in DIRECTIONS}
        assert [d for d in DIRECTIONS if not finite[d]] == sorted(unknown, key=DIRECTIONS.index)


def test_each_image_has_its_own_time():
    z, x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    t = torch.rand(6, dtype=torch.float64)
    for direction in DIRECTIONS:
        alone = [convert(x[n : n + 1], z[n : n + 1], t[n : n + 1], SCHEDULE, *direction) for n in range(6)]
        assert torch.equal(convert(x, z, t, SCHEDULE, *direction), torch.cat(alone))


def test_unknown_parametrisations_are_refused():
    z, t = torch.zeros(2, 1, 2, 2), torch.full((2,), 0.5)
    for source, target in (("x", "score"), ("score", "score")):
        with pytest.raises(ValueError, match="prediction is 'score', expected one of x, eps, v$"):
            convert(z, z, t, SCHEDULE, source, target)
    with pytest.raises(ValueError, match="prediction is 'score'"):
        Denoiser(lambda z, t: z, SCHEDULE, "score")


def test_a_denoiser_s_output_is_an_image_whatever_its_network_s():
    gmm, z = mixture(), torch.randn(5, 1, 2, 2, dtype=torch.float64)
    for kind, t in itertools.product(PREDICTIONS, (1e-3, 0.3, 0.999)):
        fn = lambda z, t, kind=kind: convert(gmm.denoise(z, t, SCHEDULE), z, t, SCHEDULE, "x", kind)  # noqa: E731
        close(Denoiser(fn, SCHEDULE, kind)(z, t), gmm.denoise(z, t, SCHEDULE), rounding(SCHEDULE, t, "x", "eps"))


# Guidance, on a mixture whose components are the classes


def questions(count=12, classes=3):
    """z, t, y."""
    z = 2 * torch.randn(count, 1, 2, 2, dtype=torch.float64)
    return z, 0.02 + 0.96 * torch.rand(count, dtype=torch.float64), torch.arange(count) % classes


def test_guidance_is_the_line_through_the_two_denoisers():
    denoiser, (z, t, y), gmm = conditional(mixture()), questions(), mixture()
    with_class = labelled(gmm)(z, t, y)
    without = gmm.denoise(z, t, SCHEDULE)
    assert (with_class - without).abs().amax((1, 2, 3)).min() > 1e-4  # or guidance would do nothing
    for w in (-0.5, 0.3, 1, 4.0):
        close(denoiser(z, t, y, w), (1 + w) * with_class - w * without, 1e-13)
    assert torch.equal(denoiser(z, t, y, 0.0), denoiser(z, t, y))
    assert torch.equal(denoiser(z, t, y, -1.0), denoiser(z, t, torch.full_like(y, NO_CLASS)))
    w = torch.linspace(-1, 4, len(z), dtype=torch.float64)  # each image by its own weight
    close(denoiser(z, t, y, w), expand_to(1 + w, z) * with_class - expand_to(w, z) * without, 1e-13)


def test_guidance_is_the_same_whatever_the_network_predicts():
    truth, (z, t, y) = labelled(mixture()), questions()
    guided = {}
    for kind in PREDICTIONS:
        fn = lambda z, t, y, kind=kind: convert(truth(z, t, y), z, t, SCHEDULE, "x", kind)  # noqa: E731
        denoiser = Denoiser(fn, SCHEDULE, kind, num_classes=3, unconditional=True)
        guided[kind] = denoiser(z, t, y, 2.5)
        # and guiding what the network predicts, eps as it is usually written, is guiding x
        with_class, without = fn(z, t, y), fn(z, t, torch.full_like(y, NO_CLASS))
        close(convert(3.5 * with_class - 2.5 * without, z, t, SCHEDULE, kind, "x"), guided[kind], 1e-9)
    close(guided["eps"], guided["x"], 1e-9)
    close(guided["v"], guided["x"], 1e-9)


def log_density(gmm, z, t, schedule):
    """log p_t(z) of z_t = alpha x + sigma eps, for x of a mixture; z [D], from the definition alone."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    terms = []
    for weight, mean, values, vectors in zip(gmm.weights, gmm.means, gmm.eigenvalues, gmm.eigenvectors, strict=True):
        covariance = alpha**2 * (vectors * values) @ vectors.T + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(alpha * mean, covariance)
        terms.append(weight.log() + normal.log_prob(z))
    return torch.stack(terms).logsumexp(0)


def score(gmm, z, t, schedule):
    z = z.flatten().clone().requires_grad_()
    return torch.autograd.grad(log_density(gmm, z, t, schedule), z)[0]


@pytest.mark.parametrize("schedule", [SCHEDULE, GRID])
@pytest.mark.parametrize("w", [-1.0, -0.4, 0.0, 1.0, 4.0])
def test_a_guided_image_is_that_of_the_guided_score(schedule, w):
    """(1 + w) grad log p(z|y) - w grad log p(z) = (alpha x - z)/sigma^2, Section 2.1 of the notes on Meng et al. 2022."""
    gmm, (z, t, y) = mixture(), questions()
    x = conditional(gmm, schedule)(z, t, y, w)
    for n, k in enumerate(y):
        with_class, without = (score(part, z[n], t[n], schedule) for part in (component(gmm, int(k)), gmm))
        alpha, sigma = schedule.alpha(t[n]), schedule.sigma(t[n])
        expected = (z[n].flatten() + sigma**2 * ((1 + w) * with_class - w * without)) / alpha
        close(x[n].flatten(), expected, 1e-11 / float(alpha))


# What cannot be guided, and what it costs


def test_models_that_cannot_be_guided_say_why():
    z, y = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    unconditional = as_denoiser(lambda z, t: z, SCHEDULE)
    with pytest.raises(ValueError, match="this model is unconditional and cannot be guided"):
        unconditional(z, 0.5, y, 1.0)
    with pytest.raises(ValueError, match="trained without label dropout and cannot be guided"):
        Denoiser(lambda z, t, y: z, SCHEDULE, num_classes=2)(z, 0.5, y, 1.0)
    for guidable in (as_denoiser(lambda z, t, y: z, SCHEDULE, num_classes=2), taking_weights()):
        with pytest.raises(ValueError, match="pass labels y"):
            guidable(z, 0.5, None, 1.0)


def taking_weights(seen=None):
    """x = w on every pixel."""

    def network(z, t, y, w):
        if seen is not None:
            seen.append((t, y, w))
        return expand_to(w, z).expand_as(z)

    return Denoiser(network, SCHEDULE, num_classes=2, guidance=(0.0, 4.0))


def test_a_model_that_takes_a_weight_is_asked_once_with_one_for_each_image():
    seen = []
    denoiser, z, y = taking_weights(seen), torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])
    assert denoiser(z, 0.5, y, 1.5)[:, 0, 0, 0].tolist() == [1.5] * 3
    assert denoiser(z, 0.5, y, torch.tensor([0.0, 1, 4]))[:, 0, 0, 0].tolist() == [0, 1, 4]
    assert len(seen) == 2 * denoiser.evaluations == 2
    for t, labels, w in seen:
        assert labels is y and t.shape == w.shape == (3,) and t.dtype == w.dtype == torch.float64


def test_evaluations_are_those_counted():
    asked = []

    def network(z, t, y):
        asked.append(y.tolist())
        return z

    denoiser, z, y = as_denoiser(network, SCHEDULE, num_classes=2), torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    denoiser(z, 0.5, y)
    assert asked == [[0, 1]]
    asked.clear()
    denoiser(z, 0.5, y, 2.0)
    assert sorted(asked) == [[NO_CLASS, NO_CLASS], [0, 1]] and denoiser.evaluations == len(asked)


@pytest.mark.parametrize("w", [-0.01, 4.5])
def test_a_weight_outside_the_range_is_warned_of_with_the_range(w):
    z, y = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.warns(GuidanceWarning, match=rf"^guidance {w:g} is outside .* trained for, 0 to 4$"):
        assert (taking_weights()(z, 0.5, y, w) == torch.tensor(w)).all()  # and yet it draws


def test_weights_inside_the_range_and_of_models_without_one_pass_in_silence():
    z, y = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for w in (0, 0.0, 2.5, 4, torch.tensor([0.0, 4.0])):
            taking_weights()(z, 0.5, y, w)
        conditional(mixture())(z.double(), 0.5, y, 100.0)  # guided by two evaluations: no range
