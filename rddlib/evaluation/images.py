"""Images to score, one batch at a time: a data set or tensor, a folder, an .npz; and images written to files."""

import hashlib
import io
import zipfile
import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rddlib.data import ImageDataset, to_uint8
from rddlib.data.folder import check_parts, images_below, open_image, parts_of
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.text import say

UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # what a damaged archive may raise
UNKNOWN = "not known"
# What a receipt says of images that no model here drew.
GIVEN = {"sampler": "none: given images", "steps": 0, "evaluations": 0, "guidance": "none", "clip": False}
GIVEN |= dict.fromkeys(("labels", "noise_seed", "precision", "model", "weights_sha256", "checkpoint_sha256"), UNKNOWN)
GIVEN |= dict.fromkeys(("ema", "training_precision", "training_seed"), UNKNOWN)


class Images(ABC):
    """Images to score: `len`, `name`, `shape` (C, H, W), and `batch(start, stop)` -> uint8, or floats in [-1, 1].

    provenance: what a receipt says of their making. seconds: spent on drawing them. identity: differs for different images.
    """

    name: str
    shape: tuple[int, int, int]
    provenance: dict = GIVEN
    seconds: float = 0.0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, start: int, stop: int) -> Tensor: ...

    def labels(self, start: int, stop: int) -> Tensor | None:
        """What images start..stop-1 were drawn of, int64; None where nothing says so."""
        return None

    @property
    def identity(self) -> str:
        return self.sha256

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the pixels."""
        total = hashlib.sha256()
        for start in range(0, len(self), 1000):
            total.update(self.batch(start, min(start + 1000, len(self))).cpu().contiguous().numpy())
        return total.hexdigest()


class GivenImages(Images):
    """A data set, or a tensor [M, C, H, W]: uint8, or floats in [-1, 1]."""

    def __init__(self, images: ImageDataset | Tensor):
        self.name = "given images"
        if isinstance(images, ImageDataset):
            self.name, self.sha256, images = images.name, images.sha256, images.images
        if images.is_floating_point():
            images = images.detach().float()
        self.images, self.shape = images, tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, start: int, stop: int) -> Tensor:
        return self.images[start:stop]


class FolderImages(Images):
    """All image files in a folder and its sub-folders, sorted by path; all are grey or in colour as the first, and of its
    size."""

    def __init__(self, folder: Path):
        self.name = f"images of folder {folder.resolve().name}"
        check_parts(folder, [path.name for path in folder.iterdir() if path.is_dir()])
        if (folder / "train").is_dir():  # as a data set reads it
            folder, whole = parts_of(folder)[0], folder
            say(f"{whole}: only the images of train/ are scored")
        self.files = images_below(folder)
        if not self.files:
            raise UserError(f"{folder} holds no images: name a folder of .png or other image files")
        first = open_image(self.files[0])
        self.colour, self.shape = first.mode, (len(first.mode), first.height, first.width)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, file: Path) -> np.ndarray:
        image = open_image(file)
        if (image.mode, image.height, image.width) != (self.colour, *self.shape[1:]):
            raise UserError(
                f"{file} is {image.mode}, {image.width}x{image.height}, the first image {self.colour}, "
                f"{self.shape[2]}x{self.shape[1]}: give images of one kind and size"
            )
        return np.asarray(image).reshape(*self.shape[1:], -1)

    def batch(self, start: int, stop: int) -> Tensor:
        pixels = np.stack([self._read(file) for file in self.files[start:stop]])  # [N, H, W, C]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class NpzImages(Images):
    """An .npz in the layout of ADM's sample batches, arr_0 [N, H, W, C] uint8; read one batch at a time."""

    def __init__(self, path: Path):
        self.path, self.name, self._stream = path, f"images of {path.name}", None
        try:
            with self._open() as file:
                self._first = file.tell()
        except (*UNREADABLE, ValueError, KeyError, NotImplementedError) as error:
            remedy = "write it with numpy.savez"
            raise UserError(f"{path} cannot be read as an .npz with arr_0: {error}; {remedy}") from error

    def _open(self):
        """Open arr_0 in the archive and read its header, which sets `shape` and `count`; the first image comes next."""
        file = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115 (the caller closes it)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read[np.lib.format.read_magic(file)](file)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or by_columns:
            raise UserError(f"{self.path} has arr_0 {list(shape)} {dtype}: expected [N, H, W, C] uint8 with C 1 or 3")
        self.count, (height, width, channels) = shape[0], shape[1:]
        self.shape = (channels, height, width)
        return file

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> Tensor:
        channels, height, width = self.shape
        size = channels * height * width
        try:
            self._stream = self._stream or self._open()
            self._stream.seek(self._first + start * size)
            content = self._stream.read((stop - start) * size)
        except UNREADABLE as error:
            raise UserError(f"{self.path} is damaged ({error}): write it again") from error
        if len(content) != (stop - start) * size:
            raise UserError(f"{self.path} is damaged (it ends early): write it again")
        pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, height, width, channels)
        return pixels.permute(0, 3, 1, 2)


Source = Images | ImageDataset | Tensor | str | Path


def open_images(source: Source) -> Images:
    """Turn a data set, a tensor, a folder or an .npz into Images (which pass through); UserError for anything else."""
    if isinstance(source, Images):
        return source
    if isinstance(source, (ImageDataset, Tensor)):
        return GivenImages(source)
    path = Path(source)
    if path.is_dir():
        return FolderImages(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a folder of images or an .npz")
    return NpzImages(path)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays into an .npz atomically."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getvalue())


def write_pngs(images: Images, folder: Path, batch_size: int = 500) -> None:
    """Write each image as a PNG file named by its number; existing files are kept."""
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        missing = [number for number in range(start, stop) if not (folder / f"{number:06d}.png").exists()]
        batch = images.batch(start, stop) if missing else None
        for number in missing:
            pixels = batch[number - start]
            pixels = to_uint8(pixels) if pixels.is_floating_point() else pixels
            rows, content = pixels.permute(1, 2, 0).cpu().numpy(), io.BytesIO()  # [H, W, C]
            Image.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows).save(content, format="png")
            write_atomically(folder / f"{number:06d}.png", content.getvalue())
