"""Any folder of images, with or without class sub-folders and parts train/, test/ or val/."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rddlib.data.cache import Recipe, fingerprint, load_cached
from rddlib.data.dataset import DataConfig, ImageDataset, check_shape
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress, mode

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
PARTS = ("train", "test", "val")
RESIZE = "--set data.resize=true crops and resizes"


def load_folder(config: DataConfig, split: str, shape=None, name: str = "") -> ImageDataset:
    """Load the images of config.root as RGB, or as grey if shape has one channel.

    Its train/ and test/ (or val/) are the splits. Without train/, all images are "train"; without test/ and val/, a
    seeded tenth is "test" and the rest "extractor". Labels follow the sorted names of the sub-folders; images at the top
    have no labels. Raises UserError for a missing or empty folder, images of several sizes, unreadable images, an
    ambiguous layout, and classes that differ between the parts.
    """
    root = config.folder
    name = name or f"images of folder {root.resolve().name}"
    train, test = _parts(root)
    if split == "test" and test is not None:
        if (classes := _listing(test)[2]) != (expected := _listing(train)[2]):
            differing = ", ".join(sorted(set(classes) ^ set(expected)))
            raise UserError(f"{test} and {train} have different classes ({differing}): give both the same sub-folders")
        return load_cached(_recipe(config, test, f"{name}[test]", shape, hold_out=False))["train"]
    return load_cached(_recipe(config, train, name, shape, hold_out=test is None))[split]


def _parts(root: Path) -> tuple[Path, Path | None]:
    """(the folder of training images, the folder of test images or None)."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: name the one that holds the images with --set data.root=FOLDER")
    if not (root / "train").is_dir():
        return root, None
    if others := [folder.name for folder in _folders(root) if folder.name not in PARTS]:
        raise UserError(
            f"{root} holds train/ beside other folders ({', '.join(others[:3])}): leave only train/, test/, val/ there, "
            f"or move the classes into one of them"
        )
    return root / "train", next((root / part for part in PARTS[1:] if (root / part).is_dir()), None)


def images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and its sub-folders, without hidden ones, in no particular order."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, name) for name in files if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listing(part: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """(sorted files [M], labels [M], class names)."""
    top = sorted(path for path in part.iterdir() if path.is_file() and _is_image(path.name))
    classes = {folder.name: sorted(images_below(folder)) for folder in _folders(part)}
    if top and any(classes.values()):
        raise UserError(f"{part} holds images at its top and in sub-folders: move them all to one of the two")
    if top:
        return top, np.zeros(len(top), np.int64), []
    if not any(classes.values()):
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{part} holds no images ({suffixes}): name another with --set data.root=FOLDER")
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(f"{part} has a class folder without images ({empty[0]}): fill it or remove it")
    labelled = [(file, label) for label, files in enumerate(classes.values()) for file in files]
    return [file for file, _ in labelled], np.array([label for _, label in labelled]), list(classes)


def _recipe(config: DataConfig, part: Path, name: str, shape, hold_out: bool) -> Recipe:
    files, labels, classes = _listing(part)
    colour = "L" if shape is not None and shape[0] == 1 else "RGB"
    if config.resize and shape is None:
        raise UserError("images can only be resized to a known size: pass shape=(C, H, W)")
    size = (shape[2], shape[1]) if config.resize else open_image(files[0], colour).size
    check_shape(name, (len(colour), size[1], size[0]), shape, f", or {RESIZE}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in Progress(f"decoding {name}", len(files), unit="images", quiet=mode() == "count"):
            yield _decode(files[i], colour, size, config.resize)[None], labels[i : i + 1]

    mark = fingerprint(part, files, name, colour, list(size) if config.resize else [], hold_out)
    pixels = len(files) * len(colour) * size[0] * size[1]
    return Recipe(config.name, name, mark, len(classes), pixels, blocks, hold_out)


def open_image(file: Path, colour: str) -> Image.Image:
    """Read an image file as "RGB" or "L"; UserError if it is unreadable or has more than 8 bits a channel."""
    try:
        with Image.open(file) as image:
            deep = image.mode[0] in "IF"  # 16 or 32 bits a pixel, which `convert` would cut off
            image = image.convert(colour)
    except Exception as error:  # PIL's decoders raise many kinds for damaged files
        raise UserError(f"{file} cannot be read as an image: replace or remove it") from error
    if deep:
        raise UserError(f"{file} has more than 8 bits a channel: convert it to 8 bits or remove it")
    return image


def _decode(file: Path, colour: str, size: tuple[int, int], resize: bool) -> np.ndarray:
    """One image as uint8 [C, H, W]; size is (W, H).

    With resize, the largest centred crop of the wanted proportions is resized with antialiasing.
    """
    image = open_image(file, colour)
    if resize:
        scale = min(image.width / size[0], image.height / size[1])
        width, height = round(size[0] * scale), round(size[1] * scale)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS)
    if image.size != size:
        raise UserError(f"{file} is {image.width}x{image.height}, the first image {size[0]}x{size[1]}: {RESIZE} them")
    pixels = np.asarray(image)
    return pixels[None] if colour == "L" else pixels.transpose(2, 0, 1)
