import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.distillation.pixel_queue import PixelQueue


def is_a_pixel_of(rows, feature_map):
    pixels = F.normalize(feature_map.flatten(2).transpose(1, 2), dim=-1).flatten(0, 1)
    return (torch.cdist(rows, pixels, compute_mode="donot_use_mm_for_euclid_dist").min(1).values < 1e-6).all()


def test_rows_are_normalised_pixels_of_the_teacher(generator):
    feature_map, queue = torch.randn(3, 5, 2, 4), PixelQueue(100, 5)
    queue.push(feature_map, 4, generator)
    assert len(queue) == 12
    rows = queue.sample(12, generator)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))
    assert is_a_pixel_of(rows, feature_map)


def test_k_pixels_of_each_image_without_repetition(generator):
    labels = torch.arange(3 * 6).float().reshape(3, 6)  # pixel a of image n points in direction (n, a)
    feature_map = torch.stack([labels.cos(), labels.sin()], dim=1)[..., None]  # [3, 2, 6, 1]
    queue = PixelQueue(12, 2)
    queue.push(feature_map, 4, generator)
    angles = torch.atan2(queue.rows[:, 1], queue.rows[:, 0]) % (2 * torch.pi)
    found = (angles[:, None] - labels.flatten()[None] % (2 * torch.pi)).abs().argmin(1)
    assert (found // 6).tolist() == [0] * 4 + [1] * 4 + [2] * 4 and len(set(found.tolist())) == 12


def one_hot_map(numbers, channels):
    return F.one_hot(torch.tensor(numbers), channels).float().reshape(len(numbers), channels, 1, 1)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 9), pushes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_wrap_order_is_first_in_first_out(size, pushes):
    queue, pushed = PixelQueue(size, 80), []
    for count in pushes:
        numbers = list(range(len(pushed), len(pushed) + count))
        queue.push(one_hot_map(numbers, 80), 1)
        pushed += numbers
    held = queue.rows[: len(queue)].argmax(1).tolist()
    assert sorted(held) == pushed[-size:]  # the newest stay
    for slot, number in enumerate(held):  # and row n of the stream lies in slot n mod size
        assert number % size == slot


def test_draws_are_without_replacement_while_there_are_enough(generator):
    queue = PixelQueue(64, 64)
    queue.push(one_hot_map(range(40), 64), 1)
    drawn = queue.sample(40, generator).argmax(1)
    assert sorted(drawn.tolist()) == list(range(40))
    assert queue.sample(100, generator).shape == (100, 64)
    assert not torch.equal(queue.sample(20, generator), queue.sample(20, generator))


def test_every_row_is_drawn_in_the_long_run(generator):
    queue = PixelQueue(50, 50)
    queue.push(one_hot_map(range(50), 50), 1)
    seen = {int(i) for _ in range(60) for i in queue.sample(5, generator).argmax(1)}
    assert len(seen) == 50


def test_state_travels(generator):
    queue, other = PixelQueue(7, 3), PixelQueue(7, 3)
    queue.push(torch.randn(5, 3, 2, 1), 2, generator)
    other.load_state_dict(queue.state_dict())
    assert len(other) == 7 and other.pushed == 10 and torch.equal(other.rows, queue.rows)


def test_no_gradient_enters_the_queue():
    queue = PixelQueue(4, 3)
    queue.push(torch.randn(2, 3, 1, 1, requires_grad=True), 1)
    assert not queue.rows.requires_grad


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: PixelQueue(0, 3), "size"),
        (lambda: PixelQueue(3, 0), "channels"),
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


def test_released_rows_are_no_pixels(generator):
    feature_map, queue = torch.randn(4, 6, 3, 3), PixelQueue(36, 6, ["queue_rows"])
    queue.push(feature_map, 9, generator)
    unit = F.normalize(feature_map, dim=1)
    viewed = unit.reshape(6, -1).T  # what the released code stores: channels and pixels mixed
    assert torch.cdist(queue.rows, viewed, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-6
    assert (queue.rows.norm(dim=1) - 1).abs().max() > 0.1
    pixels = unit.flatten(2).mT.flatten(0, 1)
    assert torch.cdist(queue.rows, pixels).min() > 1e-3


def test_released_wrap_overwrites_the_end_and_starts_over():
    queue = PixelQueue(5, 20, ["queue_wrap"])
    for first in (0, 3, 6):  # three pushes of three
        queue.push(one_hot_map(range(first, first + 3), 20), 1)
        held = queue.rows.argmax(1).tolist()
        expected = {0: [0, 1, 2], 3: [0, 1, 3, 4, 5], 6: [6, 7, 8, 4, 5]}[first]
        assert held[: len(expected)] == expected


def test_released_draw_reads_fixed_evenly_spaced_rows(generator):
    queue = PixelQueue(20_000, 4, ["queue_start", "queue_draw"])
    assert len(queue) == 20_000 and torch.allclose(queue.rows.norm(dim=1), torch.ones(20_000))
    drawn = queue.sample(4096, generator)
    assert torch.equal(drawn, queue.rows[: 4 * 4096 : 4]) and torch.equal(drawn, queue.sample(4096, generator))
    assert 20_000 - 4096 == 15_904  # never read


def test_released_k_is_per_batch(generator):
    queue = PixelQueue(100, 5, ["queue_per_batch"])
    queue.push(torch.randn(7, 5, 3, 3), 50, generator)  # more than the 9 pixels of one map
    assert len(queue) == 50


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="released names"):
        PixelQueue(3, 3, ["rows"])
