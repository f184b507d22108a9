"""Folders of images, and the cache under them."""

import errno
import hashlib
import json
import multiprocessing
import os
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from rddlib.data import DataConfig, cache, dataset, folder, load_dataset
from rddlib.evaluation import open_images
from rddlib.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("data")


def test_folder_with_classes(tmp_path, draw):
    root = tmp_path / "set"
    expected = [draw(root / "train" / name) for name in ("cat/a.png", "cat/deep/b.PNG", "dog/a.bmp")]
    draw(root / "test" / "cat" / "a.png")
    (root / "train" / "dog" / "notes.txt").write_text("no image")
    (root / "train" / "dog" / "._a.png").write_text("hidden")
    (root / "train" / ".hidden").mkdir()
    found = load_dataset(DataConfig("folder", str(root)), shape=(3, 6, 6))
    assert torch.equal(found.images, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [0, 0, 1] and found.labels.dtype == torch.int64 and found.num_classes == 2
    assert found.name == "images of folder set" and found.images.dtype == torch.uint8


@pytest.mark.parametrize("suffix", ["png", "JPEG", "webp", "bmp"])
def test_every_format_is_read_in_colour_and_grey(tmp_path, suffix):
    for i in range(2):
        Image.new("RGB", (4, 4), (200, 30, 90)).save(tmp_path / f"{i}.{suffix}")
    config = DataConfig("folder", str(tmp_path))
    colour, grey = load_dataset(config, shape=(3, 4, 4)), load_dataset(config, shape=(1, 4, 4))
    assert colour.num_classes == 0 and colour.labels.tolist() == [0, 0]
    assert (colour.images.float().mean((0, 2, 3)) - torch.tensor([200.0, 30, 90])).abs().max() < 4
    assert grey.images.shape == (2, 1, 4, 4) and abs(grey.images.float().mean() - 88) < 4  # .299 R + .587 G + .114 B


def test_a_spread_tenth_is_held_out_where_there_is_no_test_part(tmp_path, draw, caches):
    files = {draw(tmp_path / "set" / f"{'ab'[i // 30]}/{i:03}.png").transpose(2, 0, 1).tobytes(): i for i in range(60)}
    config = DataConfig("folder", str(tmp_path / "set"))
    parts = {split: load_dataset(config, split) for split in ("train", "extractor", "test")}
    assert {part.name for part in parts.values()} == {f"images of folder set{s}" for s in ("", "[extractor]", "[test]")}
    rows = {split: [files[image.numpy().tobytes()] for image in part.images] for split, part in parts.items()}
    assert [len(row) for row in rows.values()] == [60, 54, 6] and len(caches()) == 1
    assert rows["extractor"] + rows["test"] == rows["train"] and sorted(rows["train"]) == list(range(60))
    for split, part in parts.items():
        assert part.labels.tolist() == [i // 30 for i in rows[split]]  # every image keeps its class
        assert part.sha256 == hashlib.sha256(part.images.numpy().tobytes()).hexdigest()
    assert {i // 30 for i in rows["test"]} == {0, 1} and rows["test"] != list(range(54, 60))
    for file in caches()[0].iterdir():
        file.unlink()
    assert torch.equal(load_dataset(config, "test").images, parts["test"].images)  # made anew, the same tenth


@pytest.mark.parametrize("test", ["test", "val"])
def test_parts_of_a_folder(tmp_path, test, draw, refuses):
    for part, count in (("train", 4), (test, 2)):
        for i in range(count):
            draw(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    config = DataConfig("folder", str(tmp_path))
    train, extractor, tested = (load_dataset(config, split) for split in ("train", "extractor", "test"))
    assert len(train) == 4 and len(tested) == 2 and torch.equal(train.images, extractor.images)
    assert tested.name == train.name + "[test]" and train.sha256 != tested.sha256
    draw(tmp_path / test / "c" / "new.png")
    refuses(r"different classes \(c\)", config, "test")


def test_training_and_scoring_read_the_same_images_of_a_folder(tmp_path, draw, capsys):
    """Through links too, but for one that leads back up; what is no image is counted."""
    draw(tmp_path / "far" / "1.png"), draw(tmp_path / "set" / "b" / "2.png"), draw(tmp_path / "far" / "deep" / "0.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "readme.TXT").write_text("no image")
    (tmp_path / "set" / "b" / ".hidden").write_text("neither")
    trained = load_dataset(DataConfig("folder", str(tmp_path / "set"))).images
    scored = open_images(tmp_path / "set")
    assert len(trained) == 3 and torch.equal(trained.flatten(1).sort(0)[0], scored.batch(0, 3).flatten(1).sort(0)[0])
    assert capsys.readouterr().err.count("2 files passed over, no images by name (.txt: 1, hidden: 1)") == 1


def test_a_file_becomes_upright_opaque_pixels(tmp_path):
    """EXIF orientation, transparency in colour, grey and palettes; colours stay as they are."""
    left = Image.new("RGB", (8, 4), (255, 0, 0))
    left.paste((0, 0, 255), (0, 0, 4, 4))  # blue on the left
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees clockwise: blue on top
    left.save(tmp_path / "photo.jpg", exif=turned, quality=100, subsampling=0)
    upright = np.asarray(folder.open_image(tmp_path / "photo.jpg"))
    assert upright.shape == (8, 4, 3) and upright[:3, :, 2].min() > 200 and upright[5:, :, 0].min() > 200
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    clear.save(tmp_path / "colour.png"), clear.convert("LA").save(tmp_path / "grey.png")
    clear.convert("RGBA").quantize(4).save(tmp_path / "palette.png")
    for name, first in (("colour", (10, 20, 30)), ("grey", clear.convert("L").getpixel((0, 0))), ("palette", None)):
        image = folder.open_image(tmp_path / f"{name}.png")
        assert image.mode == ("L" if name == "grey" else "RGB")
        assert image.getpixel((3, 3)) in (255, (255, 255, 255)) and (first is None or image.getpixel((0, 0)) == first)


def test_classes_in_natural_order_by_name_or_number(tmp_path, draw):
    for name in ("10", "2", "0", "cat10", "cat9"):
        draw(tmp_path / "set" / name / "1.png")
    dataset = load_dataset(DataConfig("folder", str(tmp_path / "set")), "train")
    for image, label in zip(dataset.images, dataset.labels, strict=True):
        drawn = folder.open_image(tmp_path / "set" / dataset.class_names[label] / "1.png")
        assert np.array_equal(image.permute(1, 2, 0), drawn)
    assert dataset.class_names == ("0", "2", "10", "cat9", "cat10") and dataset.labels.sort()[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert dataset.class_numbers(["cat10", "10", "4"]) == (4, 2, 4)  # a name goes before a number
    with pytest.raises(
        UserError, match=r"no class 'cat1' \(did you mean 'cat10'\?\): its names are 0, 2, 10, cat9, cat10"
    ):
        dataset.class_numbers(["cat1"])


def test_images_of_other_sizes(tmp_path, draw, refuses):
    draw(tmp_path / "a.png", (6, 6))
    draw(tmp_path / "b.png", (8, 4))
    config = DataConfig("folder", str(tmp_path))
    refuses(r"b.png is 8x4, the first image 6x6: --set data.resize=true", config)
    refuses(r"\(3, 6, 6\), wanted are \(3, 8, 8\).*--set data.resize=true", config, shape=(3, 8, 8))
    refuses(r"\(3, 6, 6\), wanted are \(2, 6, 6\)", config, shape=(2, 6, 6))
    resizing = DataConfig("folder", str(tmp_path), resize=True)
    assert load_dataset(resizing, shape=(3, 4, 4)).images.shape == (2, 3, 4, 4)
    assert load_dataset(resizing, shape=(1, 2, 2)).images.shape == (2, 1, 2, 2)
    refuses("known size", resizing)


def test_resizing_crops_to_the_centre_and_leaves_fitting_images_alone(tmp_path, draw):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255  # the centred square is white, all else black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    fitting = draw(tmp_path / "z.png", (4, 4))
    images = load_dataset(DataConfig("folder", str(tmp_path), resize=True), shape=(3, 4, 4)).images
    assert images[0].min() == 255 and np.array_equal(images[1].permute(1, 2, 0), fitting)


def test_wrong_folders(tmp_path, draw, refuses):
    config = DataConfig("folder", str(tmp_path / "set"))
    refuses("no folder .*set.*data.root", config)
    refuses("no folder .*data.folder", DataConfig("folder"))
    (tmp_path / "set" / "a").mkdir(parents=True)
    refuses("holds no images", config)
    draw(tmp_path / "set" / "b" / "1.png")
    refuses(r"class folder without images \(a\)", config)
    draw(tmp_path / "bytes" / "a" / "1.png")
    (tmp_path / "bytes" / "a").rename(tmp_path / "bytes" / os.fsdecode(b"caf\xe9"))
    refuses(r"name is no UTF-8 \('caf\\udce9'\): rename it", DataConfig("folder", str(tmp_path / "bytes")))
    draw(tmp_path / "set" / "top.png")
    refuses("at its top and in sub-folders", config)
    draw(tmp_path / "set" / "train" / "1.png")
    refuses(r"train/ beside other folders \(a, b\)", config)
    draw(tmp_path / "parts" / "test" / "1.png")
    refuses("holds test/ without train/", DataConfig("folder", str(tmp_path / "parts")))
    for end in ("", "ing"):
        draw(tmp_path / f"like{end}" / f"Train{end}" / "1.png"), draw(tmp_path / f"like{end}" / f"Test{end}" / "1.png")
        refuses("which read as parts and not as classes", DataConfig("folder", str(tmp_path / f"like{end}")))
    draw(tmp_path / "parts" / "train" / "1.png"), draw(tmp_path / "parts" / "2.png")
    refuses(r"images beside train/ \(2.png\)", DataConfig("folder", str(tmp_path / "parts")))


def test_a_bitmap_of_16_bits_a_pixel_has_no_more_than_8_a_channel(tmp_path):
    """5 of red, 6 of green, 5 of blue."""
    pixels = np.array([[0xF800, 0x07E0], [0x001F, 0xFFFF]], "<u2")  # from the bottom up
    head = struct.pack("<IiiHHIIiiII3I", 40, 2, 2, 1, 16, 3, pixels.nbytes, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    start = 14 + len(head)
    (tmp_path / "a.bmp").write_bytes(struct.pack("<2sIII", b"BM", start + 8, 0, start) + head + pixels.tobytes())
    found = np.asarray(folder.open_image(tmp_path / "a.bmp"))
    assert found.tolist() == [[[0, 0, 255], [255, 255, 255]], [[255, 0, 0], [0, 255, 0]]]


def deep_png(size: int) -> bytes:
    """A PNG in colour with 16 bits a channel, which Pillow reads but cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", size, size, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\1\xfe" * 3 * size) * size)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_wrong_images(tmp_path, draw, refuses, caches, rng):
    config = DataConfig("folder", str(tmp_path))
    draw(tmp_path / "a.png")
    refuses("one image, which cannot be split", config)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    refuses("b.png cannot be read as an image", config)
    (tmp_path / "b.png").write_bytes(b"text")
    refuses("b.png cannot be read as an image", config)
    Image.fromarray(rng.integers(0, 60000, (6, 6), dtype=np.uint16)).save(tmp_path / "b.png")
    refuses("b.png has more than 8 bits", config)
    (tmp_path / "b.png").write_bytes(deep_png(6))
    refuses("b.png has more than 8 bits", config)
    Image.new("L", (6, 6)).save(tmp_path / "b.png", save_all=True, append_images=[Image.new("L", (6, 6), 9)])
    refuses("b.png has 2 frames", config)
    assert not caches()


@pytest.fixture
def small(tmp_path, draw) -> DataConfig:
    for i in range(8):
        draw(tmp_path / "set" / f"{i}.png")
    return DataConfig("folder", str(tmp_path / "set"))


def test_cache_is_used_again_and_mapped(small, monkeypatch, caches):
    first = load_dataset(small)
    (made,) = caches()
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    monkeypatch.setattr(folder, "_decode", None)
    second = load_dataset(small)
    assert torch.equal(first.images, second.images) and second.checksum == first.sha256
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before
    if sys.platform == "linux":
        assert str(made / "images.bin") in Path("/proc/self/maps").read_text()
    monkeypatch.setattr(dataset.hashlib, "sha256", None)  # the remembered hash is not computed again
    assert second.to("cpu").sha256 == first.sha256


def test_changed_folder_makes_a_new_cache(small, draw, caches):
    first = load_dataset(small)
    draw(Path(small.root) / "new.png")
    assert len(load_dataset(small)) == 9 and len(caches()) == 2
    kept = os.stat(Path(small.root) / "0.png")
    draw(Path(small.root) / "0.png")  # the same name and perhaps size, at another time
    os.utime(Path(small.root) / "0.png", ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
    assert len(caches()) == 2 and load_dataset(small).sha256 != first.sha256 and len(caches()) == 3


def test_two_folders_of_one_name_with_files_alike_are_two_data_sets(tmp_path, draw):
    """Equal names, sizes and times, other pixels."""
    for place in ("a", "b"):
        for i in range(2):
            draw(tmp_path / place / "set" / f"{i}.bmp")  # of one size whatever the pixels
            os.utime(tmp_path / place / "set" / f"{i}.bmp", (1, 1))
    first, second = (load_dataset(DataConfig("folder", str(tmp_path / place / "set"))) for place in ("a", "b"))
    assert first.sha256 != second.sha256 and not torch.equal(first.images, second.images)


def test_an_image_drawn_anew_under_its_old_time_is_noticed(small, draw):
    file = Path(small.root) / "0.png"
    draw(file.with_suffix(".bmp")), file.unlink()
    before, times = load_dataset(small).sha256, file.with_suffix(".bmp").stat()
    draw(file.with_suffix(".bmp"))
    os.utime(file.with_suffix(".bmp"), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_dataset(small).sha256 != before


@pytest.mark.parametrize("file", ["images.bin", "labels.npy", "facts.json"])
@pytest.mark.parametrize(
    "change", [lambda c: c[: len(c) // 2], lambda c: c[:-1] + bytes([c[-1] ^ 1])], ids=["half", "bit"]
)
def test_damaged_cache_is_made_again(small, file, change, caches):
    first = load_dataset(small)
    pixels, digest = first.images.clone(), first.sha256
    path = caches()[0] / file
    path.write_bytes(change(path.read_bytes()))
    again = load_dataset(small)
    assert torch.equal(again.images, pixels) and again.labels.tolist() == [0] * 8 and again.sha256 == digest
    facts = json.loads((caches()[0] / "facts.json").read_text())
    assert len(caches()) == 1 and facts["shape"] == [8, 3, 6, 6] and facts["sha256"]["train"] == digest


def test_full_disk_leaves_nothing(small, monkeypatch, refuses, caches):
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return np.zeros((3, 6, 6), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_decode", full)
        refuses("cannot write the cache .*No space left on device; free the place", small)
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        refuses("0.00 GB are free in .*RDD_DATA", small)
    assert len(calls) == 3 and not caches() and len(load_dataset(small)) == 8


def test_folder_that_cannot_be_written(small, refuses, data):
    data.write_text("a file where the folder should be")
    refuses("cannot write the cache", small)


def _load_lengths(root: str) -> int:
    return len(load_dataset(DataConfig("folder", root)))


def test_two_processes_build_one_cache(small, caches):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_load_lengths, [small.root] * 4) == [8] * 4
    assert len(caches()) == 1
