"""Downsampled ImageNet (Chrabaszcz et al. 2017): its batches, pickled or as .npz, as an ImageDataset; no pickle runs code."""

import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rddlib.data.cache import Recipe, fingerprint, load_cached
from rddlib.data.config import DataConfig, root_of
from rddlib.data.dataset import ImageDataset, check_shape
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress, mode

KEY = "imagenet64"
CLASSES = 1000
FETCH = "download it anew from image-net.org"


def load_imagenet64(config: DataConfig, split: str, shape=None) -> ImageDataset:
    """Batches train_data_batch_1.. and val_data, pickled or .npz, in config.root; labels 0..999 in their own order.

    Images are 3xSxS, S as the batches have it (the name then says imagenetS). Without val_data, a seeded tenth is
    "test" and the rest "extractor". Raises UserError for missing or unreadable batches and for pickles that hold
    anything but arrays and plain data.
    """
    root = root_of(config)
    train, test = _batches(root), _either(root, "val_data")
    if split == "test" and test is not None:
        dataset = load_cached(_recipe(root, [test], f"{KEY}[test]", shape, hold_out=False))["train"]
    else:
        dataset = load_cached(_recipe(root, train, KEY, shape, hold_out=test is None))[split]
    return replace(dataset, name=dataset.name.replace(KEY, f"imagenet{dataset.images.shape[-1]}"))


def _either(root: Path, name: str) -> Path | None:
    """The .npz, which needs no pickle, or the pickle, or None."""
    return next((path for path in (root / f"{name}.npz", root / name) if path.is_file()), None)


def _batches(root: Path) -> list[Path]:
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    found = [re.fullmatch(r"train_data_batch_(\d+)(\.npz)?", name) for name in names]
    numbers = sorted({int(match[1]) for match in found if match})
    if not numbers:
        raise UserError(
            f"no train_data_batch_1 (or .npz) in {root}: put downsampled ImageNet's batches from image-net.org there, "
            f"or --set data.root=FOLDER names them"
        )
    if missing := sorted(set(range(1, numbers[-1] + 1)) - set(numbers)):
        raise UserError(f"{root} lacks train_data_batch_{missing[0]}: {FETCH}")
    return [_either(root, f"train_data_batch_{number}") for number in numbers]


def _recipe(root: Path, files: list[Path], name: str, shape, hold_out: bool) -> Recipe:
    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        expected = shape
        for i in Progress(f"converting {name}", len(files), unit="batches", quiet=mode() == "count"):
            images, labels = read_batch(files[i])
            check_shape(f"{files[i]}", images.shape[1:], expected)
            expected = images.shape[1:]
            yield images, labels
            del images  # before the next one is read

    mark = fingerprint(root, files, name, hold_out)
    return Recipe(KEY, name, mark, CLASSES, sum(map(_size, files)), blocks, hold_out)


def _size(file: Path) -> int:
    """Bytes of a batch's arrays, about."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile:  # a pickle; a damaged .npz is told of when it is read
        return file.stat().st_size


def read_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch: images uint8 [n, 3, S, S] and labels int64 [n] in 0..999 (in the file 1..1000).

    Raises UserError, naming the file, where it is truncated, foreign, or its arrays are not what they should be.
    """
    try:
        content = _read_npz(file) if file.suffix == ".npz" else _read_pickle(file)
        data, labels = content.get("data"), np.asarray(content.get("labels", []))
    except _Forbidden as error:
        raise UserError(f"{file} is no plain batch, it asks for {error}: nothing was run; {FETCH}") from error
    except Exception as error:  # truncated or foreign files end in many kinds of errors
        raise UserError(f"{file} is truncated or no batch of downsampled ImageNet: {FETCH}") from error
    images = _images(data, file)
    return images, _labels(labels, len(images), file)


def _images(data, file: Path) -> np.ndarray:
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or not len(data):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(f"{file}: data is {found}, expected uint8 [n, 3*S*S]; {FETCH}")
    side = math.isqrt(data.shape[1] // 3)
    if data.shape[1] != 3 * side * side or side == 0:
        raise UserError(f"{file}: data is {data.shape[1]} wide, expected 3*S*S (12288 for 64 pixels); {FETCH}")
    return data.reshape(-1, 3, side, side)  # planes RRR GGG BBB


def _labels(labels: np.ndarray, count: int, file: Path) -> np.ndarray:
    if labels.shape != (count,):
        raise UserError(f"{file}: {count} images have {labels.size} labels, expected one each; {FETCH}")
    if labels.dtype.kind not in "iu" or labels.min() < 1 or labels.max() > CLASSES:
        raise UserError(f"{file}: labels must be whole numbers 1..{CLASSES}; {FETCH}")
    return labels.astype(np.int64) - 1


def _read_npz(file: Path) -> dict:
    with np.load(file, allow_pickle=False) as content:
        return {key: content[key] for key in ("data", "labels") if key in content}


def _read_pickle(file: Path) -> dict:
    with open(file, "rb") as stream:
        content = _Unpickler(stream, encoding="latin1").load()  # latin1: as Python 2 wrote the bytes of its arrays
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}


class _Forbidden(pickle.UnpicklingError):
    pass


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes; another encoding than latin1 is not needed, so it is not admitted."""
    if encoding != "latin1":
        raise _Forbidden(f"encoding {encoding}")
    return text.encode("latin1")


def _frombuffer(buffer, dtype, shape, order, axis_order=None):
    """How protocol 5 spells arrays."""
    if axis_order is not None:
        raise _Forbidden("an array with permuted axes")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


_NUMPY = {
    "multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "multiarray.scalar": np.uint8(0).__reduce__()[0],
    "numeric._frombuffer": _frombuffer,
}
ADMITTED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": bytes,  # protocol 2 spells b"" so
    **{f"numpy.{core}.{name}": value for core in ("core", "_core") for name, value in _NUMPY.items()},
}


class _Unpickler(pickle.Unpickler):
    """Lists, dicts, numbers, text and numpy arrays; any other name a pickle asks for is refused before it is imported."""

    def find_class(self, module: str, name: str):
        if (found := ADMITTED.get(f"{module}.{name}")) is None:
            raise _Forbidden(f"{module}.{name}")
        return found
