"""Any folder of images, with or without class sub-folders and parts train/, test/ or val/; and any image file as pixels."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rddlib.data.cache import Recipe, fingerprint, load_cached
from rddlib.data.dataset import DataConfig, ImageDataset, check_shape
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress, mode
from rddlib.utils.text import counted, joined, say

_NAMES = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp"
SUFFIXES = {f".{name}" for name in _NAMES.split()}
PARTS = ("train", "test", "val")
LIKE_PARTS = (*PARTS, "training", "testing", "valid", "validation")
RESIZE = "--set data.resize=true crops and resizes"
READER = 2  # raised when the same files give other pixels: caches are then built anew
GREY = ("1", "L", "LA", "La")


def load_folder(config: DataConfig, split: str, shape=None, name: str = "") -> ImageDataset:
    """Load the images of config.root as RGB, or as grey if shape has one channel.

    Its train/ and test/ (or val/) are the splits. Without train/, all images are "train"; without test/ and val/, a
    seeded tenth is "test" and the rest "extractor". Labels follow the sub-folders in natural order ("2" before "10", which
    differs from torchvision's ImageFolder); images at the top have no labels. Links are followed. What is passed over is
    counted in a line. Raises UserError for a missing or empty folder, images of several sizes, unreadable images, an
    ambiguous layout, and classes that differ between the parts.
    """
    root = config.folder
    name = name or f"images of folder {root.resolve().name}"
    train, test = parts_of(root)
    if split == "test" and test is not None:
        if (classes := _listing(test)[2]) != (expected := _listing(train)[2]):
            differing = ", ".join(sorted(set(classes) ^ set(expected)))
            raise UserError(f"{test} and {train} have different classes ({differing}): give both the same sub-folders")
        return load_cached(recipe_of(config, test, f"{name}[test]", shape, hold_out=False))["train"]
    return load_cached(recipe_of(config, train, name, shape, hold_out=test is None))[split]


def check_parts(root: Path, folders: Collection[str]) -> None:
    """Raise UserError where its folders read as parts of a data set, and not as classes, and are not called as such."""
    if folders and all(name.lower() in LIKE_PARTS for name in folders) and not set(folders) & set(PARTS):
        raise UserError(
            f"{root} holds {joined(folders)}, which read as parts and not as classes: name them train/ and test/"
        )


def parts_of(root: Path) -> tuple[Path, Path | None]:
    """(the folder of training images, the folder of test images or None)."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: name the one that holds the images with --set data.root=FOLDER")
    folders = [folder.name for folder in _folders(root)]
    check_parts(root, folders)
    if "train" not in folders:
        if lone := [part for part in PARTS[1:] if part in folders]:
            raise UserError(
                f"{root} holds {lone[0]}/ without train/: name the folder of the training images train/, or rename it"
            )
        return root, None
    if others := [name for name in folders if name not in PARTS]:
        raise UserError(
            f"{root} holds train/ beside other folders ({', '.join(others[:3])}): leave only train/, test/, val/ there, "
            f"or move the classes into one of them"
        )
    tests = [part for part in PARTS[1:] if part in folders]
    if len(tests) == 2:
        say_once(f"{root}: val/ is passed over, the test images are those of test/")
    if loose := [path for path in root.iterdir() if path.is_file() and _is_image(path.name)]:
        raise UserError(f"{root} holds images beside train/ ({loose[0].name}): move them into train/ or elsewhere")
    return root / "train", root / tests[0] if tests else None


def class_names(root: Path) -> list[str]:
    """The classes of a folder's training images, from names alone: no image is read. Raises UserError as `load_folder` does."""
    return _listing(parts_of(root)[0])[2]


def images_below(folder: Path, beside: Collection[str] = ()) -> list[Path]:
    """The image files in a folder and its sub-folders, sorted by path; what else lies there is counted in a line, but for
    files of the suffixes `beside`."""
    files, others = [], Counter()
    for file in _files_below(folder, others):
        if _is_image(file.name):
            files.append(file)
        elif file.suffix.lower() not in beside:
            others[file.suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(others.items()))
        say_once(f"{folder}: {counted(sum(others.values()), 'file')} passed over, no images by name ({kinds})")
    return sorted(files)


