"""The entropy of a classifier at each sampling step, against closed forms and step by step."""

import math

import pytest
import torch

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.sampling import ddim_step
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.utils.errors import UserError

SCHEDULE = CosineSchedule()
TOY = as_denoiser(lambda z, t: torch.tanh(1.5 * z) * (1 - 0.5 * t[:, None, None, None]), SCHEDULE)
WEIGHTS = torch.randn(16, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def classify(images):
    return images.flatten(1) @ WEIGHTS.to(images.dtype)


def noise(count=23):
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_a_classifier_that_knows_nothing_has_the_log_of_the_classes():
    entropies = entropy_by_step(TOY, lambda x: x.new_zeros(len(x), 7), noise(), 4)
    assert entropies.dtype == torch.float64 and entropies.shape == (4,)
    torch.testing.assert_close(entropies, torch.full((4,), math.log(7), dtype=torch.float64))


def test_a_classifier_without_doubt_has_none():
    sure = lambda x: 1e4 * torch.nn.functional.one_hot(torch.arange(len(x)) % 3, 3).to(x.dtype)  # noqa: E731
    assert entropy_by_step(TOY, sure, noise(), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("clip", [True, False])
def test_each_value_is_that_of_the_prediction_at_its_step(clip):
    loud = as_denoiser(lambda z, t: 1.3 * TOY(z, t), SCHEDULE)
    z, expected = noise(), []
    for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        x = loud(z, t).clamp(-1, 1) if clip else loud(z, t)
        p = classify(x).softmax(dim=1)
        expected.append(float(-(p * p.log()).sum(dim=1).mean()))
        z = ddim_step(z, x, t, s, SCHEDULE)
    assert entropy_by_step(loud, classify, noise(), 3, clip=clip).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_change_nothing_and_bound_what_is_held(batch_size):
    seen = []

    def watched(x):
        seen.append(len(x))
        return classify(x)

    whole = entropy_by_step(TOY, classify, noise(), 4, batch_size=23)
    parts = entropy_by_step(TOY, watched, noise(), 4, batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    assert max(seen) == min(batch_size, 23) and sum(seen) == 4 * 23


def test_runs_of_fewer_steps_start_from_the_same_prediction():
    starts = [float(entropy_by_step(TOY, classify, noise(), steps)[0]) for steps in (8, 4, 2, 1)]
    assert len(set(starts)) == 1


def test_labels_go_with_their_images_through_the_batches():
    given = as_denoiser(lambda z, t, y: y[:, None, None, None].to(z.dtype).expand_as(z), SCHEDULE)
    y = torch.arange(23) % 2
    entropies = entropy_by_step(
        given, lambda x: 50 * x[:, 0, 0, :2] * x.new_tensor([1, 0]), noise(), 2, y=y, batch_size=5
    )
    assert entropies.tolist() == pytest.approx([math.log(2) * 12 / 23] * 2, abs=1e-12)  # label 0: two equal logits


def test_no_gradient_is_kept_and_no_random_number_drawn():
    weight, state = torch.nn.Parameter(torch.ones(())), torch.get_rng_state()
    entropies = entropy_by_step(as_denoiser(lambda z, t: weight * z, SCHEDULE), classify, noise(), 2)
    assert not entropies.requires_grad and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(noise=noise(0)), "holds no image: pass at least one"),
        (dict(y=torch.zeros(3, dtype=torch.long)), "3 labels for 23 images: pass one label for each"),
        (dict(steps=0), "steps is 0: choose at least 1"),
        (dict(batch_size=0), "batch_size is 0: choose at least 1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(wrong, message):
    given = dict(denoiser=TOY, classify=classify, noise=noise(), steps=2)
    with pytest.raises(UserError, match=message):
        entropy_by_step(**{**given, **wrong})
