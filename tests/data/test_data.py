"""What every data set is: digits, splits, hashes, floats, flips; and wrong names."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import refused

from rddlib.data import SOURCES, DataConfig, ImageDataset, data_folder, dataset, load_dataset, to_uint8
from rddlib.utils.errors import UserError


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


def test_the_digits_hash_is_the_one_in_published_receipts():
    published = json.loads((Path(__file__).parents[2] / "data/results/digits_receipts.json").read_text())
    assert f'"reference_sha256": "{load_dataset("digits").sha256}"' in json.dumps(published)


def test_floats_and_uint8_are_inverse():
    data = load_dataset("digits")
    x = data.floats(torch.arange(20))
    assert torch.equal(x, data.images[:20].float() / 127.5 - 1) and torch.equal(to_uint8(x), data.images[:20])
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.001])).tolist() == [0, 255, 128]


def test_large_sets_stay_where_they_are(monkeypatch):
    data, rows = load_dataset("digits"), torch.tensor([3, 1, 3])
    assert data.to("meta").images.device.type == "meta"
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", data.images.nbytes)
    assert data.to("meta").images.device.type == "meta"  # up to and including
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", data.images.nbytes - 1)
    moved = data.to("meta")
    assert moved.images.data_ptr() == data.images.data_ptr() and moved.labels.device.type == "meta"
    assert moved.floats(rows).device.type == "meta" and moved.floats(rows).shape == (3, 1, 8, 8)
    assert torch.equal(data.to("cpu").floats(rows), data.floats(rows))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_streamed_and_resident_images_are_equal_on_cuda(monkeypatch):
    data, rows = load_dataset("digits"), torch.tensor([5, 0, 1796])
    resident = data.to("cuda")
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    streamed = data.to("cuda")
    assert resident.images.is_cuda and not streamed.images.is_cuda
    for where in (rows, rows.cuda()):
        assert streamed.floats(where).is_cuda and torch.equal(streamed.floats(where), resident.floats(where))


def test_hash_takes_slices_of_any_layout():
    images = torch.randint(0, 256, (5000, 3, 2, 2), dtype=torch.uint8)
    turned = ImageDataset("x", images.transpose(2, 3), torch.zeros(5000), 0)
    assert turned.sha256 == hashlib.sha256(turned.images.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    "config, split, words",
    [
        ("digit", "train", "did you mean 'digits'.*cifar10, imagenet64, folder"),
        ("digits", "all", "unknown split 'all'.*train, extractor, metric, test"),
        ("digits", "tests", "did you mean 'test'"),
        ("cifar10", "metric", "unknown split 'metric'.*known are train, extractor, test"),
        (DataConfig("digits", root="somewhere"), "train", "leave data.root empty"),
    ],
)
def test_wrong_names_are_refused(config, split, words):
    assert re.search(words, refused(load_dataset, config, split))


def test_another_shape_is_refused():
    assert len(load_dataset("digits", shape=(1, 8, 8))) == 1797
    with pytest.raises(UserError, match=r"\(1, 8, 8\), wanted are \(3, 8, 8\): change unet.image_size"):
        load_dataset("digits", shape=(3, 8, 8))


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("RDD_DATA")
    assert data_folder().name == "data" and (data_folder().parent / "pyproject.toml").exists()


def test_flips_mirror_about_half_of_the_images_and_follow_from_the_seed():
    data, rows = replace(load_dataset("digits"), flip=True), torch.arange(400)

    def drawn(seed):
        return data.batch(rows, torch.Generator().manual_seed(seed))

    plain, batch = data.floats(rows), drawn(0)
    mirrored = [torch.equal(b, p.flip(2)) and not torch.equal(b, p) for b, p in zip(batch, plain, strict=True)]
    kept = [torch.equal(b, p) for b, p in zip(batch, plain, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True)) and 150 < sum(mirrored) < 250
    assert torch.equal(drawn(0), batch) and not torch.equal(drawn(1), batch)


def test_without_flip_nothing_is_drawn_from_the_generator():
    data, generator = load_dataset("digits"), torch.Generator().manual_seed(0)
    assert torch.equal(data.batch(torch.arange(9), generator), data.floats(torch.arange(9)))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


# halving


def test_halved_images_are_rounded_means_of_squares():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 8, 12), generator=rng, dtype=torch.uint8)
    dataset = ImageDataset("x", images, torch.arange(5), 5)
    half = dataset.halved()
    means = torch.nn.functional.avg_pool2d(images.double(), 2)
    assert half.images.shape == (5, 3, 4, 6) and half.images.dtype == torch.uint8
    assert torch.equal(half.images.double(), (means + 0.5).floor())
    mirrored = ImageDataset("x", images.flip(3), torch.arange(5), 5).halved()
    assert torch.equal(mirrored.images, half.images.flip(3)) and half.sha256 != dataset.sha256


def test_a_data_set_is_halved_as_often_as_asked():
    once, twice = (load_dataset(DataConfig("digits", halve=k), shape=(1, 8 >> k, 8 >> k)) for k in (1, 2))
    assert torch.equal(once.halved().images, twice.images) and once.name == "digits, 4x4"
    with pytest.raises(UserError, match=r"^digits has images of 1x1 pixels, which cannot be halved"):
        load_dataset(DataConfig("digits", halve=4))
    with pytest.raises(
        UserError, match=r"wanted are \(3, 64, 64\) before data.halve=1: change data.halve or unet.image_size$"
    ):
        load_dataset(DataConfig("cifar10", halve=1), shape=(3, 32, 32))
    with pytest.raises(ValueError, match="halve is -1"):
        DataConfig("digits", halve=-1)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_told_of(name):
    assert (
        f"| `{name}` |" in (Path(__file__).parents[2] / "docs/own.md").read_text() and f'"{name}"' in DataConfig.__doc__
    )
