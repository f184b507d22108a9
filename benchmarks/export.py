"""What an exported student gains on a CPU: its TorchScript file against sampling in Python, one step against many.

The networks are a profile's, untrained: speed does not depend on the weights.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.process import machine, seconds_of
from rddlib.diffusion.sampling import ddim_sample
from rddlib.interop.torchscript import export_torchscript, load_torchscript
from rddlib.study.graph import build_denoiser
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError

COLUMNS = (
    ("sampler", "sampler", ""),
    ("steps", "steps", "d"),
    ("batch", "batch", "d"),
    ("seconds", "seconds", ".3g"),
    ("images/s", "images_per_second", ".3g"),
    ("speed", "speed", ".2f"),
)


def bench_export(
    profile: str,
    overrides: dict[str, str],
    *,
    batches: Sequence[int] = (1, 64),
    repetitions: int = 5,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Median seconds of drawing `batches` images at a time on the CPU, in float32: the teacher of the last halvings in its
    steps, and a one-step student in Python and as TorchScript.

    Returns {"rows", "difference", ...}: rows have sampler, steps, batch, seconds, images_per_second and speed, the ratio to
    the teacher at the same batch; difference: the largest between the student's images in Python and from its file.
    Raises UserError for numbers below 1.
    """
    if repetitions < 1 or min(batches, default=0) < 1:
        raise UserError("batches and repetitions must be at least 1")
    loaded = load_profile(profile, overrides)
    torch.manual_seed(0)
    denoiser = build_denoiser(loaded).eval().requires_grad_(False)
    for parameter in denoiser.parameters():  # the last layers start at zero, and would show no difference
        parameter += 0.02 * torch.randn_like(parameter)
    steps = loaded.progressive.teacher_steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.ts"
        difference = export_torchscript(denoiser, path, 1)
        exported = load_torchscript(path)
    samplers = {
        ("teacher, Python", steps): lambda noise, y=None: ddim_sample(denoiser, noise, steps, y=y),
        ("student, Python", 1): lambda noise, y=None: ddim_sample(denoiser, noise, 1, y=y),
        ("student, TorchScript", 1): exported,
    }
    rows = []
    for batch in batches:
        inputs = [torch.randn(batch, *loaded.unet.image_shape)]
        if denoiser.num_classes:
            inputs.append(torch.arange(batch) % denoiser.num_classes)
        baseline = None
        for (name, count), sample in samplers.items():
            progress(f"{name}, {batch} at a time")
            for _ in range(3):  # TorchScript optimises at its first calls
                sample(*inputs)
            seconds = statistics.median(seconds_of(partial(sample, *inputs)) for _ in range(repetitions))
            baseline = baseline or seconds
            row = {"sampler": name, "steps": count, "batch": batch, "seconds": seconds}
            rows.append({**row, "images_per_second": batch / seconds, "speed": baseline / seconds})
    measured = {"rows": rows, "difference": difference, "repetitions": repetitions}
    return {"profile": profile, "overrides": overrides, **measured, **machine("cpu")}
