"""Where images to score come from: a model that draws them, a data set, a folder, an .npz; always a batch at a time."""

import hashlib
import json
import math
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rddlib.data import ImageDataset
from rddlib.data.folder import images_below, open_image
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.samplers import evaluations, find_sampler
from rddlib.diffusion.schedule import schedule_facts
from rddlib.training import derive_seed
from rddlib.training.hardware import tf32_context
from rddlib.utils.checkpoint import digest
from rddlib.utils.errors import UserError

UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # what a damaged archive may raise
NOISE_BLOCK = 100  # images whose noise is drawn together, whatever the batch size
UNKNOWN = "not known"
GIVEN = {
    "sampler": "none: given images",
    "steps": 0,
    "evaluations": 0,
    "guidance": "none",
    "clip": False,
    "labels": UNKNOWN,
    "noise_seed": UNKNOWN,
    "precision": UNKNOWN,
    "model": UNKNOWN,
    "weights_sha256": UNKNOWN,
    "checkpoint_sha256": UNKNOWN,
    "ema": UNKNOWN,
    "training_precision": UNKNOWN,
    "training_seed": UNKNOWN,
}


class Images(ABC):
    """Images to score: `len`, `shape` (C, H, W), `name`, and `batch(start, stop)` -> uint8, or floats in [-1, 1].

    provenance: what a receipt says of how they were made; sha256: of their pixels, where they are given and not drawn.
    `identity` tells them from all others.
    """

    name: str
    shape: tuple[int, int, int]
    provenance: dict = GIVEN

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, start: int, stop: int) -> Tensor: ...

    @property
    def identity(self) -> str:
        return self.sha256

    @cached_property
    def sha256(self) -> str:
        total = hashlib.sha256()
        for start in range(0, len(self), 1000):
            total.update(self.batch(start, min(start + 1000, len(self))).cpu().contiguous().numpy())
        return total.hexdigest()


class GivenImages(Images):
    """A data set, or a tensor [M, C, H, W]: uint8, or floats in [-1, 1]."""

    def __init__(self, images: ImageDataset | Tensor, name: str = ""):
        self.dataset = images if isinstance(images, ImageDataset) else None
        self.images = images if self.dataset is None else images.images
        self.name = name or ("given images" if self.dataset is None else self.dataset.name)
        self.shape = tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, start: int, stop: int) -> Tensor:
        return self.images[start:stop]

    @cached_property
    def sha256(self) -> str:
        return Images.sha256.func(self) if self.dataset is None else self.dataset.sha256


class FolderImages(Images):
    """All image files in a folder and its sub-folders, in the order of their paths; the first says colour and size."""

    def __init__(self, folder: Path):
        self.files = sorted(images_below(folder))
        if not self.files:
            raise UserError(f"{folder} holds no images: name a folder of .png or other image files")
        self.colour, size = self._kind(self.files[0])
        self.shape = (len(self.colour), size[1], size[0])
        self.name = f"images of folder {folder.resolve().name}"

    @staticmethod
    def _kind(file: Path) -> tuple[str, tuple[int, int]]:
        """("L" or "RGB", (width, height)) as the file's header says."""
        try:
            with Image.open(file) as image:
                return ("L" if image.mode in ("1", "L", "LA", "I", "I;16", "F") else "RGB"), image.size
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} cannot be read as an image: replace or remove it") from error

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, file: Path) -> np.ndarray:
        if (kind := self._kind(file)) != (self.colour, self.shape[:0:-1]):
            raise UserError(
                f"{file} is {kind[0]}, {kind[1][0]}x{kind[1][1]}, the first image {self.colour}, "
                f"{self.shape[2]}x{self.shape[1]}: give images of one kind and size"
            )
        return np.asarray(open_image(file, self.colour)).reshape(*self.shape[1:], -1)

    def batch(self, start: int, stop: int) -> Tensor:
        pixels = np.stack([self._read(file) for file in self.files[start:stop]])  # [N, H, W, C]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class NpzImages(Images):
    """An .npz in the layout of ADM's sample batches: arr_0 [N, H, W, C] uint8; read a batch at a time."""

    def __init__(self, path: Path):
        self.path, self.name, self._stream = path, f"images of {path.name}", None
        try:
            with self._open() as file:
                self._first = file.tell()
        except (*UNREADABLE, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"{path} cannot be read as an .npz with arr_0: {error}; write it with numpy.savez"
            ) from error

    def _open(self):
        """The archive's member, its header read: `shape` and `count` are known and the position is the first image's."""
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


def common_noise(shape: tuple[int, int, int], start: int, stop: int, seed: int) -> Tensor:
    """Standard normal noise [stop - start, C, H, W] of images start..stop-1: the same for every method and batch size."""
    return _drawn(start, stop, seed, lambda generator: torch.randn(NOISE_BLOCK, *shape, generator=generator), 1)


def common_labels(classes: int, start: int, stop: int, seed: int) -> Tensor:
    """Random labels [stop - start] of the same images, int64 in 0..classes-1."""
    return _drawn(start, stop, seed, lambda generator: torch.randint(classes, (NOISE_BLOCK,), generator=generator), 2)


def fresh_noise(shape: tuple[int, int, int], start: int, stop: int, seed: int, step: int) -> Tensor:
    """The noise [stop - start, C, H, W] that the stochastic sampler adds to the same images after its step-th step."""
    return _drawn(start, stop, seed, lambda generator: torch.randn(NOISE_BLOCK, *shape, generator=generator), 3 + step)


