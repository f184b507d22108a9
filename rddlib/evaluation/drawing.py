"""Drawing images into files: what `rdd sample` leaves, batch after batch, going on where it was stopped."""

import io
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rddlib.data import grid_png, to_uint8
from rddlib.evaluation.images import DrawnImages, Images
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import join, rank, wait, world_size
from rddlib.utils.progress import Progress


def draw_to_file(images: DrawnImages, path: Path, batch_size: int = 500) -> Path:
    """Draw all images into an .npz in ADM's layout, arr_0 [count, H, W, C] uint8 and arr_1 labels [count] where there are
    classes, and a picture of the first 64 beside it, whose path is returned.

    Finished batches lie in a folder beside it until all are there, so a killed run goes on; an .npz that exists is kept.
    """
    join()
    parts, picture, count = path.with_suffix(".parts"), path.with_suffix(".png"), len(images)
    if path.exists():
        return picture
    ranges = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    files = [parts / f"{start:09d}-{stop:09d}.npz" for start, stop in ranges]
    mine = range(rank(), len(files), world_size())
    for position in Progress(f"drawing {images.name}", len(mine), unit="batches", quiet=True):
        number = mine[position]
        if not files[number].exists():
            drawn = to_uint8(images.batch(*ranges[number])).cpu()
            _write_npz(files[number], drawn.permute(0, 2, 3, 1).numpy(), images.labels(*ranges[number]))
    wait()
    if rank() == 0:
        finished = [_read_npz(file) for file in files]
        whole = np.concatenate([pixels for pixels, _ in finished])  # [count, H, W, C]
        labels = [labels for _, labels in finished if labels is not None]
        _write_npz(path, whole, np.concatenate(labels) if labels else None)
        write_atomically(picture, grid_png(torch.from_numpy(whole[:64]).permute(0, 3, 1, 2)))
        shutil.rmtree(parts)
    wait()
    return picture


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(images, labels or None)."""
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"], file.get("arr_1")


def _write_npz(path: Path, images: np.ndarray, labels: Tensor | np.ndarray | None) -> None:
    content, columns = io.BytesIO(), {} if labels is None else {"arr_1": np.asarray(labels)}
    np.savez(content, arr_0=images, **columns)
    write_atomically(path, content.getvalue())


def write_pngs(images: Images, folder: Path, batch_size: int = 500) -> None:
    """Each image as a PNG file of its number, for other tools; those that exist are kept."""
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        missing = [number for number in range(start, stop) if not (folder / f"{number:06d}.png").exists()]
        batch = images.batch(start, stop) if missing else None
        for number in missing:
            pixels = batch[number - start]
            pixels = to_uint8(pixels) if pixels.is_floating_point() else pixels
            write_atomically(folder / f"{number:06d}.png", _png(pixels.permute(1, 2, 0).cpu().numpy()))


def _png(pixels: np.ndarray) -> bytes:
    """[H, W, 1] or [H, W, 3] uint8 as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, format="png")
    return content.getvalue()
