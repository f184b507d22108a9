"""Files that are whole or absent: what is written comes back, what is damaged or foreign is refused."""

import os
import re
import subprocess
import sys

import pytest
import torch
from tiny import Bomb, refused

from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint, write_atomically


@pytest.fixture
def saved(tmp_path):
    path, a = tmp_path / "model.safetensors", torch.randn(3, 4)
    tensors = {"a": a, "shared": a, "b": torch.arange(5), "c": torch.randn(2, 2).T, "d": torch.tensor(3.0).bfloat16()}
    save_checkpoint(path, tensors, {"kind": "test", "numbers": [1, 2.5]})
    return path, tensors


def test_round_trip(saved):
    path, tensors = saved
    loaded, info = load_checkpoint(path)
    assert info["kind"] == "test" and info["numbers"] == [1, 2.5] and len(info["sha256"]) == 64
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("position", [0.02, 0.5, 0.999])
def test_one_flipped_bit_anywhere_is_noticed(saved, position):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)
    assert re.search("damaged|not written by rddlib", refused(load_checkpoint, path))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged" in refused(load_checkpoint, path)


def test_foreign_and_missing_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    for name, words in (("foreign", "not written by rddlib"), ("absent", "no checkpoint")):
        assert re.search(words, refused(load_checkpoint, tmp_path / name))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "bomb")
    assert "damaged or no safetensors" in refused(load_checkpoint, tmp_path / "bomb")
    assert not (tmp_path / "exploded").exists()


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_atomically(tmp_path / "f", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(write_atomically, tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and os.listdir(tmp_path) == ["f"]
    assert "cannot write" in refused(write_atomically, "/dev/null/inside/file", "x")
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "m", {}, {"x": object()})
    assert not (tmp_path / "m").exists()


def test_killed_while_writing_leaves_a_whole_file(tmp_path):
    """kill -9 in the middle of repeated writes: whatever is there loads."""
    code = f"""
import torch
from rddlib.utils.checkpoint import save_checkpoint
for i in range(10**6):
    save_checkpoint({str(tmp_path / "m")!r}, {{"x": torch.full((200_000,), float(i))}}, {{"i": i}})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "m").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    tensors, info = load_checkpoint(tmp_path / "m")
    assert (tensors["x"] == info["i"]).all()
