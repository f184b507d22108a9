"""Images that a model draws from seeded noise, and drawing them into a file."""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rddlib.data import grid_png, to_uint8
from rddlib.diffusion.denoiser import Denoiser, warn_beyond
from rddlib.diffusion.samplers import evaluations, find_sampler
from rddlib.diffusion.schedule import schedule_facts
from rddlib.evaluation.images import GIVEN, UNKNOWN, Images, write_npz
from rddlib.training import derive_seed
from rddlib.training.hardware import enough_memory, tf32_context
from rddlib.utils.checkpoint import digest, write_atomically
from rddlib.utils.distributed import join, rank, wait, world_size
from rddlib.utils.errors import UserError
from rddlib.utils.progress import Progress
from rddlib.utils.text import counted

NOISE_BLOCK = 100  # images whose noise is drawn together, whatever the batch size


def common_noise(shape: tuple[int, int, int], start: int, stop: int, seed: int) -> Tensor:
    """Standard normal noise [stop - start, C, H, W] of images start..stop-1: the same for every method and batch size."""
    return _drawn(start, stop, seed, 1, lambda generator: torch.randn(NOISE_BLOCK, *shape, generator=generator))


def common_labels(classes: int, start: int, stop: int, seed: int) -> Tensor:
    """Random labels [stop - start] of the same images, int64 in 0..classes-1."""
    return _drawn(start, stop, seed, 2, lambda generator: torch.randint(classes, (NOISE_BLOCK,), generator=generator))


def fresh_noise(shape: tuple[int, int, int], start: int, stop: int, seed: int, step: int) -> Tensor:
    """The noise [stop - start, C, H, W] that the stochastic sampler adds to the same images after its step-th step."""
    return _drawn(start, stop, seed, 3 + step, lambda generator: torch.randn(NOISE_BLOCK, *shape, generator=generator))


