"""Image data sets behind one function, `load_dataset`: one file per source and one line per source in SOURCES."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from rddlib.data.captions import load_captions
from rddlib.data.cifar10 import load_cifar10
from rddlib.data.dataset import DataConfig, ImageDataset, WrongShape, check_shape, data_folder, grid_png, to_uint8
from rddlib.data.digits import DIGITS_SPLITS, load_digits
from rddlib.data.folder import load_folder
from rddlib.data.imagenet64 import load_imagenet64
from rddlib.utils.errors import UserError, check_known

__all__ = ["DataConfig", "ImageDataset", "WrongShape", "data_folder", "grid_png", "load_dataset", "to_uint8"]


class Source(NamedTuple):
    """load: (config, split, wanted shape (C, H, W) or None) -> ImageDataset; classes: how many it has, 0 where its files
    say."""

    load: Callable[..., ImageDataset]
    classes: int


SOURCES = {
    "digits": Source(load_digits, 10),
    "cifar10": Source(load_cifar10, 10),
    "imagenet64": Source(load_imagenet64, 1000),
    "folder": Source(load_folder, 0),
    "captions": Source(load_captions, 0),
}


def load_dataset(
    config: DataConfig | str, split: str = "train", shape: tuple[int, int, int] | None = None
) -> ImageDataset:
    """Load a data set.

    Args:
        config: a DataConfig, or a name that stands for DataConfig(name).
        split: "train", the images that diffusion models learn from and are scored against (digits: all 1,797);
            "extractor", those that the classifier learns from (digits: 700; others: "train", without a seeded tenth if the
            set has no test part); "test" (digits: 297; others: the test part or that tenth); "metric" (digits only: 800,
            for the network that scores).
        shape: the expected (C, H, W), or None for any.

    Raises UserError for unknown names, missing or damaged data, and images of another shape.
    """
    config = DataConfig(config) if isinstance(config, str) else config
    check_known("data set", config.name, SOURCES)
    check_known("split", split, ["train", *(DIGITS_SPLITS if config.name == "digits" else ("extractor", "test"))])
    whole = shape and (shape[0], *(size << config.halve for size in shape[1:]))  # before it is halved
    try:
        dataset = SOURCES[config.name].load(config, split, whole)
    except WrongShape as error:
        if not config.halve:
            raise
        raise WrongShape(
            f"{error.fault} before data.halve={config.halve}", "change data.halve or unet.image_size"
        ) from None
    except OSError as error:
        raise UserError(f"data set {config.name} cannot be read: {error}; correct the folder or its rights") from error
    for _ in range(config.halve):
        dataset = dataset.halved()
    if config.halve:
        dataset = replace(dataset, name=f"{dataset.name}, {dataset.images.shape[3]}x{dataset.images.shape[2]}")
    check_shape(dataset.name, dataset.images.shape[1:], shape)
    return replace(dataset, flip=config.flip)
