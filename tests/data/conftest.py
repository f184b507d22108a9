"""A data folder of its own for every test, and small image files."""

import re

import numpy as np
import pytest
from PIL import Image
from tiny import Bomb, refused

from rddlib.data import load_dataset


@pytest.fixture
def data(tmp_path_factory, monkeypatch):
    """The data folder, elsewhere than the images."""
    folder = tmp_path_factory.mktemp("elsewhere") / "data"
    monkeypatch.setenv("RDD_DATA", str(folder))
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def draw(rng):
    """Write a random image: draw(path, size=(W, H)) -> its pixels [H, W, 3]."""

    def drawn(path, size=(6, 6)):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return drawn


@pytest.fixture
def refuses():
    """Assert that a data set is refused in one line: refuses(words, config, split, shape)."""

    def said(words, config, split="train", shape=None):
        assert re.search(words, refused(load_dataset, config, split, shape))

    return said


@pytest.fixture
def caches(data):
    """The caches' folders, partial ones too."""
    return lambda: sorted(path for path in (data / "cache").glob("*") if path.is_dir())


@pytest.fixture
def bomb(tmp_path):
    """An object that makes a folder when it is unpickled; nothing may have done so in the end."""
    yield Bomb(tmp_path / "boom")
    assert not (tmp_path / "boom").exists()
