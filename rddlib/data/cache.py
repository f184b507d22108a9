"""A cache of decoded images in one memory-mapped file, built once from image files or batches."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from rddlib.data.dataset import DATA_VARIABLE, SPLIT_SEED, ImageDataset, data_folder
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError

ROOM = 64 * 1024**2  # bytes of disk left free beside a cache


@dataclass(frozen=True)
class Recipe:
    """How to build a cache.

    key: the first part of its folder's name; name: the data set's; fingerprint: a hash of all it is built from; size: its
    approximate bytes; blocks: yields (images uint8 [n, C, H, W], labels [n]) block after block; hold_out: whether a
    seeded tenth of the images is moved to the end, as the test split; class_names: see ImageDataset.
    """

    key: str
    name: str
    fingerprint: str
    num_classes: int
    size: int
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
    hold_out: bool
    class_names: tuple[str, ...] = ()


def fingerprint(root: Path, files: Sequence[Path], *facts) -> str:
    """16 hex digits of a hash over facts and each file's path below root, inode, size and times.

    The time of the last change (ctime) is among them: it moves on whenever a file is written or replaced, and unlike the
    modification time no program can set it back. Nothing is read but the directory.
    """
    total = hashlib.sha256(json.dumps(facts).encode())
    for file in files:
        state = file.stat()
        total.update(
            f"\n{file.relative_to(root).as_posix()} {state.st_ino} {state.st_size} {state.st_mtime_ns} "
            f"{state.st_ctime_ns}".encode(errors="surrogateescape")
        )
    return total.hexdigest()[:16]


def load_cached(recipe: Recipe) -> dict[str, ImageDataset]:
    """Return the splits "train", "extractor" and, with hold_out, "test"; build the cache if it is missing or damaged.

    Of several processes one builds and the others wait. Raises UserError, leaving no partial cache, if the disk is too
    small or the folder cannot be written; errors of `blocks` pass through.
    """
    folder = data_folder() / "cache" / f"{recipe.key}-{recipe.fingerprint}"
    found = _read(folder, recipe)
    if found is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{folder.name}.lock"):
                found = _read(folder, recipe) or _build(folder, recipe)  # another process may have built it meanwhile
        except OSError as error:
            remedy = f"free the place or let {DATA_VARIABLE} name another folder"
            raise UserError(f"cannot write the cache {folder}: {error.strerror or error}; {remedy}") from error
    if found is None:
        raise UserError(f"the cache {folder} cannot be read back: check the disk, delete the folder and run again")
    return found


def _read(folder: Path, recipe: Recipe) -> dict[str, ImageDataset] | None:
    """The splits, or None if the cache is missing, damaged, or was modified after it was built."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if facts["stamp"] != _stamp(folder / "images.bin"):
            return None
        images = mapped_array(folder / "images.bin", np.uint8, facts["shape"])
        splits = _splits(recipe, images, labels, facts["sha256"])
        return splits if splits["train"].labels_sha256 == facts["labels_sha256"] else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def mapped_array(path: Path, dtype: type, shape: Sequence[int]) -> torch.Tensor:
    """A file of numbers as a read-only tensor of that shape, mapped into memory."""
    array = np.memmap(path, dtype, "r", shape=tuple(shape))
    with warnings.catch_warnings():  # read-only on purpose: a writable mapping counts as memory, which may be too small
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def _stamp(path: Path) -> list[int]:
    """Size and modification time: shows that a file was modified without reading it."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def held_out(count: int) -> int:
    """The size of the test split held out of `count` images: a tenth, at least one."""
    return max(1, count // 10)


def _splits(recipe: Recipe, images: torch.Tensor, labels: np.ndarray, sha256: dict) -> dict[str, ImageDataset]:
    named = {"checksum": sha256.get("train", ""), "class_names": recipe.class_names}
    whole = ImageDataset(recipe.name, images, torch.from_numpy(labels), recipe.num_classes, **named)
    if not recipe.hold_out:
        return {"train": whole, "extractor": whole}

    def part(split: str, rows: slice) -> ImageDataset:  # a slice stays mapped
        mine = {"images": whole.images[rows], "labels": whole.labels[rows], "checksum": sha256.get(split, "")}
        return replace(whole, name=f"{recipe.name}[{split}]", **mine)

    last = len(labels) - held_out(len(labels))
    return {"train": whole, "extractor": part("extractor", slice(last)), "test": part("test", slice(last, None))}


def _build(folder: Path, recipe: Recipe) -> dict[str, ImageDataset] | None:
    """Build the cache under a temporary name, flush it to disk, rename it, and read it back."""
    free = shutil.disk_usage(folder.parent).free
    if free < recipe.size + ROOM:
        raise UserError(
            f"the cache of {recipe.name} takes {recipe.size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in "
            f"{folder.parent}: free some or let {DATA_VARIABLE} name another folder"
        )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    part.mkdir()
    try:
        shape, labels = _write_images(part / "images.bin", recipe)
        if recipe.hold_out:
            _move_last(part / "images.bin", shape, labels)
        np.save(part / "labels.npy", labels)
        for name in ("images.bin", "labels.npy"):
            with open(part / name, "rb+") as file:
                os.fsync(file.fileno())
        splits = _splits(recipe, mapped_array(part / "images.bin", np.uint8, shape), labels, {})
        facts = {
            "name": recipe.name,
            "shape": shape,
            "sha256": {split: dataset.sha256 for split, dataset in splits.items()},
            "labels_sha256": splits["train"].labels_sha256,
            "stamp": _stamp(part / "images.bin"),
        }
        write_atomically(part / "facts.json", json.dumps(facts, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(part, folder)
        return _read(folder, recipe)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_images(path: Path, recipe: Recipe) -> tuple[list[int], np.ndarray]:
    """Write one block at a time. Returns the shape [M, C, H, W] and the labels int64 [M]."""
    shape, labels = [], []
    with open(path, "wb") as file:
        for images, classes in recipe.blocks():
            file.write(np.ascontiguousarray(images))
            shape = list(images.shape[1:])
            labels.append(classes)
            del images  # before the next block is read
    labels = np.concatenate(labels).astype(np.int64)
    if recipe.hold_out and len(labels) < 2:
        raise UserError(f"{recipe.name} has one image, which cannot be split for a test: add images")
    return [len(labels), *shape], labels


def _move_last(path: Path, shape: Sequence[int], labels: np.ndarray) -> None:
    """Swap rows so that a seeded tenth stands at the end: then every split is one slice of one file."""
    images, count = np.memmap(path, np.uint8, "r+", shape=tuple(shape)), len(labels)
    last = count - held_out(count)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()[last:]
    leaving, arriving = np.setdiff1d(np.arange(last, count), chosen), np.sort(chosen[chosen < last])
    for start in range(0, len(leaving), 1024):
        a, b = leaving[start : start + 1024], arriving[start : start + 1024]
        here, there = np.concatenate([a, b]), np.concatenate([b, a])
        images[here], labels[here] = images[there], labels[there]
    images.flush()
