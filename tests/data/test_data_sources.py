"""Image folders, CIFAR-10 and downsampled ImageNet, on small data made here; and the cache under them."""

import errno
import hashlib
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets import cifar as torchvision_cifar

from rddlib.data import DataConfig, cache, dataset, folder, load_dataset
from rddlib.data.imagenet64 import read_batch
from rddlib.utils.errors import UserError


@pytest.fixture(autouse=True)
def data(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("elsewhere") / "data"
    monkeypatch.setenv("RDD_DATA", str(folder))
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(path: Path, rng, size=(6, 6), mode="RGB") -> np.ndarray:
    """A random PNG; returns its pixels [H, W, 3] (or [H, W])."""
    pixels = rng.integers(0, 256, (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0]), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def refuses(words: str, config: DataConfig, split: str = "train", shape=None) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_dataset(config, split, shape)
    assert "\n" not in str(caught.value)


def caches(data: Path) -> list[Path]:
    return sorted(path for path in (data / "cache").glob("*") if path.is_dir()) + sorted(data.glob("cache/*.part"))


class Bomb:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


# Folders of images


def test_folder_with_classes(tmp_path, rng):
    root = tmp_path / "set"
    expected = [draw(root / "train" / name, rng) for name in ("cat/a.png", "cat/deep/b.PNG", "dog/a.bmp")]
    draw(root / "test" / "cat" / "a.png", rng)
    (root / "train" / "dog" / "notes.txt").write_text("no image")
    (root / "train" / "dog" / "._a.png").write_text("hidden")
    (root / "train" / ".hidden").mkdir()
    found = load_dataset(DataConfig("folder", str(root)), shape=(3, 6, 6))
    assert torch.equal(found.images, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [0, 0, 1] and found.labels.dtype == torch.int64 and found.num_classes == 2
    assert found.name == "images of folder set" and found.images.dtype == torch.uint8


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp"])
def test_every_format_is_read_in_colour_and_grey(tmp_path, suffix):
    for i in range(2):
        Image.new("RGB", (4, 4), (200, 30, 90)).save(tmp_path / f"{i}.{suffix}")
    config = DataConfig("folder", str(tmp_path))
    colour, grey = load_dataset(config, shape=(3, 4, 4)), load_dataset(config, shape=(1, 4, 4))
    assert colour.num_classes == 0 and colour.labels.tolist() == [0, 0]
    assert (colour.images.float().mean((0, 2, 3)) - torch.tensor([200.0, 30, 90])).abs().max() < 4
    assert grey.images.shape == (2, 1, 4, 4) and abs(grey.images.float().mean() - 88) < 4  # .299 R + .587 G + .114 B


def test_a_tenth_is_held_out_where_there_is_no_test_part(tmp_path, rng, data):
    pixels = np.stack([draw(tmp_path / "set" / f"{'ab'[i % 2]}/{i:03}.png", rng) for i in range(60)])
    config = DataConfig("folder", str(tmp_path / "set"))
    parts = {split: load_dataset(config, split) for split in ("train", "extractor", "test")}
    assert [len(part) for part in parts.values()] == [60, 54, 6] and len(caches(data)) == 1
    assert {part.name for part in parts.values()} == {f"images of folder set{s}" for s in ("", "[extractor]", "[test]")}

    def rows(part):
        return {(image.numpy().tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)}

    assert rows(parts["extractor"]) | rows(parts["test"]) == rows(parts["train"])
    assert not rows(parts["extractor"]) & rows(parts["test"])
    # held to the files: every image keeps its class
    assert rows(parts["train"]) == {(p.transpose(2, 0, 1).tobytes(), i % 2) for i, p in enumerate(pixels)}
    for part in parts.values():
        assert part.sha256 == hashlib.sha256(part.images.numpy().tobytes()).hexdigest()
    for path in caches(data):
        for file in path.iterdir():
            file.unlink()
    assert torch.equal(load_dataset(config, "test").images, parts["test"].images)  # made anew, the same tenth


def test_held_out_rows_are_spread_over_the_set():
    images = np.arange(1000, dtype=np.uint8)
    chosen = []
    for count in (1000, 1001):
        labels = np.arange(count)
        path = Path(os.environ["RDD_DATA"])
        path.mkdir(exist_ok=True)
        np.resize(images, count).tofile(path / "rows")
        cache._move_last(path / "rows", [count, 1, 1, 1], labels)
        assert sorted(labels) == list(range(count))
        assert np.array_equal(np.fromfile(path / "rows", np.uint8), np.resize(images, count)[labels])
        chosen.append(labels[-cache.held_out(count) :])
    assert 350 < chosen[0].mean() < 650 and not np.array_equal(chosen[0], chosen[1])


@pytest.mark.parametrize("test", ["test", "val"])
def test_parts_of_a_folder(tmp_path, rng, test):
    for part, count in (("train", 4), (test, 2)):
        for i in range(count):
            draw(tmp_path / part / "ab"[i % 2] / f"{i}.png", rng)
    config = DataConfig("folder", str(tmp_path))
    train, extractor, tested = (load_dataset(config, split) for split in ("train", "extractor", "test"))
    assert len(train) == 4 and len(tested) == 2 and torch.equal(train.images, extractor.images)
    assert tested.name == train.name + "[test]" and train.sha256 != tested.sha256
    draw(tmp_path / test / "c" / "new.png", rng)
    refuses(r"different classes \(c\)", config, "test")


def test_images_of_other_sizes(tmp_path, rng):
    draw(tmp_path / "a.png", rng, (6, 6))
    draw(tmp_path / "b.png", rng, (8, 4))
    config = DataConfig("folder", str(tmp_path))
    refuses(r"b.png is 8x4, the first image 6x6: --set data.resize=true", config)
    refuses(r"\(3, 6, 6\), wanted are \(3, 8, 8\).*--set data.resize=true", config, shape=(3, 8, 8))
    refuses(r"\(3, 6, 6\), wanted are \(2, 6, 6\)", config, shape=(2, 6, 6))
    resizing = DataConfig("folder", str(tmp_path), resize=True)
    assert load_dataset(resizing, shape=(3, 4, 4)).images.shape == (2, 3, 4, 4)
    assert load_dataset(resizing, shape=(1, 2, 2)).images.shape == (2, 1, 2, 2)
    refuses("known size", resizing)


def test_resizing_crops_to_the_centre_and_leaves_fitting_images_alone(tmp_path, rng):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255  # the centred square is white, all else black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    fitting = draw(tmp_path / "z.png", rng, (4, 4))
    images = load_dataset(DataConfig("folder", str(tmp_path), resize=True), shape=(3, 4, 4)).images
    assert images[0].min() == 255 and np.array_equal(images[1].permute(1, 2, 0), fitting)


def test_wrong_folders(tmp_path, rng):
    config = DataConfig("folder", str(tmp_path / "set"))
    refuses("no folder .*set.*data.root", config)
    refuses("no folder .*data.folder", DataConfig("folder"))
    (tmp_path / "set" / "a").mkdir(parents=True)
    refuses("holds no images", config)
    draw(tmp_path / "set" / "b" / "1.png", rng)
    refuses(r"class folder without images \(a\)", config)
    draw(tmp_path / "set" / "top.png", rng)
    refuses("at its top and in sub-folders", config)
    draw(tmp_path / "set" / "train" / "1.png", rng)
    refuses(r"train/ beside other folders \(a, b\)", config)


def test_wrong_images(tmp_path, rng, data):
    config = DataConfig("folder", str(tmp_path))
    draw(tmp_path / "a.png", rng)
    refuses("one image, which cannot be split", config)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    refuses("b.png cannot be read as an image", config)
    (tmp_path / "b.png").write_bytes(b"text")
    refuses("b.png cannot be read as an image", config)
    Image.fromarray(rng.integers(0, 60000, (6, 6), dtype=np.uint16)).save(tmp_path / "b.png")
    refuses("b.png has more than 8 bits", config)
    assert not caches(data)


# The cache


@pytest.fixture
def small(tmp_path, rng) -> DataConfig:
    for i in range(8):
        draw(tmp_path / "set" / f"{i}.png", rng)
    return DataConfig("folder", str(tmp_path / "set"))


def no_decoding(*_):
    raise AssertionError("decoded again")


def test_cache_is_used_again_and_mapped(small, data, monkeypatch):
    first = load_dataset(small)
    (made,) = caches(data)
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    monkeypatch.setattr(folder, "_decode", no_decoding)
    second = load_dataset(small)
    assert torch.equal(first.images, second.images) and second.checksum == first.sha256
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before
    if sys.platform == "linux":
        assert str(made / "images.bin") in Path("/proc/self/maps").read_text()
    monkeypatch.setattr(dataset.hashlib, "sha256", None)  # the remembered hash is not computed again
    assert second.to("cpu").sha256 == first.sha256


def test_changed_folder_makes_a_new_cache(small, data, rng):
    first = load_dataset(small)
    draw(Path(small.root) / "new.png", rng)
    assert len(load_dataset(small)) == 9 and len(caches(data)) == 2
    kept = os.stat(Path(small.root) / "0.png")
    draw(Path(small.root) / "0.png", rng)  # the same name and perhaps size, at another time
    os.utime(Path(small.root) / "0.png", ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
    assert len(caches(data)) == 2 and load_dataset(small).sha256 != first.sha256 and len(caches(data)) == 3


def _damage(path: Path, change) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def _flipped(content):
    content[-1] ^= 1
    return content


@pytest.mark.parametrize("file", ["images.bin", "labels.npy", "facts.json"])
@pytest.mark.parametrize("change", [lambda c: c[: len(c) // 2], lambda c: b"", _flipped], ids=["half", "empty", "bit"])
def test_damaged_cache_is_made_again(small, data, file, change):
    first = load_dataset(small)
    pixels, digest = first.images.clone(), first.sha256
    _damage(caches(data)[0] / file, change)
    again = load_dataset(small)
    assert torch.equal(again.images, pixels) and again.labels.tolist() == [0] * 8 and again.sha256 == digest
    facts = json.loads((caches(data)[0] / "facts.json").read_text())
    assert len(caches(data)) == 1 and facts["shape"] == [8, 3, 6, 6] and facts["sha256"]["train"] == digest


def test_full_disk_leaves_nothing(small, data, monkeypatch):
    calls = []

    def full(file, images):
        calls.append(file.write(images.tobytes()))
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_append", full)
        refuses("cannot write the cache .*No space left on device; free the place", small)
    assert len(calls) == 3 and not caches(data) and not list((data / "cache").glob("*.part"))
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        refuses("0.00 GB are free in .*RDD_DATA", small)
    assert not caches(data) and len(load_dataset(small)) == 8


def test_folder_that_cannot_be_written(small, data):
    data.write_text("a file where the folder should be")
    refuses("cannot write the cache", small)


def test_streamed_and_resident_images_are_equal(small, monkeypatch):
    rows = torch.tensor([7, 0, 3])
    resident = load_dataset(small).to("cpu").floats(rows)
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    mapped = load_dataset(small).to("cpu")
    assert torch.equal(mapped.floats(rows), resident) and resident.shape == (3, 3, 6, 6)


def _load_lengths(root: str) -> int:
    return len(load_dataset(DataConfig("folder", root)))


def test_two_processes_build_one_cache(small, data):
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_load_lengths, [small.root] * 4) == [8] * 4
    assert len(caches(data)) == 1


# CIFAR-10


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


def test_cifar_is_torchvisions(cifar):
    config = DataConfig("cifar10", str(cifar))
    train, extractor, test = (load_dataset(config, split, (3, 32, 32)) for split in ("train", "extractor", "test"))
    raw = pickle.loads((cifar / "cifar-10-batches-py" / "data_batch_2").read_bytes())["data"]
    assert torch.equal(train.images[10:20].flatten(1), torch.from_numpy(raw))
    assert train.labels.tolist() == [*range(10)] * 5 and train.num_classes == 10 and train.name == "cifar10"
    assert train.sha256 == extractor.sha256 and len(test) == 7 and test.name == "cifar10[test]"
    refuses(r"\(3, 32, 32\), wanted are \(1, 8, 8\)", config, shape=(1, 8, 8))


def test_cifar_with_a_foreign_pickle_runs_nothing(cifar, tmp_path):
    (cifar / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refuses("damaged or incomplete.*data.download=true", DataConfig("cifar10", str(cifar)))
    assert not (tmp_path / "boom").exists()
    (cifar / "cifar-10-batches-py" / "data_batch_1").unlink()
    refuses("damaged or incomplete", DataConfig("cifar10", str(cifar)))


def test_cifar_missing_and_downloaded(cifar, data, monkeypatch):
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", no_decoding)
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


def test_cifar_from_images_says_so(tmp_path, rng):
    for part, count in (("train", 2), ("test", 1)):
        for label in range(10):
            for i in range(count):
                draw(tmp_path / "copy" / part / f"class{label}" / f"{i}.png", rng, (32, 32))
    config = DataConfig("cifar10", str(tmp_path / "copy"))
    train, test = load_dataset(config), load_dataset(config, "test")
    assert (len(train), len(test)) == (20, 10) and train.labels.tolist() == sorted([*range(10)] * 2)
    assert train.name == "CIFAR-10 images of folder copy" and test.name == train.name + "[test]"
    for file in (tmp_path / "copy" / "train" / "class9").iterdir():
        file.unlink()
    (tmp_path / "copy" / "train" / "class9").rmdir()
    refuses("9 classes, CIFAR-10 has 10", config)


# Downsampled ImageNet


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


def test_planes_are_red_green_blue(tmp_path):
    data = np.repeat(np.array([[10, 20, 30]], np.uint8), 64 * 64, axis=1)
    write_npz(tmp_path / "b.npz", {"data": data, "labels": [1000]})
    images, labels = read_batch(tmp_path / "b.npz")
    assert (
        images.shape == (1, 3, 64, 64) and images.mean((0, 2, 3)).tolist() == [10, 20, 30] and labels.tolist() == [999]
    )


def imagenet(root: Path, rng, batches=2, val=True, side=4) -> tuple[DataConfig, list[dict]]:
    """Batches of 12 images, alternately pickled and .npz, and 5 images of val_data."""
    root.mkdir()
    contents = [batch(rng, side=side) for _ in range(batches)] + [batch(rng, 5, side)] * val
    names = [f"train_data_batch_{i + 1}" for i in range(batches)] + ["val_data"] * val
    for i, (name, content) in enumerate(zip(names, contents, strict=True)):
        if i % 2:
            write_npz(root / f"{name}.npz", content)
        else:
            (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return DataConfig("imagenet64", str(root)), contents


def test_imagenet_batches_in_order(tmp_path, rng, data):
    config, contents = imagenet(tmp_path / "in", rng, batches=11)
    train, extractor, test = (load_dataset(config, split) for split in ("train", "extractor", "test"))
    assert np.array_equal(train.images.flatten(1), np.concatenate([c["data"] for c in contents[:-1]]))
    assert train.labels.tolist() == [label - 1 for c in contents[:-1] for label in c["labels"]]
    assert np.array_equal(test.images.flatten(1), contents[-1]["data"]) and train.num_classes == 1000
    assert torch.equal(extractor.images, train.images) and len(caches(data)) == 2
    assert (train.name, test.name) == ("imagenet4", "imagenet4[test]")
    refuses(r"\(3, 4, 4\), wanted are \(3, 64, 64\)", config, shape=(3, 64, 64))


def test_imagenet_without_val_data_holds_out_a_tenth(tmp_path, rng):
    config, contents = imagenet(tmp_path / "in", rng, val=False, side=8)
    train, extractor, test = (load_dataset(config, split, (3, 8, 8)) for split in ("train", "extractor", "test"))
    assert (len(train), len(extractor), len(test)) == (24, 22, 2)
    parts = torch.cat([extractor.images, test.images]).flatten(1)
    assert {p.numpy().tobytes() for p in parts} == {row.tobytes() for c in contents for row in c["data"]}
    assert len({p.numpy().tobytes() for p in parts}) == 24


def test_imagenet_of_another_shape_is_refused_before_it_is_converted(tmp_path, rng, data):
    config, _ = imagenet(tmp_path / "in", rng)
    refuses(r"train_data_batch_1 has images \(3, 4, 4\), wanted are \(3, 8, 8\)", config, shape=(3, 8, 8))
    assert not caches(data)


def test_missing_batches(tmp_path, rng):
    config, _ = imagenet(tmp_path / "in", rng, batches=3)
    (tmp_path / "in" / "train_data_batch_2.npz").unlink()
    refuses("lacks train_data_batch_2", config)
    refuses("no train_data_batch_1 .*imagenet64.*data.root=FOLDER", DataConfig("imagenet64"))


def test_batches_of_two_sizes(tmp_path, rng, data):
    config, _ = imagenet(tmp_path / "in", rng)
    write_npz(tmp_path / "in" / "train_data_batch_2.npz", batch(rng, side=5))
    refuses(r"train_data_batch_2.npz has images \(3, 5, 5\)", config)
    assert not caches(data)


class Sneaky:
    """Asks for names by other routes: a builtin, a method of an admitted class, another encoding."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_foreign_pickles_run_nothing(tmp_path, rng, protocol):
    for inner in (Bomb(tmp_path / "boom"), Sneaky(eval, f"__import__('os').mkdir({str(tmp_path / 'boom')!r})")):
        for content in (inner, {**batch(rng), "mean": inner}, {inner: 1} if protocol else [inner]):
            (tmp_path / "b").write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(UserError, match="b is no plain batch, it asks for .*nothing was run"):
                read_batch(tmp_path / "b")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "name", ["numpy\nload", "numpy\nndarray.tofile", "numpy.core.multiarray\nfromfile", "os\nsystem"]
)
def test_other_names_are_refused(tmp_path, name):
    module, attribute = name.split("\n")
    for content in (
        f"c{name}\n.".encode(),
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)) + b"\x93.",
    ):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(UserError, match=f"it asks for {module}.{attribute}"):
            read_batch(tmp_path / "b")


def test_npz_with_pickled_objects_is_refused(tmp_path, rng):
    content = {**batch(rng), "labels": np.array([Bomb(tmp_path / "boom")] * 12, dtype=object)}
    with open(tmp_path / "b.npz", "wb") as file:
        np.savez(file, allow_pickle=True, **content)
    with pytest.raises(UserError, match="b.npz is truncated or no batch"):
        read_batch(tmp_path / "b.npz")
    assert not (tmp_path / "boom").exists()


WRONG = {
    "label 0": ({"labels": [0] * 12}, "1..1000"),
    "label 1001": ({"labels": [1001] * 12}, "1..1000"),
    "float labels": ({"labels": [1.5] * 12}, "1..1000"),
    "text labels": ({"labels": ["cat"] * 12}, "1..1000"),
    "fewer labels": ({"labels": [1] * 11}, "12 images have 11 labels"),
    "no labels": ({"labels": None}, "12 images have 0 labels"),
    "width": ({"data": np.zeros((12, 50), np.uint8)}, "50 wide"),
    "no width": ({"data": np.zeros((12, 0), np.uint8)}, "0 wide"),
    "dtype": ({"data": np.zeros((12, 48))}, "data is float64"),
    "no images": ({"data": np.zeros((0, 48), np.uint8)}, "expected uint8"),
    "no data": ({"data": None}, "data is NoneType"),
}


@pytest.mark.parametrize("npz", [False, True], ids=["pickle", "npz"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_batches_are_named(tmp_path, rng, case, npz):
    change, words = WRONG[case]
    content = {key: value for key, value in {**batch(rng), **change}.items() if value is not None}
    path = tmp_path / ("wrong.npz" if npz else "wrong")
    if npz:
        write_npz(path, content)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=f"{path.name}: .*{words}"):
        read_batch(path)


@pytest.mark.parametrize("npz", [False, True], ids=["pickle", "npz"])
def test_truncated_and_foreign_batches_are_named(tmp_path, rng, npz):
    config, _ = imagenet(tmp_path / "in", rng, batches=2)
    path = tmp_path / "in" / ("train_data_batch_2.npz" if npz else "train_data_batch_1")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:3], b"", b"text", pickle.dumps([1, 2])):
        path.write_bytes(content)
        refuses(f"{path.name} is truncated or no batch", config)
    path.write_bytes(pickle.dumps({"data": np.zeros((2, 48), np.uint8), "labels": [[1], [1, 2]]}))
    refuses(f"{path.name} is truncated or no batch", config)
