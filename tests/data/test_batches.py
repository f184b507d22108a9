"""CIFAR-10 and downsampled ImageNet in their published forms, on small data made here; foreign pickles run nothing."""

import hashlib
import os
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from tiny import refused
from torchvision.datasets import CIFAR10
from torchvision.datasets import cifar as torchvision_cifar

from rddlib.data import DataConfig, load_dataset
from rddlib.data.imagenet64 import read_batch

pytestmark = pytest.mark.usefixtures("data")


@pytest.fixture
def cifar(tmp_path, rng, monkeypatch) -> Path:
    """torchvision's files in small, with their checksums in place of the published ones; returns the root."""
    base = tmp_path / "root" / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    def batch(count):
        return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": list(range(count))}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(10)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(7))])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path / "root"


def test_cifar_is_torchvisions(cifar, refuses):
    config = DataConfig("cifar10", str(cifar))
    train, extractor, test = (load_dataset(config, split, (3, 32, 32)) for split in ("train", "extractor", "test"))
    raw = pickle.loads((cifar / "cifar-10-batches-py" / "data_batch_2").read_bytes())["data"]
    assert torch.equal(train.images[10:20].flatten(1), torch.from_numpy(raw))
    assert train.labels.tolist() == [*range(10)] * 5 and train.num_classes == 10 and train.name == "cifar10"
    assert train.sha256 == extractor.sha256 and len(test) == 7 and test.name == "cifar10[test]"
    refuses(r"\(3, 32, 32\), wanted are \(1, 8, 8\)", config, shape=(1, 8, 8))


def test_cifar_with_a_foreign_pickle_runs_nothing(cifar, bomb, refuses):
    (cifar / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(bomb))
    refuses("damaged or incomplete.*data.download=true", DataConfig("cifar10", str(cifar)))
    (cifar / "cifar-10-batches-py" / "data_batch_1").unlink()
    refuses("damaged or incomplete", DataConfig("cifar10", str(cifar)))


