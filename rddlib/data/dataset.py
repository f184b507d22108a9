"""Images held as uint8, in memory or mapped from a file: what every loader returns and every training reads."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from rddlib.utils.errors import UserError

SPLIT_SEED = 20240  # of every split that a set does not bring itself
RESIDENT_BYTES = 2 * 1024**3  # `to` moves up to so many bytes of images; larger sets are read batch by batch


@dataclass(frozen=True)
class ImageDataset:
    """Images uint8 [M, C, H, W] with labels int64 [M] in 0..num_classes-1 (num_classes 0: no labels, all 0).

    flip: whether `batch` mirrors images. checksum: the sha256 of the pixels where it is known already.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    flip: bool = False
    checksum: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, rows: Tensor) -> Tensor:
        """The chosen images as float32 in [-1, 1], [len(rows), C, H, W], on the labels' device; rows on any device."""
        batch, device = self.images[rows.to(self.images.device)], self.labels.device
        if batch.device != device:
            batch = batch.pin_memory() if device.type == "cuda" else batch
            batch = batch.to(device, non_blocking=True)
        return batch.float() / 127.5 - 1

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The chosen images to learn from: as `floats`, each mirrored left to right with probability 1/2 where `flip`."""
        images = self.floats(rows)
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device) < 0.5
        return torch.where(mirrored.to(images.device), images.flip(3), images)

    def to(self, device) -> "ImageDataset":
        """On the device: labels always, images if they take up to RESIDENT_BYTES; more stay where they are."""
        images = self.images.to(device) if self.images.nbytes <= RESIDENT_BYTES else self.images
        return replace(self, images=images, labels=self.labels.to(device))

    def of_classes(self, classes: Sequence[int]) -> "ImageDataset":
        """Its images of these classes only, with the labels they have; all of them where `classes` is empty.

        Raises UserError for a class that it does not have.
        """
        if not classes:
            return self
        if unknown := sorted(set(classes) - set(range(self.num_classes))):
            raise UserError(
                f"{self.name} has no class {', '.join(map(str, unknown))}: choose from 0 to {self.num_classes - 1}"
            )
        rows = torch.isin(self.labels, torch.tensor(classes, device=self.labels.device)).nonzero()[:, 0]
        return replace(self, images=self.images[rows.to(self.images.device)], labels=self.labels[rows], checksum="")

    @cached_property
    def sha256(self) -> str:
        """Of the pixel values: which images a number was measured against."""
        if self.checksum:
            return self.checksum
        total = hashlib.sha256()
        for part in self.images.split(4096):
            total.update(part.cpu().contiguous().numpy())
        return total.hexdigest()

    @cached_property
    def labels_sha256(self) -> str:
        """Of the labels."""
        return hashlib.sha256(self.labels.cpu().contiguous().numpy()).hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest level."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid_png(images: Tensor) -> bytes:
    """A picture of images uint8 [N, C, H, W] in a square grid, as the content of a PNG file."""
    columns = max(1, round(len(images) ** 0.5))
    grid = make_grid(images.float() / 255, nrow=columns, padding=1, pad_value=1.0)
    picture = io.BytesIO()
    save_image(grid, picture, format="png")
    return picture.getvalue()


class WrongShape(UserError):
    """Images of another shape than the model's: `fault` says which, the message adds the remedy."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(f"{fault}: {remedy}")
        self.fault = fault


def check_shape(name: str, shape: Sequence[int], wanted: Sequence[int] | None, remedy: str = "") -> None:
    """Raises WrongShape where images of (C, H, W) are not the wanted ones; wanted None: any will do."""
    if wanted is not None and tuple(shape) != tuple(wanted):
        fault = f"{name} has images {tuple(shape)}, wanted are {tuple(wanted)}"
        raise WrongShape(fault, f"change unet.image_size / unet.image_channels{remedy}")
