"""What every loader takes and returns: a DataConfig, and an ImageDataset of uint8 images in memory or memory-mapped."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.utils import make_grid

from rddlib.utils.checks import at_least
from rddlib.utils.errors import UserError, nearest
from rddlib.utils.installation import top_folder

DATA_VARIABLE = "RDD_DATA"  # environment variable: the folder for downloads and caches
SPLIT_SEED = 20240  # of every split that a data set does not define itself
VISIBLE, HEADING = 64, 18  # pixels that an image of a grid has at least, and of the line with its columns' names
RESIDENT_BYTES = 2 * 1024**3  # `ImageDataset.to` moves at most this many bytes; larger sets are read batch by batch


@dataclass(frozen=True)
class DataConfig:
    """Which data set to load, and how.

    Attributes:
        name: "digits", "cifar10", "imagenet64", "folder" or "captions".
        root: the folder with the files; "" means the sub-folder `name` of the data folder (digits are bundled).
        download: let torchvision download CIFAR-10 (170 MB).
        flip: mirror each training image with probability 1/2, drawn anew for every batch.
        resize: crop the images of a folder to the model's proportions and resize them to its size.
        halve: how often to halve width and height, each pixel the mean of 2x2, rounded; held in memory.
    """

    name: str = "digits"
    root: str = ""
    download: bool = False
    flip: bool = False
    resize: bool = False
    halve: int = 0

    def __post_init__(self):
        at_least(self, 0, "halve")

    @property
    def folder(self) -> Path:
        """The folder with the data set's own files."""
        return Path(self.root).expanduser() if self.root else data_folder() / self.name


def data_folder() -> Path:
    """The folder of data sets and caches: $RDD_DATA, else data/ in the checkout, else ./data."""
    chosen = os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else top_folder() / "data"