def _files_below(folder: Path, hidden: Counter, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files at any depth, through links too but for those that lead back up; hidden files and folders are only counted."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                hidden["hidden"] += 1
            elif entry.is_dir():
                yield from _files_below(Path(entry.path), hidden, (*above, here))
            else:
                yield Path(entry.path)


@lru_cache
def say_once(line: str) -> None:
    say(line)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def natural(name: str) -> list:
    """A key that sorts "2" before "10"."""
    words = re.split(r"(\d+)", name)
    return [(int(word), word) if i % 2 else word for i, word in enumerate(words)]


def _folders(root: Path) -> list[Path]:
    found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: natural(path.name))


def _listing(part: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """(sorted files [M], labels [M], class names)."""
    files, folders = images_below(part), _folders(part)
    classes = {folder.name: [] for folder in folders}
    top = []
    for file in files:
        inner = file.relative_to(part).parts
        (classes[inner[0]] if len(inner) > 1 else top).append(file)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{part} holds no images ({suffixes}): name another with --set data.root=FOLDER")
    if top and len(top) < len(files):
        raise UserError(f"{part} holds images at its top and in sub-folders: move them all to one of the two")
    if top:
        return top, np.zeros(len(top), np.int64), []
    if empty := [name for name, inside in classes.items() if not inside]:
        raise UserError(f"{part} has a class folder without images ({empty[0]}): fill it or remove it")
    # which no model card could hold
    if odd := [name for name in classes if name != name.encode(errors="ignore").decode()]:
        raise UserError(f"{part} has a class folder whose name is no UTF-8 ({odd[0]!a}): rename it")
    labelled = [(file, label) for label, inside in enumerate(classes.values()) for file in inside]
    return [file for file, _ in labelled], np.array([label for _, label in labelled]), list(classes)


def recipe_of(config: DataConfig, part: Path, name: str, shape, hold_out: bool, listing=_listing) -> Recipe:
    """How the images of a folder become a cache; listing(part) -> (files, labels, names of the labels)."""
    files, labels, classes = listing(part)
    colour = "L" if shape is not None and shape[0] == 1 else "RGB"
    if config.resize and shape is None:
        raise UserError("images can only be resized to a known size: pass shape=(C, H, W)")
    size = (shape[2], shape[1]) if config.resize else open_image(files[0], colour).size
    check_shape(name, (len(colour), size[1], size[0]), shape, f", or {RESIZE}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in Progress(f"decoding {name}", len(files), unit="image", quiet=mode() == "count"):
            yield _decode(files[i], colour, size, config.resize)[None], labels[i : i + 1]

    facts = [READER, name, colour, list(size) if config.resize else [], hold_out]
    facts += [] if listing is _listing else [classes, labels.tolist()]
    mark = fingerprint(part, files, *facts)
    pixels = len(files) * len(colour) * size[0] * size[1]
    return Recipe(config.name, name, mark, len(classes), pixels, blocks, hold_out, tuple(classes))


def open_image(file: Path, colour: str = "") -> Image.Image:
    """Read an image file as "RGB" or "L" (grey); "": as what it is, grey or not.

    It stands upright, as its EXIF orientation says; what is transparent shows white; colour profiles are not applied.
    UserError if it is unreadable, animated, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            # 16 or 32 bits a pixel, which `convert`, or the decoder of a 16-bit PNG in colour, would cut off
            deep = image.mode[0] in "IF" or ";16" in str(image.tile).replace("BGR;16", "")  # of which 5 or 6 a channel
            # a phone's JPEG may carry a second picture of the same scene
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            colour = colour or ("L" if image.mode in GREY else "RGB")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert(colour)
    except Exception as error:  # PIL's decoders raise many kinds for damaged files
        raise UserError(f"{file} cannot be read as an image: replace or remove it") from error
    if deep:
        raise UserError(f"{file} has more than 8 bits a channel: convert it to 8 bits or remove it")
    if frames > 1:
        raise UserError(f"{file} has {frames} frames: save those you want as images of their own, or remove it")
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