def test_cifar_missing_and_downloaded(cifar, monkeypatch, refuses):
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", None)  # not called unless asked
    refuses("no CIFAR-10 in .*cifar10: --set data.download=true.*--set data.root=FOLDER", DataConfig("cifar10"))

    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", offline)
    refuses("cannot be downloaded .*no route", DataConfig("cifar10", download=True))

    def fetch(url, root, filename, md5):
        os.makedirs(root, exist_ok=True)
        (cifar / "cifar-10-batches-py").rename(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", fetch)
    assert len(load_dataset(DataConfig("cifar10", download=True))) == 50
    assert len(load_dataset("cifar10", "test")) == 7  # found in the data folder from now on


def test_cifar_from_images_says_so(tmp_path, draw, refuses):
    for label in range(10):
        for name in ("train/class{}/0.png", "train/class{}/1.png", "test/class{}/0.png"):
            draw(tmp_path / "copy" / name.format(label), (32, 32))
    config = DataConfig("cifar10", str(tmp_path / "copy"))
    train, test = load_dataset(config), load_dataset(config, "test")
    assert (len(train), len(test)) == (20, 10) and train.labels.tolist() == sorted([*range(10)] * 2)
    assert train.name == "CIFAR-10 images of folder copy" and test.name == train.name + "[test]"
    (tmp_path / "copy" / "train" / "class9").rename(tmp_path / "elsewhere")
    refuses("9 classes, CIFAR-10 has 10", config)


def batch(rng, count=12, side=4) -> dict:
    return {
        "data": rng.integers(0, 256, (count, 3 * side * side), dtype=np.uint8),
        "labels": [int(label) for label in rng.integers(1, 1001, count)],
        "mean": np.zeros(3 * side * side),
    }


def as_python2(content: dict) -> bytes:
    """What Python 2 wrote: protocol 2 with byte strings for keys and pixels, and numpy's old module names."""
    data = content["data"]
    raw, shape = data.tobytes(), data.shape

    def text(word: bytes) -> bytes:
        return b"T" + len(word).to_bytes(4, "little") + word  # BINSTRING

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01("
        + b"".join(b"J" + n.to_bytes(4, "little") for n in shape)
        + b"tcnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(raw)
        + b"tb"
    )
    labels = b"](" + b"".join(b"J" + n.to_bytes(4, "little") for n in content["labels"]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


def write_npz(path: Path, content: dict) -> None:
    with open(path, "wb") as file:
        np.savez(file, **content)


FORMS = {
    **{f"protocol {p}": lambda content, p=p: pickle.dumps(content, protocol=p) for p in (2, 3, 4, 5)},
    "old names": lambda content: pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core."),
    "bytes keys": lambda content: pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2),
    "numpy labels": lambda content: pickle.dumps({**content, "labels": np.asarray(content["labels"], np.int16)}),
    "scalar labels": lambda content: pickle.dumps({**content, "labels": list(np.asarray(content["labels"]))}),
    "python 2": as_python2,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_batch_is_read(tmp_path, rng, form):
    content = batch(rng)
    (tmp_path / "b").write_bytes(FORMS[form](content))
    images, labels = read_batch(tmp_path / "b")
    assert np.array_equal(images, content["data"].reshape(12, 3, 4, 4)) and images.dtype == np.uint8
    assert np.array_equal(labels, np.array(content["labels"]) - 1) and labels.dtype == np.int64


@pytest.fixture
def imagenet(tmp_path, rng):
    """Make batches of 12 images, alternately pickled and .npz, and 5 images of val_data -> (config, contents)."""

    def made(batches=2, val=True, side=4):
        contents = [batch(rng, side=side) for _ in range(batches)] + [batch(rng, 5, side)] * val
        names = [f"train_data_batch_{i + 1}" for i in range(batches)] + ["val_data"] * val
        for i, (name, content) in enumerate(zip(names, contents, strict=True)):
            if i % 2:
                write_npz(tmp_path / f"{name}.npz", content)
            else:
                (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
        return DataConfig("imagenet64", str(tmp_path)), contents

    return made


def test_imagenet_batches_in_order(imagenet, caches, refuses):
    config, contents = imagenet(batches=11)
    train, extractor, test = (load_dataset(config, split) for split in ("train", "extractor", "test"))
    assert np.array_equal(train.images.flatten(1), np.concatenate([c["data"] for c in contents[:-1]]))
    assert train.labels.tolist() == [label - 1 for c in contents[:-1] for label in c["labels"]]
    assert np.array_equal(test.images.flatten(1), contents[-1]["data"]) and train.num_classes == 1000
    assert torch.equal(extractor.images, train.images) and len(caches()) == 2
    assert (train.name, test.name) == ("imagenet4", "imagenet4[test]")
    refuses(r"\(3, 4, 4\), wanted are \(3, 64, 64\)", config, shape=(3, 64, 64))


def test_imagenet_without_val_data_holds_out_a_tenth(imagenet):
    config, contents = imagenet(val=False, side=8)
    train, extractor, test = (load_dataset(config, split, (3, 8, 8)) for split in ("train", "extractor", "test"))
    assert (len(train), len(extractor), len(test)) == (24, 22, 2)
    parts = torch.cat([extractor.images, test.images]).flatten(1)
    assert {p.numpy().tobytes() for p in parts} == {row.tobytes() for c in contents for row in c["data"]}


def test_missing_and_differing_batches(imagenet, rng, caches, refuses):
    config, _ = imagenet(batches=3)
    second = Path(config.root) / "train_data_batch_2.npz"
    refuses(r"train_data_batch_1 has images \(3, 4, 4\), wanted are \(3, 8, 8\)", config, shape=(3, 8, 8))
    write_npz(second, batch(rng, side=5))
    refuses(r"train_data_batch_2.npz has images \(3, 5, 5\)", config)
    second.unlink()
    refuses("lacks train_data_batch_2", config)
    refuses("no train_data_batch_1 .*imagenet64.*data.root=FOLDER", DataConfig("imagenet64"))
    assert not caches()


class Sneaky:
    """Asks for a builtin."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return eval, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_foreign_pickles_run_nothing(tmp_path, rng, bomb, protocol):
    for inner in (bomb, Sneaky(f"__import__('os').mkdir({bomb.path!r})")):
        for content in (inner, {**batch(rng), "mean": inner}, {inner: 1} if protocol else [inner]):
            (tmp_path / "b").write_bytes(pickle.dumps(content, protocol=protocol))
            assert re.search("b is no plain batch, it asks for .*nothing was run", refused(read_batch, tmp_path / "b"))


@pytest.mark.parametrize(
    "name", ["numpy\nload", "numpy\nndarray.tofile", "numpy.core.multiarray\nfromfile", "os\nsystem"]
)
def test_other_names_are_refused(tmp_path, name):
    module, attribute = name.split("\n")
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute))
    for content in (f"c{name}\n.".encode(), b"\x80\x04" + words + b"\x93."):
        (tmp_path / "b").write_bytes(content)
        assert re.search(f"it asks for {module}.{attribute}", refused(read_batch, tmp_path / "b"))


@pytest.mark.parametrize(
    "content, words",
    [  # _codecs.encode(text, "utf-7"), and an array of protocol 5 with permuted axes
        (b"c_codecs\nencode\n(Va\nVutf-7\ntR.", "encoding utf-7"),
        (b"cnumpy.core.numeric\n_frombuffer\n(NNNNI1\ntR.", "an array with permuted axes"),
    ],
)
def test_admitted_names_are_held_to_what_arrays_need(tmp_path, content, words):
    (tmp_path / "b").write_bytes(content)
    assert re.search(f"it asks for {words}", refused(read_batch, tmp_path / "b"))


def test_npz_with_pickled_objects_is_refused(tmp_path, rng, bomb):
    write_npz(tmp_path / "b.npz", {**batch(rng), "labels": np.array([bomb] * 12, dtype=object)})
    assert re.search("b.npz is truncated or no batch", refused(read_batch, tmp_path / "b.npz"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": [0] * 12}, "1..1000"),
        ({"labels": [1001] * 12}, "1..1000"),
        ({"labels": [1.5] * 12}, "1..1000"),
        ({"labels": [1] * 11}, "12 images have 11 labels"),
        ({"labels": None}, "12 images have 0 labels"),
        ({"data": np.zeros((12, 50), np.uint8)}, "50 wide"),
        ({"data": np.zeros((12, 0), np.uint8)}, "0 wide"),
        ({"data": np.zeros((12, 48))}, "data is float64"),
        ({"data": np.zeros((0, 48), np.uint8)}, "expected uint8"),
        ({"data": None}, "data is NoneType"),
    ],
)
def test_wrong_batches_are_named(tmp_path, rng, change, words):
    content = {key: value for key, value in {**batch(rng), **change}.items() if value is not None}
    write_npz(tmp_path / "wrong.npz", content)
    (tmp_path / "wrong").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("wrong", "wrong.npz"):
        assert re.search(f"{name}: .*{words}", refused(read_batch, tmp_path / name))


@pytest.mark.parametrize("name", ["train_data_batch_1", "train_data_batch_2.npz"])
def test_truncated_and_foreign_batches_are_named(imagenet, refuses, name):
    config, _ = imagenet()
    path = Path(config.root) / name
    whole, uneven = path.read_bytes(), {"data": np.zeros((2, 48), np.uint8), "labels": [[1], [1, 2]]}
    for content in (whole[: len(whole) // 2], whole[:3], b"", b"text", pickle.dumps([1, 2]), pickle.dumps(uneven)):
        path.write_bytes(content)
        refuses(f"{name} is truncated or no batch", config)
