"""Images to learn from, of several sources behind one function; and a mixture with a known denoiser to check maths with."""

import difflib
from collections.abc import Iterable
from dataclasses import replace

from rddlib.data.cifar10 import load_cifar10
from rddlib.data.config import DataConfig, data_folder
from rddlib.data.dataset import ImageDataset, WrongShape, check_shape, grid_png, to_uint8
from rddlib.data.digits import DIGITS_SPLITS, load_digits
from rddlib.data.folder import load_folder
from rddlib.data.imagenet64 import load_imagenet64
from rddlib.utils.errors import UserError

__all__ = [
    "DIGITS_SPLITS",
    "DataConfig",
    "ImageDataset",
    "WrongShape",
    "data_folder",
    "grid_png",
    "load_dataset",
    "to_uint8",
]

SOURCES = {"digits": load_digits, "cifar10": load_cifar10, "imagenet64": load_imagenet64, "folder": load_folder}


def load_dataset(
    config: DataConfig | str, split: str = "train", shape: tuple[int, int, int] | None = None
) -> ImageDataset:
    """Load a data set; a string means DataConfig(string).

    split: "train", what diffusion models learn from and are scored against (digits: all 1,797); "extractor", what the
    classifier learns from (digits: 700; others: "train", less a seeded tenth where the set has no test part); "test"
    (digits: 297; else the set's own or that tenth); "metric" (digits only: 800, for the network that scores). shape:
    the (C, H, W) wanted. Raises UserError for unknown names, missing or damaged data and images of another shape.
    """
    config = DataConfig(config) if isinstance(config, str) else config
    if config.name not in SOURCES:
        raise UserError(_unknown("data set", config.name, SOURCES))
    known = ["train", *(DIGITS_SPLITS if config.name == "digits" else ("extractor", "test"))]
    if split not in known:
        raise UserError(_unknown("split", split, known))
    try:
        dataset = SOURCES[config.name](config, split, shape)
    except OSError as error:
        raise UserError(f"data set {config.name} cannot be read: {error}; correct the folder or its rights") from error
    check_shape(dataset.name, dataset.images.shape[1:], shape)
    return replace(dataset, flip=config.flip)


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"unknown {what} {word!r}{f' (did you mean {close[0]!r}?)' if close else ''}: known are {', '.join(known)}"
