"""Features of images, a file a batch: any number of processes make them, and a stopped run goes on where it was."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rddlib.evaluation.images import UNREADABLE, DrawnImages, Images
from rddlib.evaluation.networks import Network
from rddlib.evaluation.protocols import Protocol
from rddlib.training.hardware import tf32_context
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import rank, together, world_size
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress

KINDS = ("features", "logits", "pixels")


@dataclass(frozen=True)
class Shards:
    """The batches' files in a folder. images: how many in all; size: how many a file holds; kinds: what is kept of each.

    "features" and "logits" are the network's; "pixels" the levels it saw, as floats in [-1, 1], flattened.
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

    def read(self, protocol: Protocol, kind: str) -> Iterator[tuple[int, Tensor]]:
        """(first image, rows [n, D]) file after file."""
        for number in range(len(self)):
            with np.load(self.path(number), allow_pickle=False) as file:
                yield number * self.size, torch.from_numpy(file[f"{protocol.name}.{kind}"])

    def mapped(self, protocol: Protocol, kind: str, place: Path) -> Tensor:
        """All rows [M, D] in one file that is mapped into memory, written to `place`."""
        whole = None
        for start, rows in self.read(protocol, kind):
            if whole is None:
                whole = np.lib.format.open_memmap(place, "w+", rows.numpy().dtype, (self.images, rows.shape[1]))
            whole[start : start + len(rows)] = rows.numpy()
        return torch.from_numpy(whole)

    def values(self, name: str) -> list[float]:
        """What each file says under a name: "seconds", "least", "most", "whole" (uint8 or not)."""
        found = []
        for number in range(len(self)):
            with np.load(self.path(number), allow_pickle=False) as file:
                found.append(float(file[name]))
        return found


def complete(path: Path) -> bool:
    """Whether a file is there and whole; a damaged one is removed."""
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
    """Fill the shards with features of the images under every protocol, each process its share; all are there at the end.

    quiet: no line in a log. Raises UserError, on every process, for images of a wrong range.
    """
    module, error = network.module.to(device), None
    mine = range(rank(), len(shards), world_size())
    missing = [number for number in mine if not complete(shards.path(number))]
    try:
        done = len(mine) - len(missing)
        for position in Progress(f"scoring {images.name}", len(mine), start=done, unit="batches", quiet=quiet):
            _extract_one(images, module, protocols, shards, missing[position - done], device)
    except UserError as met:
        error = met
    together(error)


def _extract_one(images: Images, module, protocols: Sequence[Protocol], shards: Shards, number: int, device) -> None:
    before = images.seconds if isinstance(images, DrawnImages) else 0.0
    batch = images.batch(*shards.rows(number)).to(device)
    batch = batch.reshape(-1).view(batch.shape)  # one layout, on which the rounding depends
    found = {"least": float(batch.min()), "most": float(batch.max()), "whole": batch.dtype == torch.uint8}
    _check_range(images.name, batch, found)
    with tf32_context("float32", torch.device(device)):
        for protocol in protocols:
            found |= _features(batch, module, protocol, shards.kinds)
    found["seconds"] = images.seconds - before if isinstance(images, DrawnImages) else 0.0
    content = io.BytesIO()
    np.savez(content, **found)
    write_atomically(shards.path(number), content.getvalue())


def _features(batch: Tensor, module, protocol: Protocol, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    levels, rows = protocol.levels(batch), {}
    if {"features", "logits"} & set(kinds):
        rows = dict(zip(KINDS, module(levels), strict=False))
    if "pixels" in kinds:
        rows["pixels"] = levels.double().flatten(1) / 127.5 - 1
    return {f"{protocol.name}.{kind}": rows[kind].cpu().numpy() for kind in kinds}


def _check_range(name: str, batch: Tensor, found: dict) -> None:
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise UserError(f"{name}: {batch.dtype}, expected uint8 levels 0..255 or floats in [-1, 1]")
    if batch.is_floating_point() and not (-1.001 <= found["least"] <= found["most"] <= 1.001):
        raise UserError(
            f"{name}: floats from {found['least']:.2f} to {found['most']:.2f}, expected [-1, 1]: rescale them"
        )


def check_ranges(images: Images, shards: Shards) -> None:
    """UserError where given images all together show a wrong range that no single one does."""
    if isinstance(images, DrawnImages):
        return
    least, most, whole = min(shards.values("least")), max(shards.values("most")), shards.values("whole")[0]
    if whole and most <= 1:
        raise UserError(f"{images.name}: uint8 values from {least:.0f} to {most:.0f}, expected 0..255: rescale them")
    if not whole and least >= 0 and most > 0:
        raise UserError(f"{images.name}: floats from {least:.2f} to {most:.2f}, expected [-1, 1]: rescale them")
