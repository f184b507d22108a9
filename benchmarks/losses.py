"""What the relational losses cost: extra peak memory and time of each form, the fused one on CUDA; for `rdd bench losses`.

Every figure comes from a fresh interpreter that runs one form at one size and nothing else. Memory is that of the first
forward and backward pass, above what the process held with the maps in place (peak resident memory on a CPU, allocated
memory on CUDA); time is the median of the later passes. With bf16 maps the reference still multiplies in float32.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.process import MIB, in_child, measure_products, seconds_of
from rddlib.losses import is_p2p_loss, m_p2p_loss
from rddlib.training.hardware import free_memory, peak_memory, reset_peak

IMPLS = {"cpu": ("reference", "chunked"), "cuda": ("reference", "chunked", "fused")}
LOSSES = ("is_p2p", "m_p2p")
DTYPES = ("float32", "bfloat16", "float64")
EMBEDDINGS = 2048  # V, rows of the queue that M_P2P compares with


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


SIZES = (
    Size("cifar10", N=128, A=16),
    Size("imagenet64", N=256, A=64),
    *(Size("sweep", N=n, A=16) for n in (32, 64, 128, 256, 512)),
)


def columns(rows: Sequence[dict]) -> list[tuple[str, str, str]]:
    """The columns of the table of these rows: that of the fused form where it was measured."""
    fused = any("fused_s" in row for row in rows)
    return [
        *(("size", "name", ""), ("N", "N", "d"), ("A", "A", "d"), ("C", "C", "d"), ("dtype", "dtype", "")),
        *(("ref MiB", "reference_mib", ".0f"), ("chunked MiB", "chunked_mib", ".0f"), ("ratio", "memory_ratio", ".3f")),
        *[("fused MiB", "fused_mib", ".0f")] * fused,
        *(("ref s", "reference_s", ".3f"), ("chunked s", "chunked_s", ".3f"), ("ratio", "time_ratio", ".2f")),
        *[("fused s", "fused_s", ".4f")] * fused,
        ("of peak", "of_peak", ".0%"),
        ("note", "note", ""),
    ]


def bench_losses(
    sizes: Iterable[Size] = SIZES,
    *,
    loss: str = "is_p2p",
    dtypes: Iterable[str] = DTYPES[:2],
    repetitions: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    chunk: int | None = None,
    timeout: float = 600.0,
    progress: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time and extra peak memory of a relational loss, forward and backward, in its forms: one row per size and dtype.

    A row holds the size, dtype, device, threads, torch's version, `reference_mib`, `chunked_mib`, `reference_s`,
    `chunked_s`, on CUDA `fused_mib` and `fused_s`, `memory_ratio` and `time_ratio` (chunked over reference; None where
    either is missing), `flops` of the reference's matrix products, `of_peak`, these a second in the fastest form over what the
    fastest large matrix product of that dtype makes here, and `note`, which says why a figure is missing: a reference that
    would not fit into the free memory is not started.

    Args:
        loss: of LOSSES.
        dtypes: of DTYPES.
        threads: None for torch's own choice.
        chunk: images per block, None for the default.
        timeout: seconds for one process.
        progress: called with each finished row.

    Raises ValueError for an unknown loss or dtype and for repetitions < 1.
    """
    dtypes = list(dtypes)
    for name, value, known in (("loss", loss, LOSSES), *(("dtype", dtype, DTYPES) for dtype in dtypes)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}, expected at least 1")
    how = {"device": device, "threads": threads or torch.get_num_threads(), "chunk": chunk, "repetitions": repetitions}
    rows, limits = [], {"threads": how["threads"], "timeout": timeout}
    peaks = in_child(measure_products, how | {"size": 8192 if device == "cuda" else 1024}, **limits).get("peaks", {})
    for size, dtype in itertools.product(sizes, dtypes):
        job = {**asdict(size), "loss": loss, "dtype": dtype, **how}
        found = {impl: in_child(measure, job | {"impl": impl}, **limits) for impl in IMPLS[device]}
        rows.append(_row(job, found, peaks.get(dtype)))
        progress(rows[-1])
    return rows


