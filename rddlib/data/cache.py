"""Decoded images in one file that is mapped into memory, made once: between image files or batches and ImageDataset."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from rddlib.data.config import DATA_VARIABLE, data_folder
from rddlib.data.dataset import SPLIT_SEED, ImageDataset
from rddlib.utils.errors import UserError

ROOM = 64 * 1024**2  # bytes of the disk left free beside a cache


@dataclass(frozen=True)
class Recipe:
    """How a cache is made.

    key: the first part of its folder's name; name: of the data set; fingerprint: of everything it is made from;
    size: about how many bytes it will take; blocks: makes the pairs (uint8 [n, C, H, W], labels [n]), one at a time;
    hold_out: put a seeded tenth of the images at the end, as the test split.
    """

    key: str
    name: str
    fingerprint: str
    num_classes: int
    size: int
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
    hold_out: bool


def fingerprint(root: Path, files: Sequence[Path], *facts) -> str:
    """Hash over facts and every file's name below root, size and time of change; 16 characters."""
    total = hashlib.sha256(json.dumps(facts).encode())
    for file in files:
        state = file.stat()
        total.update(f"\n{file.relative_to(root).as_posix()} {state.st_size} {state.st_mtime_ns}".encode())
    return total.hexdigest()[:16]


def load_cached(recipe: Recipe) -> dict[str, ImageDataset]:
    """The splits "train", "extractor" and, with hold_out, "test"; made first where the cache is missing or damaged.

    Processes that come at the same time wait for the one that makes it. Raises UserError where the disk is too small
    or the folder cannot be written, leaving no part behind, and whatever the blocks raise.
    """
    folder = data_folder() / "cache" / f"{recipe.key}-{recipe.fingerprint}"
    found = _read(folder, recipe)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if _read(folder, recipe) is None:  # else another process has made it meanwhile
                _check_room(folder.parent, recipe)
                _build(folder, recipe)
    except OSError as error:
        remedy = f"free the place or let {DATA_VARIABLE} name another folder"
        raise UserError(f"cannot write the cache {folder}: {error.strerror or error}; {remedy}") from error
    found = _read(folder, recipe)
    if found is None:
        raise UserError(f"the cache {folder} cannot be read back: check the disk, delete the folder and run again")
    return found


def _read(folder: Path, recipe: Recipe) -> dict[str, ImageDataset] | None:
    """The splits of a whole cache; None where it is absent, damaged or touched since it was made."""
    try:
        facts = json.loads((folder / "facts.json").read_text())
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if facts["stamp"] != _stamp(folder / "images.bin") or facts["labels_sha256"] != _sha256(labels):
            return None
        return _splits(recipe, _mapped(folder / "images.bin", facts["shape"]), labels, facts["sha256"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, shape: Sequence[int]) -> torch.Tensor:
    array = np.memmap(path, np.uint8, "r", shape=tuple(shape))
    with warnings.catch_warnings():  # read-only on purpose: a writable mapping counts as memory, which may be too small
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def _stamp(path: Path) -> list[int]:
    """Size and time of change: tells a touched file without reading all of it."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def held_out(count: int) -> int:
    """How many of `count` images are the test split of a set that has none of its own: a tenth, at least one."""
    return max(1, count // 10)


def _splits(recipe: Recipe, images: torch.Tensor, labels: np.ndarray, sha256: dict) -> dict[str, ImageDataset]:
    labels, last = torch.from_numpy(labels), len(labels) - held_out(len(labels))

    def part(split: str, name: str, rows: slice) -> ImageDataset:  # a slice stays mapped
        return ImageDataset(name, images[rows], labels[rows], recipe.num_classes, checksum=sha256.get(split, ""))

    whole = part("train", recipe.name, slice(None))
    if not recipe.hold_out:
        return {"train": whole, "extractor": whole}
    return {
        "train": whole,
        "extractor": part("extractor", f"{recipe.name}[extractor]", slice(last)),
        "test": part("test", f"{recipe.name}[test]", slice(last, None)),
    }


def _check_room(folder: Path, recipe: Recipe) -> None:
    free = shutil.disk_usage(folder).free
    if free < recipe.size + ROOM:
        raise UserError(
            f"the cache of {recipe.name} takes {recipe.size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}: "
            f"free some or let {DATA_VARIABLE} name another folder"
        )


def _build(folder: Path, recipe: Recipe) -> None:
    """Make the cache under another name, flush it to the disk, rename it."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        shape, labels = _write_images(part / "images.bin", recipe)
        if recipe.hold_out:
            _move_last(part / "images.bin", shape, labels)
        np.save(part / "labels.npy", labels)
        _flush(part / "images.bin")
        splits = _splits(recipe, _mapped(part / "images.bin", shape), labels, {})
        facts = {
            "name": recipe.name,
            "fingerprint": recipe.fingerprint,
            "num_classes": recipe.num_classes,
            "shape": shape,
            "sha256": {split: dataset.sha256 for split, dataset in splits.items()},
            "labels_sha256": _sha256(labels),
            "stamp": _stamp(part / "images.bin"),
        }
        (part / "facts.json").write_text(json.dumps(facts, indent=1))
        _flush(part / "labels.npy")
        _flush(part / "facts.json")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_images(path: Path, recipe: Recipe) -> tuple[list[int], np.ndarray]:
    """Append block after block; one is in memory at a time. Returns the shape [M, C, H, W] and the labels [M]."""
    shape, labels = [], []
    with open(path, "wb") as file:
        for images, classes in recipe.blocks():
            _append(file, images)
            shape = list(images.shape[1:])
            labels.append(classes)
            del images  # before the next one is read
    labels = np.concatenate(labels).astype(np.int64)
    if recipe.hold_out and len(labels) < 2:
        raise UserError(f"{recipe.name} has one image, which cannot be split for a test: add images")
    return [len(labels), *shape], labels


def _append(file, images: np.ndarray) -> None:
    file.write(np.ascontiguousarray(images))


def _move_last(path: Path, shape: Sequence[int], labels: np.ndarray) -> None:
    """Exchange rows until a seeded tenth stands at the end, so that every split is one slice of one file."""
    images, count = np.memmap(path, np.uint8, "r+", shape=tuple(shape)), len(labels)
    last = count - held_out(count)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()[last:]
    leaving, arriving = np.setdiff1d(np.arange(last, count), chosen), np.sort(chosen[chosen < last])
    for start in range(0, len(leaving), 1024):
        a, b = leaving[start : start + 1024], arriving[start : start + 1024]
        here, there = np.concatenate([a, b]), np.concatenate([b, a])
        images[here], labels[here] = images[there], labels[there]
    images.flush()


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
