"""The digits bundled with scikit-learn: real images, nothing to download."""

import numpy as np
import torch

from rddlib.data.dataset import SPLIT_SEED, DataConfig, ImageDataset
from rddlib.utils.errors import UserError

NAMES = tuple("0123456789")
DIGITS_SPLITS = {"extractor": (0, 700), "metric": (700, 1500), "test": (1500, 1797)}


def load_digits(config: DataConfig, split: str, shape=None) -> ImageDataset:
    """Load 1,797 real 8x8 grey images (UCI, test part); splits other than "train" are three disjoint parts of them."""
    from sklearn import datasets

    if config.root:
        raise UserError(f"digits are bundled, data.root={config.root} is not read: leave data.root empty")
    bundled = datasets.load_digits()
    levels = np.rint(bundled.images * (255 / 16)).astype(np.uint8)  # the set has 17 grey levels, 0..16
    images, labels = torch.from_numpy(levels)[:, None], torch.from_numpy(bundled.target).long()
    if split == "train":
        return ImageDataset("digits", images, labels, 10, class_names=NAMES)
    start, stop = DIGITS_SPLITS[split]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))[start:stop]
    return ImageDataset(f"digits[{split}]", images[order], labels[order], 10, class_names=NAMES)
