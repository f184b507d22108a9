"""Features of images in files, one per batch: several processes share the work, and a stopped run resumes."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rddlib.evaluation.drawing import DrawnImages
from rddlib.evaluation.images import UNREADABLE, Images, write_npz
from rddlib.evaluation.networks import Network
from rddlib.evaluation.receipt import Protocol
from rddlib.training.hardware import tf32_context
from rddlib.utils.distributed import rank, together, world_size
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress


@dataclass(frozen=True)
class Shards:
    """The files of features in a folder, one per batch.

    images: their total number; size: images per file; kinds: what is kept of each image: the network's "features" and
    "logits", and "pixels", the levels it saw as floats in [-1, 1], flattened.
    """

    folder: Path
    images: int
    size: int
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def path(self, number: int) -> Path:
        start, stop = self.rows(number)
        return self.folder / f"{start:09d}-{stop:09d}-of-{self.images:09d}.npz"

    def rows(self, number: int) -> tuple[int, int]:
        """(first image, one past the last) of a file."""
        return number * self.size, min((number + 1) * self.size, self.images)

    def _read(self, name: str) -> Iterator[np.ndarray]:
        for number in range(len(self)):
            with np.load(self.path(number), allow_pickle=False) as file:
                yield file[name]

    def read(self, protocol: Protocol, kind: str) -> Iterator[tuple[int, Tensor]]:
        """Yield (first image, rows [n, D]) file by file."""
        for number, rows in enumerate(self._read(f"{protocol.name}.{kind}")):
            yield number * self.size, torch.from_numpy(rows)

    def mapped(self, protocol: Protocol, kind: str, place: Path) -> Tensor:
        """All rows [M, D], memory-mapped from one file that is written to `place`."""
        whole = None
        for start, rows in self.read(protocol, kind):
            if whole is None:
                whole = np.lib.format.open_memmap(place, "w+", rows.numpy().dtype, (self.images, rows.shape[1]))
            whole[start : start + len(rows)] = rows.numpy()
        return torch.from_numpy(whole)

    def values(self, name: str) -> list[float]:
        """One number from each file: "seconds", "least", "most" or "whole" (whether the images are uint8)."""
        return [float(value) for value in self._read(name)]


def complete(path: Path) -> bool:
    """Whether a file exists and is undamaged; a damaged one is removed."""
    if not path.exists():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is None:
                return True
    except UNREADABLE:
        pass
    path.unlink()
    return False


@torch.no_grad()
def extract(
    images: Images,
    network: Network,
    protocols: Sequence[Protocol],
    shards: Shards,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> None:
    """Fill the missing shards with features under every protocol; returns when all processes have done their share.

    quiet: print no line in a log. Raises UserError, on every process, for values out of range.
    """
    module, error = network.module.to(device), None
    mine = range(rank(), len(shards), world_size())
    missing = [number for number in mine if not complete(shards.path(number))]
    try:
        done = len(mine) - len(missing)
        for position in Progress(f"scoring {images.name}", len(mine), start=done, unit="batch", quiet=quiet):
            _extract_one(images, module, protocols, shards, missing[position - done], device)
    except UserError as met:
        error = met
    together(error)
    _check_ranges(images, shards)


def _extract_one(
    images: Images, module: nn.Module, protocols: Sequence[Protocol], shards: Shards, number: int, device
) -> None:
    before = images.seconds
    batch = images.batch(*shards.rows(number)).to(device)
    batch = batch.reshape(-1).view(batch.shape)  # one layout, on which the rounding depends
    least, most = float(batch.min()), float(batch.max())
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise UserError(f"{images.name}: {batch.dtype}, expected uint8 levels 0..255 or floats in [-1, 1]")
    if batch.is_floating_point() and not -1.001 <= least <= most <= 1.001:
        raise UserError(f"{images.name}: floats from {least:.2f} to {most:.2f}, expected [-1, 1]: rescale them")
    found = {"least": least, "most": most, "whole": batch.dtype == torch.uint8, "seconds": images.seconds - before}
    with tf32_context("float32", torch.device(device)):
        for protocol in protocols:
            levels, rows = protocol.levels(batch), {}
            if {"features", "logits"} & set(shards.kinds):
                rows = dict(zip(("features", "logits"), module(levels), strict=False))  # without logits: fewer outputs
            if "pixels" in shards.kinds:
                rows["pixels"] = levels.double().flatten(1) / 127.5 - 1
            found |= {f"{protocol.name}.{kind}": rows[kind].cpu().numpy() for kind in shards.kinds}
    write_npz(shards.path(number), **found)


def _check_ranges(images: Images, shards: Shards) -> None:
    """Raise UserError if given images all together show a wrong range that no single batch shows."""
    if isinstance(images, DrawnImages):
        return
    least, most, whole = min(shards.values("least")), max(shards.values("most")), shards.values("whole")[0]
    if whole and most <= 1:
        raise UserError(f"{images.name}: uint8 values from {least:.0f} to {most:.0f}, expected 0..255: rescale them")
    if not whole and least >= 0 and most > 0:
        raise UserError(f"{images.name}: floats from {least:.2f} to {most:.2f}, expected [-1, 1]: rescale them")
