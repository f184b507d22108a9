"""Files that are whole or absent: tensors and the facts about them in one safetensors file with its own checksum."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from rddlib.utils.errors import UserError


class DamagedFile(UserError):
    """A file that is not what was written: `fault` says which and how, the message adds the remedy."""

    def __init__(self, fault: str):
        super().__init__(f"{fault}: delete it, the next run makes it again")
        self.fault = fault


def cannot_write(path: Path, error: Exception) -> UserError:
    """The one line for a full disk or a folder that may not be written."""
    return UserError(
        f"cannot write {path}: {getattr(error, 'strerror', None) or error}; free the place or choose another one"
    )


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary name beside `path`, flush to disk, rename: a reader sees the old file or the new, never half.

    Raises UserError where the folder cannot be written or the disk is full; an earlier file stays as it was.
    """
    try:
        with whole_or_absent(Path(path)) as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` once the block has ended, and nowhere where it fails. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename lasts through a power cut
    finally:
        os.close(folder)


def read_json(path: Path, pick: Callable, remedy: str):
    """pick(what the file holds). Raises UserError with the remedy where that is not there."""
    try:
        return pick(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {remedy}") from error


def digest(tensors: dict[str, Tensor], info: str) -> str:
    """sha256 over every tensor's name, dtype, shape and bytes, in the order of names, and over the facts."""
    total = hashlib.sha256(info.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_checkpoint(path: Path, tensors: dict[str, Tensor], info: dict) -> str:
    """Write tensors and JSON-serialisable facts atomically; returns the checksum, which `load_checkpoint` verifies.

    Tensors are copied to the CPU; the same storage under two names is written twice. Raises UserError where the file
    cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(info, sort_keys=True)
    checksum = digest(tensors, text)
    write_atomically(path, serialise(tensors, metadata={"info": text, "sha256": checksum}))
    return checksum


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_checkpoint` wrote -> (tensors, info), info["sha256"] being the checksum. No pickle is involved.

    Raises UserError for a missing or foreign file, DamagedFile (one too) for a truncated or altered one.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: train it first or correct the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged or no safetensors file") from error
    if "info" not in metadata or "sha256" not in metadata:
        raise UserError(f"{path} was not written by rddlib: name a checkpoint that `rdd` made")
    if digest(tensors, metadata["info"]) != metadata["sha256"]:
        raise DamagedFile(f"{path} is damaged (its checksum differs)")
    return tensors, {**json.loads(metadata["info"]), "sha256": metadata["sha256"]}