def _drawn(start: int, stop: int, seed: int, kind: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Rows start..stop-1 of an endless sequence whose blocks each depend on (seed, block, kind) alone."""
    first, last = start // NOISE_BLOCK, -(-stop // NOISE_BLOCK)
    blocks = [draw(torch.Generator().manual_seed(derive_seed(seed, block, kind))) for block in range(first, last)]
    return torch.cat(blocks)[start - first * NOISE_BLOCK : stop - first * NOISE_BLOCK]


def check_classes(classes: Sequence[int], known: int) -> None:
    """Raise UserError if a model of `known` classes cannot draw these."""
    if classes and not known:
        raise UserError("this model is unconditional and draws no chosen classes: leave the classes out")
    if unknown := sorted(set(classes) - set(range(known))):
        raise UserError(f"unknown classes {', '.join(map(str, unknown))}: choose from 0 to {known - 1}")


def check_weight(guidance: float) -> None:
    """Raise UserError if a guidance weight is not finite."""
    if not math.isfinite(guidance):
        raise UserError(f"guidance {guidance}: expected a number, 0 for the conditional model")


def check_guidance(denoiser: Denoiser, guidance: float | None) -> None:
    """Raise UserError if the denoiser cannot draw with this weight, or without one; warn of one it was not trained for."""
    if guidance is not None:
        check_weight(guidance)
        try:
            denoiser.check_guidable()
        except ValueError as error:
            raise UserError(f"{error}; or leave guidance out") from None
        warn_beyond(denoiser.guidance, guidance)
    elif denoiser.guidance:
        low, high = denoiser.guidance
        raise UserError(f"this model takes a guidance weight: give one of {low:g} to {high:g}")


class DrawnImages(Images):
    """Images that a denoiser draws on demand from common noise, as floats in [-1, 1].

    Args:
        count: the number of images.
        steps: sampling steps.
        seed: of the noise.
        clip: clamp the predicted x to [-1, 1] at every step.
        shape: (C, H, W) of what the denoiser draws; default its own. Latents are decoded.
        sampler: one of rddlib.diffusion.samplers.SAMPLERS.
        made: what a receipt should say of the model (`model_file.provenance`).
        guidance: the weight w, or None for no guidance.
        classes: labels to draw in turn; default all at random.

    Raises UserError for guidance or classes that the model does not support.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        count: int,
        steps: int,
        *,
        seed: int,
        clip: bool = True,
        shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
        name: str = "",
        sampler: str = "ddim",
        made: dict | None = None,
        guidance: float | None = None,
        classes: Sequence[int] = (),
    ):
        check_classes(classes, denoiser.num_classes)
        check_guidance(denoiser, guidance)
        shape = shape or denoiser.network.config.image_shape
        clip = clip and denoiser.space is None  # latents have no bounds
        self.denoiser, self.count, self.steps, self.seed, self.clip = denoiser, count, steps, seed, clip
        self._noise_shape, self.device, self._sample = shape, device, find_sampler(sampler, steps)
        self.shape = denoiser.space.image_shape if denoiser.space else shape
        self.sampler, self.guidance, self.classes = sampler, guidance, tuple(classes)
        self.name = name or f"{sampler}, {counted(steps)}"
        tensors, evaluated = denoiser.state_dict(), evaluations(sampler, steps)
        space = denoiser.space and {"space": denoiser.space.sha256, "prompts": denoiser.space.prompts}
        facts = {"prediction": denoiser.prediction, **schedule_facts(denoiser.schedule), **(space or {})}
        read_as = json.dumps(facts, sort_keys=True)
        labels = "drawn at random, all classes alike" if denoiser.num_classes else "none"
        self.provenance = {
            **GIVEN,
            "sampler": sampler,
            "steps": steps,
            "clip": clip,
            "evaluations": evaluated if guidance is None else evaluated * denoiser.evaluations,
            "guidance": "none" if guidance is None else guidance,
            "labels": f"{', '.join(map(str, classes))} in turn" if classes else labels,
            "noise_seed": seed,
            "precision": "float32",
            "weights_sha256": digest(tensors, read_as) if tensors else UNKNOWN,
            **(made or {}),
        }

    def __len__(self) -> int:
        return self.count

    @property
    def sha256(self) -> str:
        return "drawn, not stored"

    @property
    def identity(self) -> str:
        """Of the model and the sampling; UserError for a model without tensors, such as a plain function."""
        if self.provenance["weights_sha256"] == UNKNOWN:
            raise UserError(
                f"{self.name}: a model without weights cannot be told from another: name no folder to keep results"
            )
        drawn = {name: value for name, value in self.provenance.items() if name not in ("model", "checkpoint_sha256")}
        return json.dumps([drawn, len(self)], sort_keys=True)

    def labels(self, start: int, stop: int) -> Tensor | None:
        """The labels [stop - start] that images start..stop-1 are drawn with; None without classes."""
        if self.classes:
            return torch.tensor(self.classes)[torch.arange(start, stop) % len(self.classes)]
        classes = self.denoiser.num_classes
        return common_labels(classes, start, stop, self.seed) if classes else None

    def batch(self, start: int, stop: int) -> Tensor:
        began, y = time.perf_counter(), self.labels(start, stop)
        noise = common_noise(self._noise_shape, start, stop, self.seed).to(self.device)
        y = None if y is None else y.to(self.device)
        options: dict = {"y": y, "clip": self.clip, "guidance": self.guidance}
        if self.sampler == "stochastic":
            options["fresh"] = lambda k: fresh_noise(self._noise_shape, start, stop, self.seed, k).to(self.device)
        with (
            tf32_context("float32", torch.device(self.device)),
            enough_memory(self.name, "draw fewer at a time (evaluation.batch_size, or rdd evaluate --batch)"),
        ):
            images = self._sample(self.denoiser, noise, self.steps, **options)
            images = self.denoiser.space.decode(images) if self.denoiser.space else images
        if not images.isfinite().all():
            raise UserError(f"{self.name}: images hold NaN or infinity, so nothing can be scored: check the model")
        self.seconds += time.perf_counter() - began
        return images.clamp(-1, 1)


def draw_to_file(images: DrawnImages, path: Path, batch_size: int = 500, names: Sequence[str] = ()) -> Path:
    """Draw all images into an .npz in ADM's layout, and a picture of the first 64 beside it; return the picture's path.

    names: of the classes that are drawn in turn, which become the picture's columns.

    The .npz holds arr_0 [count, H, W, C] uint8 and, if the model has classes, arr_1 labels [count]. Finished batches are
    kept in a folder beside it until all are drawn, so that a stopped run resumes; an existing .npz is kept.
    """
    join()
    parts, picture, count = path.with_suffix(".parts"), path.with_suffix(".png"), len(images)
    if path.exists():
        return picture
    ranges = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    files = [parts / f"{start:09d}-{stop:09d}.npz" for start, stop in ranges]
    mine = range(rank(), len(files), world_size())
    for position in Progress(f"drawing {images.name}", len(mine), unit="batch", quiet=True):
        number = mine[position]
        if not files[number].exists():
            drawn, labels = to_uint8(images.batch(*ranges[number])).cpu(), images.labels(*ranges[number])
            columns = {} if labels is None else {"arr_1": labels.numpy()}
            write_npz(files[number], arr_0=drawn.permute(0, 2, 3, 1).numpy(), **columns)
    wait()
    if rank() == 0:
        finished = [_read_npz(file) for file in files]
        whole = {name: np.concatenate([part[name] for part in finished]) for name in finished[0]}
        write_npz(path, **whole)
        write_atomically(picture, grid_png(torch.from_numpy(whole["arr_0"][:64]).permute(0, 3, 1, 2), names))
        shutil.rmtree(parts)
    wait()
    return picture


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
