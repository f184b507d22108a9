"""What an exported student gains on a CPU: its TorchScript file against sampling in Python, one step against many.

The networks are a profile's, untrained: speed does not depend on the weights.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import rddlib
from rddlib.diffusion.sampling import ddim_sample
from rddlib.interop.torchscript import export_torchscript, load_torchscript
from rddlib.study.assembly import build_denoiser
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError
from rddlib.utils.installation import git_commit, hardware
from rddlib.utils.text import aligned, number


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
    classes, steps = denoiser.num_classes, loaded.progressive.teacher_steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.ts"
        difference = export_torchscript(denoiser, path, 1)
        exported = load_torchscript(path)
        samplers = {
            ("teacher, Python", steps): lambda noise, *y: ddim_sample(denoiser, noise, steps, y=y[0] if y else None),
            ("student, Python", 1): lambda noise, *y: ddim_sample(denoiser, noise, 1, y=y[0] if y else None),
            ("student, TorchScript", 1): lambda noise, *y: exported(noise, *y),
        }
        rows = []
        for batch in batches:
            noise = torch.randn(batch, loaded.unet.image_channels, loaded.unet.image_size, loaded.unet.image_size)
            labels = (torch.arange(batch) % classes,) if classes else ()
            for (name, count), sample in samplers.items():
                progress(f"{name}, {batch} at a time")
                seconds = _median(lambda sample=sample: sample(noise, *labels), repetitions)  # noqa: B023 (called here)
                rows.append(
                    {
                        "sampler": name,
                        "steps": count,
                        "batch": batch,
                        "seconds": seconds,
                        "images_per_second": batch / seconds,
                    }
                )
    for row in rows:
        row["speed"] = next(r for r in rows if r["batch"] == row["batch"])["seconds"] / row["seconds"]
    return {
        "profile": profile,
        "overrides": overrides,
        "rows": rows,
        "difference": difference,
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "library": f"rddlib {rddlib.__version__}",
        "git_commit": git_commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _median(call: Callable[[], object], repetitions: int) -> float:
    for _ in range(3):  # TorchScript optimises at its first calls
        call()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def format_export(report: dict) -> str:
    """The report of `bench_export` as a table in plain text."""
    heads = ("sampler", "steps", "batch", "seconds", "images/s", "speed")
    body = [
        (
            row["sampler"],
            str(row["steps"]),
            str(row["batch"]),
            number(row["seconds"], ".3g"),
            number(row["images_per_second"], ".3g"),
            number(row["speed"], ".2f"),
        )
        for row in report["rows"]
    ]
    return aligned(heads, body, words=(0,))