def _drawn(start: int, stop: int, seed: int, draw: Callable[[torch.Generator], Tensor], kind: int) -> Tensor:
    """Rows start..stop-1 of an endless sequence in which every block follows from (seed, block, kind) alone."""
    first, last = start // NOISE_BLOCK, -(-stop // NOISE_BLOCK)
    blocks = [draw(torch.Generator().manual_seed(derive_seed(seed, block, kind))) for block in range(first, last)]
    return torch.cat(blocks)[start - first * NOISE_BLOCK : stop - first * NOISE_BLOCK]


def check_classes(classes: Sequence[int], known: int) -> None:
    """Raise UserError where a model of `known` classes cannot draw these."""
    if classes and not known:
        raise UserError("this model is unconditional and draws no chosen classes: leave the classes out")
    if unknown := sorted(set(classes) - set(range(known))):
        raise UserError(f"unknown classes {', '.join(map(str, unknown))}: choose from 0 to {known - 1}")


def check_weight(guidance: float) -> None:
    """Raise UserError for a guidance weight that is no number."""
    if not math.isfinite(guidance):
        raise UserError(f"guidance {guidance}: expected a number, 0 for the conditional model")


def check_conditions(denoiser: Denoiser, guidance: float | None = None, classes: Sequence[int] = ()) -> None:
    """Raise UserError where the model cannot be guided or draw these classes."""
    check_classes(classes, denoiser.num_classes)
    if guidance is not None:
        check_weight(guidance)
        try:
            denoiser.check_guidable()
        except ValueError as error:
            raise UserError(str(error)) from None
    elif denoiser.guidance:
        low, high = denoiser.guidance
        raise UserError(f"this model takes a guidance weight: give one of {low:g} to {high:g}")


class DrawnImages(Images):
    """Images that a denoiser draws when asked for, from common noise; floats in [-1, 1].

    sampler: one of SAMPLERS; guidance: w, None for none; classes: the labels to draw, in turn, default all
    at random; made: what a receipt should say of the model (`model_file.provenance`).
    labels(start, stop) are those drawn with, None without classes; `seconds` grows with the time spent.
    Raises UserError for guidance or classes that the model does not know.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        count: int,
        steps: int,
        *,
        seed: int,
        clip: bool = True,
        shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
        name: str = "",
        sampler: str = "ddim",
        made: dict | None = None,
        guidance: float | None = None,
        classes: Sequence[int] = (),
    ):
        check_conditions(denoiser, guidance, classes)
        if shape is None:
            config = denoiser.network.config
            shape = (config.image_channels, config.image_size, config.image_size)
        self.denoiser, self.count, self.steps, self.seed, self.clip = denoiser, count, steps, seed, clip
        self.shape, self.device, self._sample, self.seconds = shape, device, find_sampler(sampler, steps), 0.0
        self.sampler, self.guidance, self.classes = sampler, guidance, tuple(classes)
        self.name = name or f"{sampler}, {steps} step{'s' * (steps > 1)}"
        tensors, evaluated = denoiser.state_dict(), evaluations(sampler, steps)
        read_as = json.dumps({"prediction": denoiser.prediction, **schedule_facts(denoiser.schedule)}, sort_keys=True)
        labels = "drawn at random, all classes alike" if denoiser.num_classes else "none"
        self.provenance = {
            **GIVEN,
            "sampler": sampler,
            "steps": steps,
            "clip": clip,
            "evaluations": evaluated if guidance is None else evaluated * denoiser.evaluations,
            "guidance": "none" if guidance is None else guidance,
            "labels": f"{', '.join(map(str, classes))} in turn" if classes else labels,
            "noise_seed": seed,
            "precision": "float32",
            "weights_sha256": digest(tensors, read_as) if tensors else UNKNOWN,
            **(made or {}),
        }

    def __len__(self) -> int:
        return self.count

    @property
    def sha256(self) -> str:
        return "drawn, not stored"

    @property
    def identity(self) -> str:
        """Of the model and of how it draws; UserError for a model without tensors of its own, such as a plain function."""
        if self.provenance["weights_sha256"] == UNKNOWN:
            raise UserError(
                f"{self.name}: a model without weights cannot be told from another: name no folder to keep results"
            )
        drawn = {name: value for name, value in self.provenance.items() if name not in ("model", "checkpoint_sha256")}
        return json.dumps([drawn, len(self)], sort_keys=True)

    def labels(self, start: int, stop: int) -> Tensor | None:
        if self.classes:
            return torch.tensor(self.classes)[torch.arange(start, stop) % len(self.classes)]
        classes = self.denoiser.num_classes
        return common_labels(classes, start, stop, self.seed) if classes else None

    def batch(self, start: int, stop: int) -> Tensor:
        began, y = time.perf_counter(), self.labels(start, stop)
        noise = common_noise(self.shape, start, stop, self.seed).to(self.device)
        y = None if y is None else y.to(self.device)
        options: dict = {"y": y, "clip": self.clip, "guidance": self.guidance}
        if self.sampler == "stochastic":
            options["fresh"] = lambda k: fresh_noise(self.shape, start, stop, self.seed, k).to(self.device)
        with tf32_context("float32", torch.device(self.device)):
            images = self._sample(self.denoiser, noise, self.steps, **options)
        if not images.isfinite().all():
            raise UserError(f"{self.name}: images hold NaN or infinity, so nothing can be scored: check the model")
        self.seconds += time.perf_counter() - began
        return images.clamp(-1, 1)


def open_images(source: Images | ImageDataset | Tensor | str | Path) -> Images:
    """Whatever holds images: Images as they are, a data set or tensor, a folder, an .npz. UserError for anything else."""
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