def _row(job: dict, found: dict[str, dict], peak: float | None) -> dict:
    row = {**job, "torch": torch.__version__, "flops": flops_of(job)}
    fastest = min((result["s"] for result in found.values() if result.get("s")), default=None)
    row["of_peak"] = row["flops"] / fastest / peak if fastest and peak else None
    for unit, ratio in (("mib", "memory_ratio"), ("s", "time_ratio")):
        figures = {f"{impl}_{unit}": result.get(unit) for impl, result in found.items()}
        reference, chunked = figures[f"reference_{unit}"], figures[f"chunked_{unit}"]
        row |= figures | {ratio: chunked / reference if chunked is not None and reference else None}
    notes = [f"{impl}: {result['note']}" for impl, result in found.items() if "note" in result]
    return row | {"note": "; ".join(notes)}


def measure(job: dict) -> dict:
    """What the process of one form does: {"mib", "s"}, or {"note"} with the reason why it was not started."""
    torch.set_num_threads(job["threads"])
    if short := shortage(job, free_memory(job["device"])):
        return {"note": short}
    small = job | {"N": 2, "C": 8}
    _pass(small, *_inputs(small))  # loads libraries and starts threads, which are not the loss's memory
    inputs = _inputs(job)
    before = reset_peak(job["device"])
    _pass(job, *inputs)
    mib = (peak_memory(job["device"]) - before) / MIB
    seconds = [seconds_of(lambda: _pass(job, *inputs), job["device"]) for _ in range(job["repetitions"])]
    return {"mib": mib, "s": statistics.median(seconds)}


def flops_of(job: dict) -> int:
    """FLOPs of the matrix products of a forward and backward pass of the reference: counted on one image, of which IS_P2P
    relates all pairs."""
    one = job | {"impl": "reference", "N": 1, "device": "cpu", "dtype": "float32"}
    with FlopCounterMode(display=False) as counter:
        _pass(one, *_inputs(one))
    return counter.get_total_flops() * job["N"] ** (2 if job["loss"] == "is_p2p" else 1)


def shortage(job: dict, free: int | None) -> str:
    """Why the reference form is not worth starting with so many bytes free, or "": it holds some eight matrices of
    relations at once."""
    columns = job["N"] * job["A"] if job["loss"] == "is_p2p" else EMBEDDINGS
    needed = 8 * job["N"] * job["A"] * columns * (8 if job["dtype"] == "float64" else 4)
    if job["impl"] != "reference" or free is None or needed <= free:
        return ""
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def _inputs(job: dict) -> tuple[Tensor, Tensor, Tensor]:
    """The student's and the teacher's map [N, C, side, side], and embeddings [EMBEDDINGS, C]."""
    generator = torch.Generator().manual_seed(0)
    side = round(job["A"] ** 0.5)
    kind = {"device": job["device"], "dtype": getattr(torch, job["dtype"])}
    map_teacher = torch.randn(job["N"], job["C"], side, side, generator=generator)
    map_student = map_teacher + 0.3 * torch.randn(map_teacher.shape, generator=generator)
    embeddings = torch.nn.functional.normalize(torch.randn(EMBEDDINGS, job["C"], generator=generator), dim=1)
    return map_student.to(**kind).requires_grad_(), map_teacher.to(**kind), embeddings.to(**kind)


def _pass(job: dict, map_student: Tensor, map_teacher: Tensor, embeddings: Tensor) -> None:
    """One forward and backward pass."""
    map_student.grad, form = None, {"impl": job["impl"], "chunk": job["chunk"]}
    if job["loss"] == "is_p2p":
        is_p2p_loss(map_student, map_teacher, **form).backward()
    else:
        m_p2p_loss(map_student, map_teacher, embeddings, **form).backward()
