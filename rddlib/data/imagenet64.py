"""Downsampled ImageNet (Chrabaszcz et al. 2017), from its batches, pickled or as .npz; no pickle can run code."""

import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rddlib.data.cache import Recipe, fingerprint, load_cached
from rddlib.data.dataset import DataConfig, ImageDataset, check_shape
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress, mode

KEY = "imagenet64"
CLASSES = 1000
FETCH = "download it anew from image-net.org"


def load_imagenet64(config: DataConfig, split: str, shape=None) -> ImageDataset:
    """Load the batches train_data_batch_1.. and val_data in config.root as images 3xSxS with labels 0..999.

    S is that of the batches, and the data set's name says it ("imagenet64" for 64). Without val_data, a seeded tenth is
    "test" and the rest "extractor". Raises UserError for missing or unreadable batches, and for pickles that contain
    anything but arrays and plain data.
    """
    root = config.folder
    train, test = _batches(root), _either(root, "val_data")
    if split == "test" and test is not None:
        dataset = load_cached(_recipe(root, [test], f"{KEY}[test]", shape, hold_out=False))["train"]
    else:
        dataset = load_cached(_recipe(root, train, KEY, shape, hold_out=test is None))[split]
    return replace(dataset, name=dataset.name.replace(KEY, f"imagenet{dataset.images.shape[-1]}"))


def _either(root: Path, name: str) -> Path | None:
    """The batch's .npz, which needs no pickle, else its pickle, else None."""
    return next((path for path in (root / f"{name}.npz", root / name) if path.is_file()), None)


def _batches(root: Path) -> list[Path]:
    found = [re.fullmatch(r"train_data_batch_(\d+)(\.npz)?", path.name) for path in root.glob("train_data_batch_*")]
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
        for i in Progress(f"converting {name}", len(files), unit="batch", quiet=mode() == "count"):
            images, labels = read_batch(files[i])
            check_shape(f"{files[i]}", images.shape[1:], expected)
            expected = images.shape[1:]
            yield images, labels
            del images  # before the next batch is read

    mark = fingerprint(root, files, name, hold_out)
    return Recipe(KEY, name, mark, CLASSES, sum(file.stat().st_size for file in files), blocks, hold_out)


def read_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch: images uint8 [n, 3, S, S] and labels int64 [n] in 0..999 (in the file 1..1000).

    Raises UserError, naming the file, if it is truncated, foreign, or its arrays have wrong types, shapes or values.
    """
    try:
        with open(file, "rb") as stream:
            npz = file.suffix == ".npz"
            # latin1: as Python 2 wrote the bytes of its arrays
            content = np.load(stream, allow_pickle=False) if npz else _Unpickler(stream, encoding="latin1").load()
            content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        data, labels = content.get("data"), np.asarray(content.get("labels", []))
    except _Forbidden as error:
        raise UserError(f"{file} is no plain batch, it asks for {error}: nothing was run; {FETCH}") from error
    except Exception as error:  # truncated or foreign files end in many kinds of errors
        raise UserError(f"{file} is truncated or no batch of downsampled ImageNet: {FETCH}") from error
    if fault := _fault(data, labels):
        raise UserError(f"{file}: {fault}; {FETCH}")
    side = math.isqrt(data.shape[1] // 3)
    return data.reshape(-1, 3, side, side), labels.astype(np.int64) - 1  # planes RRR GGG BBB


def _fault(data, labels: np.ndarray) -> str:
    """What is wrong with a batch's arrays; "" if nothing is."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or not len(data):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        return f"data is {found}, expected uint8 [n, 3*S*S]"
    width = data.shape[1]
    if width == 0 or width != 3 * math.isqrt(width // 3) ** 2:
        return f"data is {width} wide, expected 3*S*S (12288 for 64 pixels)"
    if labels.shape != (len(data),):
        return f"{len(data)} images have {labels.size} labels, expected one each"
    if labels.dtype.kind not in "iu" or labels.min() < 1 or labels.max() > CLASSES:
        return f"labels must be whole numbers 1..{CLASSES}"
    return ""


class _Forbidden(pickle.UnpicklingError):
    pass


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode, as protocol 2 spells bytes; restricted to latin1, the only encoding needed."""
    if encoding != "latin1":
        raise _Forbidden(f"encoding {encoding}")
    return text.encode("latin1")


def _frombuffer(buffer, dtype, shape, order, axis_order=None):
    """numpy's _frombuffer, as protocol 5 spells arrays."""
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
    "__builtin__.bytes": bytes,  # as protocol 2 spells b""
    **{f"numpy.{core}.{name}": value for core in ("core", "_core") for name, value in _NUMPY.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads lists, dicts, numbers, text and numpy arrays; any other name is refused before it is imported."""

    def find_class(self, module: str, name: str):
        if (found := ADMITTED.get(f"{module}.{name}")) is None:
            raise _Forbidden(f"{module}.{name}")
        return found
