"""What the relational losses cost: extra peak memory and time of reference and chunked form; for `rdd bench losses`.

Every figure comes from a fresh interpreter that runs one form at one size and nothing else. Memory is that of the first
forward and backward pass, above what the process held with the maps in place (peak resident memory on a CPU, allocated
memory on CUDA); time is the median of the later passes. With bf16 maps the reference still multiplies in float32.
"""

import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rddlib.bench.process import MIB, in_child
from rddlib.losses import is_p2p_loss, m_p2p_loss
from rddlib.training.hardware import free_memory, peak_memory, reset_peak
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.text import aligned, number

IMPLS = ("reference", "chunked")


@dataclass(frozen=True)
class Size:
    """One batch of feature maps: N images of A = side^2 pixels with C channels."""

    name: str
    N: int
    A: int
    C: int = 1920

    def __post_init__(self):
        if min(self.N, self.A, self.C) < 1 or round(self.A**0.5) ** 2 != self.A:
            raise ValueError(f"{self} is no size: expected N, C of at least 1 and A a square number")


CIFAR = Size("cifar10", N=128, A=16)
IMAGENET = Size("imagenet64", N=256, A=64)
SWEEP = tuple(Size("sweep", N=n, A=16) for n in (32, 64, 128, 256, 512))
SIZES = (CIFAR, IMAGENET, *SWEEP)


def bench_losses(
    sizes: Iterable[Size] = SIZES,
    *,
    loss: str = "is_p2p",
    dtypes: Iterable[str] = ("float32", "bfloat16"),
    repetitions: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    chunk: int | None = None,
    timeout: float = 600.0,
    progress=None,
) -> list[dict]:
    """Time and extra peak memory of `loss` ("is_p2p" or "m_p2p"), forward and backward, both forms: one row per size
    and dtype.

    A row holds the size, dtype, device, threads, torch's version, `reference_mib`, `chunked_mib`, `reference_s`,
    `chunked_s`, `memory_ratio` and `time_ratio` (chunked over reference; None where either is missing) and `note`,
    which says why a figure is missing: a reference that would not fit into the free memory is not started.
    threads: None for torch's own choice. chunk: images per block, None for the default. timeout: seconds for one
    process. progress: called with each finished row. Raises ValueError for an unknown loss or dtype and for
    repetitions < 1.
    """
    if loss not in ("is_p2p", "m_p2p"):
        raise ValueError(f"loss is {loss!r}, expected 'is_p2p' or 'm_p2p'")
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}, expected at least 1")
    threads = threads or torch.get_num_threads()
    rows = []
    for size in sizes:
        for dtype in dtypes:
            if dtype not in ("float32", "bfloat16", "float64"):
                raise ValueError(f"dtype is {dtype!r}, expected 'float32', 'bfloat16' or 'float64'")
            job = {"loss": loss, "dtype": dtype, "device": device, "threads": threads, "chunk": chunk}
            row = {**asdict(size), **job, "torch": torch.__version__, "repetitions": repetitions}
            notes = []
            for impl in IMPLS:
                result = _run({**asdict(size), **job, "impl": impl, "repetitions": repetitions}, timeout)
                row[f"{impl}_mib"], row[f"{impl}_s"] = result.get("mib"), result.get("s")
                if "note" in result:
                    notes.append(f"{impl}: {result['note']}")
            row["memory_ratio"] = _ratio(row["chunked_mib"], row["reference_mib"])
            row["time_ratio"] = _ratio(row["chunked_s"], row["reference_s"])
            row["note"] = "; ".join(notes)
            rows.append(row)
            if progress:
                progress(row)
    return rows


def format_table(rows: list[dict]) -> str:
    """The rows as a table in plain text, ratios as chunked over reference."""
    heads = ("size", "N", "A", "C", "dtype", "ref MiB", "chunked MiB", "ratio", "ref s", "chunked s", "ratio", "note")
    body = [
        (
            row["name"],
            *(str(row[key]) for key in "NAC"),
            row["dtype"],
            number(row["reference_mib"], ".0f"),
            number(row["chunked_mib"], ".0f"),
            number(row["memory_ratio"], ".3f"),
            number(row["reference_s"], ".3f"),
            number(row["chunked_s"], ".3f"),
            number(row["time_ratio"], ".2f"),
            row["note"],
        )
        for row in rows
    ]
    return aligned(heads, body, words=(0, 4, 11))


def write_json(rows: list[dict], path: str | os.PathLike) -> None:
    """Write the rows as JSON, whole or not at all; missing parent folders are made."""
    write_atomically(Path(path), json.dumps(rows, indent=1) + "\n")


def _run(job: dict, timeout: float) -> dict:
    """One measurement in its own process: {"mib", "s"}, or {"note"} with the reason why there is none."""
    return in_child(measure, job, threads=job["threads"], timeout=timeout)


def measure(job: dict) -> dict:
    """What the fresh interpreter does."""
    torch.set_num_threads(job["threads"])
    short = _shortage(job)
    if short:
        return {"note": short}
    small = job | {"N": 2, "C": 8}
    _pass(small, *_inputs(small))  # loads libraries and starts threads, which are not the loss's memory
    inputs = _inputs(job)
    before = reset_peak(job["device"])
    _pass(job, *inputs)
    mib = (peak_memory(job["device"]) - before) / MIB
    seconds = [_pass(job, *inputs) for _ in range(job["repetitions"])]
    return {"mib": mib, "s": statistics.median(seconds)}


def _inputs(job: dict):
    generator = torch.Generator().manual_seed(0)
    side = round(job["A"] ** 0.5)
    kind = {"device": job["device"], "dtype": getattr(torch, job["dtype"])}
    map_teacher = torch.randn(job["N"], job["C"], side, side, generator=generator)
    map_student = map_teacher + 0.3 * torch.randn(map_teacher.shape, generator=generator)
    embeddings = torch.nn.functional.normalize(torch.randn(2048, job["C"], generator=generator), dim=1)
    return map_student.to(**kind).requires_grad_(), map_teacher.to(**kind), embeddings.to(**kind)


def _pass(job: dict, map_student, map_teacher, embeddings) -> float:
    """Seconds of one forward and backward pass."""
    map_student.grad = None
    start = time.perf_counter()
    if job["loss"] == "is_p2p":
        loss = is_p2p_loss(map_student, map_teacher, impl=job["impl"], chunk=job["chunk"])
    else:
        loss = m_p2p_loss(map_student, map_teacher, embeddings, impl=job["impl"], chunk=job["chunk"])
    loss.backward()
    if job["device"].startswith("cuda"):
        torch.cuda.synchronize(job["device"])
    return time.perf_counter() - start


def _shortage(job: dict) -> str | None:
    """Why the reference form is not worth starting here, or None: it holds some eight matrices of relations at once."""
    columns = job["N"] * job["A"] if job["loss"] == "is_p2p" else 2048
    needed = 8 * job["N"] * job["A"] * columns * (8 if job["dtype"] == "float64" else 4)
    free = free_memory(job["device"])
    if job["impl"] == "reference" and free is not None and needed > free:
        return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    return None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
