import pytest
import torch

from rddlib.data import load_dataset, to_uint8
from rddlib.errors import UserError


def test_digits_are_the_bundled_images():
    from sklearn.datasets import load_digits

    data, bundled = load_dataset("digits"), load_digits()
    assert data.images.shape == (1797, 1, 8, 8) and data.images.dtype == torch.uint8 and data.num_classes == 10
    assert torch.equal(data.labels, torch.from_numpy(bundled.target).long())
    restored = data.images[:, 0].double() * 16 / 255
    torch.testing.assert_close(restored.round(), torch.from_numpy(bundled.images))


def test_splits_are_disjoint_and_fixed():
    parts = [load_dataset("digits", split) for split in ("extractor", "metric", "test")]
    assert [len(p) for p in parts] == [700, 800, 297] and sum(map(len, parts)) == 1797
    again = load_dataset("digits", "metric")
    assert torch.equal(parts[1].images, again.images) and parts[1].sha256 == again.sha256
    together = torch.cat([p.images for p in parts]).flatten(1).double()
    everything = load_dataset("digits").images.flatten(1).double()
    assert torch.equal(together.sum(0), everything.sum(0))  # a partition: each image in exactly one part


def test_floats_and_uint8_are_inverse():
    data = load_dataset("digits")
    x = data.floats(torch.arange(20))
    assert x.min() >= -1 and x.max() <= 1 and torch.equal(to_uint8(x), data.images[:20])
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.001])).tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    "name, split, words", [("digit", "all", "cannot be loaded"), ("digits", "valid", "unknown split")]
)
def test_unknown_names_are_refused(name, split, words):
    with pytest.raises(UserError, match=words):
        load_dataset(name, split)