@dataclass(frozen=True)
class ImageDataset:
    """Images uint8 [M, C, H, W] with labels int64 [M] in 0..num_classes-1 (without classes: num_classes 0, labels 0).

    Or latents of images, float32 [M, C, H, W], of any size; their labels may be numbers of prompts.

    flip: whether `batch` mirrors images. checksum: the sha256 of the pixels if already known, else "". class_names: in the
    order of the labels; () where they are not known.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    flip: bool = False
    checksum: str = field(default="", repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, rows: Tensor) -> Tensor:
        """The given rows as float32 images in [-1, 1] (latents as they are), [len(rows), C, H, W], on the labels' device."""
        batch, device = self.images[_sent(rows, self.images.device)], self.labels.device
        if batch.device != device:
            batch = batch.pin_memory() if device.type == "cuda" else batch
            batch = batch.to(device, non_blocking=True)
        return batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch

    @property
    def bound(self) -> float:
        """The largest magnitude that an entry of `floats` has."""
        if self.images.dtype == torch.uint8:
            return 1.0
        return max(float(part.abs().max()) for part in self.images.split(4096))

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The given rows as `floats`, each image mirrored left to right with probability 1/2 if `flip`."""
        images = self.floats(rows)
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device) < 0.5
        return torch.where(mirrored.to(images.device), images.flip(3), images)

    def labels_of(self, rows: Tensor) -> Tensor:
        """The given rows' labels [len(rows)], on their device."""
        return self.labels[_sent(rows, self.labels.device)]

    def to(self, device) -> "ImageDataset":
        """Move the labels to a device, and the images too unless they take more than RESIDENT_BYTES."""
        images = self.images.to(device) if self.images.nbytes <= RESIDENT_BYTES else self.images
        return replace(self, images=images, labels=self.labels.to(device))

    def of_classes(self, classes: Sequence[int]) -> "ImageDataset":
        """The images of these classes, labels unchanged; all images if `classes` is empty. UserError for unknown classes."""
        if not classes:
            return self
        if unknown := sorted(set(classes) - set(range(self.num_classes))):
            raise UserError(
                f"{self.name} has no class {', '.join(map(str, unknown))}: choose from 0 to {self.num_classes - 1}"
            )
        return self.rows(torch.isin(self.labels, torch.tensor(classes, device=self.labels.device)).nonzero()[:, 0])

    def class_numbers(self, words: Sequence[str]) -> tuple[int, ...]:
        """Labels of classes given by name or by number; a name goes first. UserError for unknown ones."""
        return tuple(class_number(word, self.class_names, self.num_classes, self.name) for word in words)

    def rows(self, rows: Tensor) -> "ImageDataset":
        """The images of these rows."""
        return replace(self, images=self.images[rows.to(self.images.device)], labels=self.labels[rows], checksum="")

    def halved(self) -> "ImageDataset":
        """Images of half the width and height, each level the rounded mean of 2x2. Raises UserError for odd sizes."""
        height, width = self.images.shape[2:]
        if height % 2 or width % 2:
            raise UserError(
                f"{self.name} has images of {width}x{height} pixels, which cannot be halved: lower data.halve"
            )
        images = torch.empty(len(self), self.images.shape[1], height // 2, width // 2, dtype=torch.uint8)
        for start in range(0, len(self), 4096):  # a mapped tensor is never copied whole
            images[start : start + 4096] = _halved(self.images[start : start + 4096])
        return replace(self, images=images, checksum="")

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the pixels."""
        return self.checksum or _sha256(self.images)

    @cached_property
    def labels_sha256(self) -> str:
        """The sha256 of the labels."""
        return _sha256(self.labels)


def _sent(rows: Tensor, device: torch.device) -> Tensor:
    """Row numbers on a device; from the CPU on they go without waiting for what the device does."""
    return rows.to(device, non_blocking=rows.device.type == "cpu")


def _halved(images: Tensor) -> Tensor:
    """uint8 [M, C, 2H, 2W] -> uint8 [M, C, H, W]: means of 2x2, halves rounded up."""
    levels = images.short()
    rows = levels[:, :, ::2] + levels[:, :, 1::2]
    return ((rows[..., ::2] + rows[..., 1::2] + 2) // 4).to(torch.uint8)


def _sha256(tensor: Tensor) -> str:
    total = hashlib.sha256()
    for part in tensor.split(4096):  # a mapped tensor is never copied whole
        total.update(part.cpu().contiguous().numpy())
    return total.hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clamped) -> uint8 levels 0..255, rounded to nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid_png(images: Tensor, names: Sequence[str] = ()) -> bytes:
    """Images uint8 [N, C, H, W] in a grid, small ones enlarged pixel by pixel, as the bytes of a PNG file.

    names: of the columns, when the images show as many classes in turn; else the grid is square.
    """
    columns = len(names) or max(1, round(len(images) ** 0.5))
    zoom = max(1, VISIBLE // images.shape[3])
    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid = make_grid(large, nrow=columns, padding=zoom, pad_value=255)  # [3, H, W]
    picture, content = Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()), io.BytesIO()
    if names:
        picture = ImageOps.expand(picture, (0, HEADING, 0, 0), "white")
        drawing, width = ImageDraw.Draw(picture), large.shape[3] + zoom
        for column, name in enumerate(names):
            place = zoom + column * width, 2
            drawing.text(place, name[: width // 6], fill="black", font_size=HEADING - 6)
    picture.save(content, format="png")
    return content.getvalue()


def class_number(word: str, names: Sequence[str], count: int, owner: str) -> int:
    """The label of a class given by its name or number. UserError, naming the owner of the classes, for an unknown one."""
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < count:
        return int(word)
    known = f"its names are {', '.join(names)}" if 0 < len(names) <= 20 else f"choose from 0 to {count - 1}"
    raise UserError(f"{owner} has no class {word!r}{nearest(word, names)}: {known}")


class WrongShape(UserError):
    """Images have another shape than the model's; `fault` is the message without the remedy."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(f"{fault}: {remedy}")
        self.fault = fault


def check_shape(name: str, shape: Sequence[int], wanted: Sequence[int] | None, remedy: str = "") -> None:
    """Raise WrongShape unless shape (C, H, W) is the wanted one (None: any); remedy is appended to the message."""
    if wanted is not None and tuple(shape) != tuple(wanted):
        fault = f"{name} has images {tuple(shape)}, wanted are {tuple(wanted)}"
        raise WrongShape(fault, f"change unet.image_size / unet.image_channels{remedy}")
