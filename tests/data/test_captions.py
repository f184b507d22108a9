"""Folders of images with captions."""

import pytest
from tiny import captioned

from rddlib.data import DataConfig, load_dataset

pytestmark = pytest.mark.usefixtures("data")
CAPTIONS = {"0.png": "a cat", "1.png": "a dog", "2.png": "a  cat\n", "3.png": "an ox", "4.png": "a dog"}
FORMS = pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv", "txt"])


@FORMS
def test_every_image_keeps_its_caption(tmp_path, capsys, form):
    root = captioned(tmp_path / "images", CAPTIONS, form)
    found = load_dataset(DataConfig("captions", str(root)))
    assert found.class_names == ("a cat", "a dog", "an ox") and found.num_classes == 3
    said = {int(image.max()): found.class_names[label] for image, label in zip(found.images, found.labels, strict=True)}
    assert said == {k: " ".join(text.split()) for k, text in enumerate(CAPTIONS.values())}
    assert "passed over" not in capsys.readouterr().err


@FORMS
def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path, form):
    root = captioned(tmp_path / "images", CAPTIONS, form)
    for file in root.glob(f"*{form}"):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_dataset(DataConfig("captions", str(root))).class_names == ("a cat", "a dog", "an ox")


def test_a_number_is_a_caption(tmp_path):
    root = captioned(tmp_path / "images", {f"{k}.png": k for k in range(3)}, "metadata.jsonl")
    assert load_dataset(DataConfig("captions", str(root))).class_names == ("0", "1", "2")


def test_a_text_without_an_image_is_said(tmp_path, capsys):
    root = captioned(tmp_path / "images", CAPTIONS, "txt")
    (root / "4.png").unlink()
    assert len(load_dataset(DataConfig("captions", str(root)))) == 4
    assert "1 text without an image passed over, the first 4.txt" in capsys.readouterr().err


def test_changed_captions_are_noticed(tmp_path):
    root = captioned(tmp_path / "images", CAPTIONS)
    load_dataset(DataConfig("captions", str(root)))
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("an ox", "a cow"))
    assert load_dataset(DataConfig("captions", str(root))).class_names == ("a cat", "a cow", "a dog")


def only(root, name, content):
    """Leave no captions but these."""
    (root / "metadata.csv").unlink()
    (root / name).write_bytes(content)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: (root / "metadata.csv").unlink(), "5 of 5 images in .* have no caption, the first 0.png"),
        (lambda root: (root / "4.png").unlink(), "names 4.png, which is no image there"),
        (lambda root: (root / "metadata.jsonl").write_text(""), "holds metadata.jsonl and metadata.csv"),
        (lambda root: (root / "metadata.csv").write_text("name,text\n0.png,a cat\n"), "wants file_name and text"),
        (lambda root: (root / "metadata.csv").write_text("file_name,text\n0.png,x\n0.png,y\n"), "names a file twice"),
        (lambda root: (root / "metadata.csv").write_text("file_name,text\n0.png,\n"), "have no caption"),
        (lambda root: only(root, "0.txt", "café".encode("latin-1")), "0.txt is no UTF-8 .*: convert it"),
        (
            lambda root: [only(root, "0.txt", b"a cat"), (root / "train").mkdir()],
            "holds train, which would be mixed: name one, as --set data.root=.*/train",
        ),
        (
            lambda root: only(root, "metadata.jsonl", b'{"file_name": "0.png", "text": ["a"]}'),
            "text is .*wants file_name",
        ),
    ],
)
def test_captions_and_images_that_do_not_fit(tmp_path, refuses, spoil, words):
    root = captioned(tmp_path / "images", CAPTIONS)
    spoil(root)
    refuses(words, DataConfig("captions", str(root)))
