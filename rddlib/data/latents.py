"""Latents and embeddings of a data set, computed once by a latent model's own parts and kept in memory-mapped files."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from rddlib.data.cache import mapped_array
from rddlib.data.dataset import ImageDataset, data_folder
from rddlib.utils.checkpoint import whole_or_absent
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress

BLOCK = 64  # images or prompts at a time


def latents_of(space, images: ImageDataset, device: torch.device | str = "cpu") -> ImageDataset:
    """The data set as a latent model sees it: float32 latents of its images, its labels as they are.

    space: a LatentSpace. They are computed on `device` once and found again by the content of images and autoencoder.
    Raises UserError for images that are to be mirrored, and where the cache cannot be written.
    """
    if images.flip:
        raise UserError("data.flip mirrors images anew in each batch, and latents are computed once: leave it out")
    key = _key("latents", space.sha256, images.sha256)

    def block(start: int, stop: int) -> Tensor:
        return space.encode(images.floats(torch.arange(start, stop)).to(device))

    shape = (len(images), *space.latent_shape)
    name = f"latents of {images.name}"
    return replace(images, name=name, images=_computed(key, shape, block, name), checksum=key)


def prompted(space, prompts: tuple[str, ...]):
    """The space with these prompts, whose embeddings are computed once and found again."""
    if not space.takes_prompts:
        return space
    key, known = _key("prompts", space.sha256, *prompts), space.embed([""])

    def block(start: int, stop: int) -> Tensor:
        return space.embed([*prompts, ""][start:stop])

    table = _computed(key, (len(prompts) + 1, *known.shape[1:]), block, "embeddings of prompts")
    return space.with_prompts(prompts, table)


def _key(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _computed(key: str, shape: tuple[int, ...], block: Callable[[int, int], Tensor], what: str) -> Tensor:
    """A read-only mapped float32 tensor of that shape, its rows start..stop-1 made by block(start, stop)."""
    path = data_folder() / "cache" / f"latent-{key[:16]}.f32"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file() or path.stat().st_size != 4 * int(np.prod(shape)):
                _write(path, shape, block, what)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some room, or let RDD_DATA name another"
        ) from error
    return mapped_array(path, np.float32, shape)


def _write(path: Path, shape: tuple[int, ...], block: Callable[[int, int], Tensor], what: str) -> None:
    starts = range(0, shape[0], BLOCK)
    with whole_or_absent(path) as file:
        for k in Progress(f"computing {what}", len(starts), unit="block", quiet=True):
            rows = block(starts[k], min(starts[k] + BLOCK, shape[0]))
            file.write(rows.float().cpu().contiguous().numpy())
