"""Folders of images with captions."""

import pytest
from tiny import captioned

from rddlib.data import DataConfig, load_dataset

pytestmark = pytest.mark.usefixtures("data")
CAPTIONS = {"0.png": "a cat", "1.png": "a dog", "2.png": "a  cat\n", "3.png": "an ox", "4.png": "a dog"}


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv", "txt"])
def test_every_image_keeps_its_caption(tmp_path, capsys, form):
    root = captioned(tmp_path / "images", CAPTIONS, form)
    found = load_dataset(DataConfig("captions", str(root)))
    assert found.class_names == ("a cat", "a dog", "an ox") and found.num_classes == 3
    said = {int(image.max()): found.class_names[label] for image, label in zip(found.images, found.labels, strict=True)}
    assert said == {k: " ".join(text.split()) for k, text in enumerate(CAPTIONS.values())}
    assert "passed over" not in capsys.readouterr().err


def test_changed_captions_are_noticed(tmp_path):
    root = captioned(tmp_path / "images", CAPTIONS)
    load_dataset(DataConfig("captions", str(root)))
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("an ox", "a cow"))
    assert load_dataset(DataConfig("captions", str(root))).class_names == ("a cat", "a cow", "a dog")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: (root / "metadata.csv").unlink(), "5 of 5 images in .* have no caption, the first 0.png"),
        (lambda root: (root / "4.png").unlink(), "names 4.png, which is no image there"),
        (lambda root: (root / "metadata.jsonl").write_text(""), "holds metadata.jsonl and metadata.csv"),
        (lambda root: (root / "metadata.csv").write_text("name,text\n0.png,a cat\n"), "wants file_name and text"),
        (lambda root: (root / "metadata.csv").write_text("file_name,text\n0.png,x\n0.png,y\n"), "names a file twice"),
        (lambda root: (root / "metadata.csv").write_text("file_name,text\n0.png,\n"), "have no caption"),
    ],
)
def test_captions_and_images_that_do_not_fit(tmp_path, refuses, spoil, words):
    root = captioned(tmp_path / "images", CAPTIONS)
    spoil(root)
    refuses(words, DataConfig("captions", str(root)))
