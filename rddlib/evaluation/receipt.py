"""How scores are measured and recorded: protocols, receipts, and result files that hold both."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import torch_fidelity
from torch import Tensor

import rddlib
from rddlib.data import to_uint8
from rddlib.evaluation.images import Images
from rddlib.evaluation.networks import Network
from rddlib.utils.checkpoint import read_json, write_atomically
from rddlib.utils.distributed import rank, wait, world_size
from rddlib.utils.errors import check_known
from rddlib.utils.installation import git_commit, hardware

# Scores that differ in one of these fields are not comparable.
PROTOCOL_FIELDS = (
    "metric",
    "protocol",
    "network_sha256",
    "resize",
    "rounding",
    "shuffled",
    "reference_sha256",
    "samples",
)

MEASURED_AGAIN = "delete it, the next run measures it again"  # a file of measurements that is damaged


@dataclass(frozen=True)
class Protocol:
    """How images become a network's input: everything besides the images and the network that changes a score.

    rounding: the network sees "uint8" levels or "float" ones; resize: to Inception's input size; shuffled: whether the
    inception score's splits are drawn at random (with torch-fidelity's seed).
    """

    name: str
    rounding: str
    resize: str
    shuffled: bool

    def levels(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W], uint8 or floats in [-1, 1] -> levels 0..255: uint8, or float32 if nothing is rounded."""
        if self.rounding == "uint8":
            return to_uint8(images) if images.is_floating_point() else images
        return (images.float() + 1) * 127.5 if images.is_floating_point() else images.float()


PROTOCOLS = {
    "torch-fidelity": Protocol("torch-fidelity", "uint8", "bilinear to 299 px as in TensorFlow 1", True),
    # As the RCFD/RDD code scores (score/both.py and ddim_eval.py there): pytorch-fid's Inception, the same weights.
    "released": Protocol("released", "float", "bilinear to 299 px, half-pixel centres", False),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name; UserError if there is none."""
    check_known("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def made_here(device: torch.device | str, seconds: float) -> dict:
    """What every receipt says of code, machine, time taken and date."""
    return {
        "library": f"rddlib {rddlib.__version__}",
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "hardware": hardware(device),
        "seconds": round(seconds, 2),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@dataclass(frozen=True)
class Receipt:
    """How a score was measured: protocol, reference, images, the model that drew them, and the machine."""

    metric: str
    protocol: str
    tool: str
    network: str
    network_sha256: str
    resize: str
    rounding: str
    shuffled: bool
    settings: str
    kid_subset: int
    reference: str
    reference_sha256: str
    samples: int
    images: str
    images_sha256: str
    sampler: str
    steps: int
    evaluations: int
    guidance: float | str
    clip: bool
    labels: str
    noise_seed: int | str
    precision: str
    model: str
    weights_sha256: str
    checkpoint_sha256: str
    ema: str
    training_precision: str
    training_seed: int | str
    library: str
    git_commit: str
    torch: str
    network_precision: str
    processes: int
    hardware: str
    seconds: float
    written: str

    @classmethod
    def make(
        cls,
        network: Network,
        protocol: Protocol,
        reference: tuple[str, str],
        images: Images,
        settings: str,
        kid_subset: int,
        seconds: float,
        device: torch.device | str,
    ) -> "Receipt":
        """Fill in a receipt; reference: (name, sha256); settings: of the metrics; kid_subset: 0 without KID."""
        return cls(
            metric=network.metric(len(images)),
            protocol=protocol.name,
            tool=f"torch-fidelity {torch_fidelity.__version__}",
            network=network.name,
            network_sha256=network.sha256,
            resize=protocol.resize if network.resizes else "none",
            rounding=protocol.rounding,
            shuffled=protocol.shuffled,
            settings=settings,
            kid_subset=kid_subset,
            reference=reference[0],
            reference_sha256=reference[1],
            samples=len(images),
            images=images.name,
            images_sha256=images.sha256,
            **images.provenance,
            network_precision=str(next(network.module.parameters()).dtype).removeprefix("torch."),
            processes=world_size(),
            **made_here(device, seconds),
        )


@dataclass(frozen=True)
class Result:
    """values: the scores by name: fid, is, is_std, kid, kid_std, precision, recall, pfd; receipt: how they were measured;
    sampling_seconds: spent on drawing, summed over processes."""

    values: dict[str, float]
    receipt: Receipt
    sampling_seconds: float = 0.0


def differing_protocols(receipts: Sequence[dict]) -> list[str]:
    """The fields in which receipts, as dicts, are not comparable: PROTOCOL_FIELDS, and kid_subset among those with KID."""
    differing = [field for field in PROTOCOL_FIELDS if len({str(receipt.get(field)) for receipt in receipts}) > 1]
    subsets = {receipt["kid_subset"] for receipt in receipts if receipt.get("kid_subset")}
    return differing + ["kid_subset"] * (len(subsets) > 1)


def row_of(result: Result, **columns) -> dict:
    """The {"row", "receipt"} of a result file; the row holds columns (method, steps, seed), scores, samples, seconds."""
    row = {**columns, **result.values, "samples": result.receipt.samples, "seconds": round(result.sampling_seconds, 3)}
    return {"row": row, "receipt": asdict(result.receipt)}


def write_record(path: Path, record: dict) -> None:
    """Write a result file; with several processes, the first writes it for all."""
    if rank() == 0:
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    wait()


def read_record(path: Path) -> dict:
    """Read the {"row", "receipt"} of a result file; UserError if it is damaged."""
    both = ("row", "receipt")
    return read_json(path, lambda found: {name: dict(found[name]) for name in both}, MEASURED_AGAIN)


def summarise(table: pd.DataFrame, scores: Sequence[str] = ("fid", "pfd", "is")) -> pd.DataFrame:
    """Mean, standard deviation ("spread") and minimum of the scores over seeds, by method and steps."""
    grouped = table.groupby(["method", "steps"], sort=False)[list(scores)]
    summary = grouped.agg(["mean", "std", "min"])
    summary.columns = [f"{score}_{'spread' if how == 'std' else how}" for score, how in summary.columns]
    summary.insert(0, "seeds", grouped.size())
    return summary.reset_index()
