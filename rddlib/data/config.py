"""Which images, and where they lie: what a data loader is told."""

import os
from dataclasses import dataclass
from pathlib import Path

from rddlib.utils.installation import top_folder

DATA_VARIABLE = "RDD_DATA"  # the folder for downloads and caches, where the default will not do


@dataclass(frozen=True)
class DataConfig:
    """The images of a study (rddlib.data.load_dataset).

    name: "digits", "cifar10", "imagenet64" or "folder". root: the folder that holds them ("": the data folder's
    sub-folder `name`; digits are bundled and need none). download: let torchvision fetch CIFAR-10 (170 MB). flip: mirror
    half of the images in training, chosen anew each time; the loader itself changes nothing. resize: crop images of a
    folder to a centred square and resize them to the model's size.
    """

    name: str = "digits"
    root: str = ""
    download: bool = False
    flip: bool = False
    resize: bool = False


def data_folder() -> Path:
    """Where data sets and caches lie: $RDD_DATA, or a checkout's data/, or ./data."""
    if os.environ.get(DATA_VARIABLE):
        return Path(os.environ[DATA_VARIABLE]).expanduser()
    return top_folder() / "data"


def root_of(config: DataConfig) -> Path:
    """The folder that holds a data set's own files."""
    return Path(config.root).expanduser() if config.root else data_folder() / config.name
