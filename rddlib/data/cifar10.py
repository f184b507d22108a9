"""CIFAR-10: torchvision's files, or a copy as a folder of images."""

from pathlib import Path

import torch

from rddlib.data.dataset import DataConfig, ImageDataset, check_shape
from rddlib.data.folder import images_below, load_folder
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, one_line

BATCHES = "cifar-10-batches-py"
SHAPE = (3, 32, 32)
FETCH = "--set data.download=true fetches it (about 170 MB)"


def load_cifar10(config: DataConfig, split: str, shape=None) -> ImageDataset:
    """Load 50,000 training or 10,000 test images, 3x32x32, 10 classes; a copy in image files says so in its name.

    Raises UserError if there is no data, if it is damaged, or if the download fails.
    """
    root = config.folder
    check_shape("cifar10", SHAPE, shape)
    if config.download or (root / BATCHES).is_dir():
        return _torchvision(root, split == "test", config.download)
    if not root.is_dir() or not any(images_below(root)):
        raise UserError(f"no CIFAR-10 in {root}: {FETCH}, --set data.root=FOLDER names a copy")
    dataset = load_folder(config, split, SHAPE, f"CIFAR-10 images of folder {root.resolve().name}")
    if dataset.num_classes != 10:
        raise UserError(
            f"{root} has {counted(dataset.num_classes, 'class')}, CIFAR-10 has 10: --set data.name=folder for others"
        )
    return dataset


def _torchvision(root: Path, test: bool, download: bool) -> ImageDataset:
    from torchvision.datasets import CIFAR10

    try:
        # torchvision compares every file's MD5 with the published one before it unpickles any, so no foreign pickle runs
        data = CIFAR10(root, train=not test, download=download)
    except (OSError, RuntimeError) as error:
        if not download:
            raise UserError(f"{root / BATCHES} is damaged or incomplete: delete it, {FETCH} again") from error
        remedy = "try again, or --set data.root=FOLDER names a copy"
        raise UserError(f"CIFAR-10 cannot be downloaded ({one_line(error)}): {remedy}") from error
    name = "cifar10[test]" if test else "cifar10"
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # [M, 3, 32, 32]
    return ImageDataset(name, images, torch.tensor(data.targets), 10, class_names=tuple(data.classes))
