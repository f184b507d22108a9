"""The pixel queue: rows are unit pixels of the teacher, first in, first out; and where the released code departs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.distillation.pixel_queue import PixelQueue


def numbered_map(numbers, channels=80):
    """One-pixel maps, image k of which points along axis numbers[k]: what a row came from can be read off."""
    return F.one_hot(torch.tensor(numbers), channels).float()[:, :, None, None]


def nearest(rows, pixels):
    """Distance of each row to the nearest pixel."""
    return torch.cdist(rows, pixels, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


def test_rows_are_k_normalised_pixels_of_each_image_without_repetition(generator):
    feature_map = torch.randn(3, 5, 2, 4)
    queue = PixelQueue(12, 5)
    queue.push(feature_map.requires_grad_(), 4, generator)
    pixels = F.normalize(feature_map.detach().flatten(2).mT, dim=-1).flatten(0, 1)  # image by image
    distance = torch.cdist(queue.rows, pixels, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.argmin(1)
    assert len(queue) == 12 and distance.min(1).values.max() < 1e-6 and not queue.rows.requires_grad
    assert (found // 8).tolist() == [0] * 4 + [1] * 4 + [2] * 4 and len(set(found.tolist())) == 12


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 9), pushes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_wrap_order_is_first_in_first_out(size, pushes):
    queue, pushed = PixelQueue(size, 80), []
    for count in pushes:
        numbers = list(range(len(pushed), len(pushed) + count))
        queue.push(numbered_map(numbers), 1)
        pushed += numbers
    held = queue.rows[: len(queue)].argmax(1).tolist()
    assert sorted(held) == pushed[-size:]  # the newest stay
    assert all(number % size == slot for slot, number in enumerate(held))  # row n of the stream lies in slot n mod size


def test_draws_are_random_and_without_replacement_while_there_are_enough(generator):
    queue = PixelQueue(64, 80)
    queue.push(numbered_map(range(40)), 1)
    assert sorted(queue.sample(40, generator).argmax(1).tolist()) == list(range(40))
    assert queue.sample(100, generator).shape == (100, 80)
    drawn = [queue.sample(5, generator).argmax(1) for _ in range(60)]
    assert not torch.equal(drawn[0], drawn[1]) and len(torch.cat(drawn).unique()) == 40  # each in the long run


def test_state_travels(generator):
    queue, other = PixelQueue(7, 3), PixelQueue(7, 3)
    queue.push(torch.randn(5, 3, 2, 1), 2, generator)
    other.load_state_dict(queue.state_dict())
    assert len(other) == 7 and other.pushed == 10 and torch.equal(other.rows, queue.rows)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: PixelQueue(0, 3), "size"),
        (lambda: PixelQueue(3, 0), "channels"),
        (lambda: PixelQueue(3, 3, ["rows"]), "released names"),
        (lambda: PixelQueue(4, 3).sample(2), "empty"),
        (lambda: PixelQueue(4, 3).sample(0), "count"),
        (lambda: PixelQueue(4, 3).push(torch.randn(2, 3, 4), 1), "map_teacher"),
        (lambda: PixelQueue(4, 3).push(torch.randn(2, 5, 2, 2), 1), "map_teacher"),
        (lambda: PixelQueue(4, 3).push(torch.randn(2, 3, 2, 2), 5), "per_image"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# the released code


def test_released_rows_are_no_pixels(generator):
    feature_map, queue = torch.randn(4, 6, 3, 3), PixelQueue(36, 6, ["queue_rows"])
    queue.push(feature_map, 9, generator)
    unit = F.normalize(feature_map, dim=1)
    assert nearest(queue.rows, unit.reshape(6, -1).T).max() < 1e-6  # what it stores: channels and pixels mixed
    assert (queue.rows.norm(dim=1) - 1).abs().max() > 0.1
    assert nearest(queue.rows, unit.flatten(2).mT.flatten(0, 1)).min() > 1e-3


def test_released_wrap_overwrites_the_end_and_starts_over():
    queue = PixelQueue(5, 80, ["queue_wrap"])
    for first, expected in ((0, [0, 1, 2]), (3, [0, 1, 3, 4, 5]), (6, [6, 7, 8, 4, 5])):  # three pushes of three
        queue.push(numbered_map(range(first, first + 3)), 1)
        assert queue.rows.argmax(1)[: len(expected)].tolist() == expected


def test_released_draw_reads_fixed_evenly_spaced_rows(generator):
    queue = PixelQueue(20_000, 4, ["queue_start", "queue_draw"])
    assert len(queue) == 20_000 and torch.allclose(queue.rows.norm(dim=1), torch.ones(20_000))
    drawn = queue.sample(4096, generator)
    assert torch.equal(drawn, queue.rows[: 4 * 4096 : 4]) and torch.equal(drawn, queue.sample(4096, generator))


def test_released_k_is_per_batch(generator):
    queue = PixelQueue(100, 5, ["queue_per_batch"])
    queue.push(torch.randn(7, 5, 3, 3), 50, generator)  # more than the 9 pixels of one map
    assert len(queue) == 50
