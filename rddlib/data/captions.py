"""A folder of images with captions: metadata.jsonl or metadata.csv (file_name, text), or a .txt beside each image."""

import csv
import json
from pathlib import Path

import numpy as np

from rddlib.data.cache import load_cached
from rddlib.data.dataset import DataConfig, ImageDataset
from rddlib.data.folder import PARTS, images_below, recipe_of, say_once
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, joined

METADATA = ("metadata.jsonl", "metadata.csv")  # the datasets library's image-folder convention
CAPTION = ".txt"


def load_captions(config: DataConfig, split: str, shape=None) -> ImageDataset:
    """Load the images of config.root with their captions: the different captions, sorted, are the classes.

    Without a metadata file each image's caption is the text file of its name. A seeded tenth is "test", the rest "extractor".
    Raises UserError as `load_folder` does, for images without captions, captions without images, and parts such as train/
    where no metadata file says that all are meant.
    """
    root = config.folder
    if not root.is_dir():
        raise UserError(f"no folder {root}: name the one that holds images and captions with --set data.root=FOLDER")
    parts = [part for part in PARTS if (root / part).is_dir()]
    if parts and not any((root / name).is_file() for name in METADATA):  # which say whose captions are meant
        raise UserError(
            f"{root} holds {joined(parts)}, which would be mixed: name one, as --set data.root={root / parts[0]}"
        )
    name = f"captioned images of folder {root.resolve().name}"

    def listing(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:
        captions = _captions(folder)
        known = {text: number for number, text in enumerate(sorted(set(captions.values())))}
        return list(captions), np.array([known[text] for text in captions.values()]), list(known)

    return load_cached(recipe_of(config, root, name, shape, hold_out=True, listing=listing))[split]


def _captions(folder: Path) -> dict[Path, str]:
    """The caption of each image, sorted by path."""
    files = images_below(folder, beside=(CAPTION, ".jsonl", ".csv"))
    there = [name for name in METADATA if (folder / name).is_file()]
    if len(there) == 2:
        raise UserError(f"{folder} holds {there[0]} and {there[1]}: leave one of them there")
    if there:
        texts = _from_metadata(folder / there[0])
    else:
        beside = {file: file.with_suffix(CAPTION) for file in files}
        texts = {file: _text(text) for file, text in beside.items() if text.is_file()}
        texts_there = {path for path in folder.rglob(f"*{CAPTION}") if not path.name.startswith(".")}
        if alone := sorted(texts_there - {*beside.values()}):
            say_once(f"{folder}: {counted(len(alone), 'text')} without an image passed over, the first {alone[0].name}")
    if lost := sorted(set(texts) - set(files)):
        raise UserError(
            f"{folder / there[0]} names {lost[0].name}, which is no image there: correct or remove its line"
        )
    if bare := [file for file in files if not texts.get(file, "").strip()]:
        raise UserError(
            f"{len(bare)} of {len(files)} images in {folder} have no caption, the first {bare[0].name}: give them a line in "
            f"{METADATA[0]} (file_name, text) or a {CAPTION} file of their name, or move them elsewhere"
        )
    if not files:
        raise UserError(f"{folder} holds no images: name another with --set data.root=FOLDER")
    return {file: " ".join(texts[file].split()) for file in files}


def _said(text) -> str:
    """A caption as metadata has it: a number is one too."""
    if isinstance(text, (list, dict)):
        raise TypeError(f"text is {text!r}")
    return "" if text is None else str(text)


def _text(path: Path) -> str:
    """What a file holds, without the mark that some editors begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is no UTF-8 ({error}): convert it") from error


def _from_metadata(path: Path) -> dict[Path, str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                rows = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
        pairs = [(path.parent / row["file_name"], _said(row["text"])) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error!r}): each row wants file_name and text") from error
    if len({file for file, _ in pairs}) < len(pairs):
        raise UserError(f"{path} names a file twice: keep one caption for each")
    return dict(pairs)
