"""What must be known before two numbers are compared, and what made each of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch_fidelity

import rddlib
from rddlib.evaluation.images import Images
from rddlib.evaluation.networks import Network
from rddlib.evaluation.protocols import Protocol
from rddlib.utils.installation import git_commit, hardware

# Results that differ in one of these measure different things.
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


@dataclass(frozen=True)
class Receipt:
    """How a number was measured: the protocol, the reference, the images, what drew them, and where it ran."""

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
        processes: int,
        device: torch.device | str,
    ) -> "Receipt":
        """reference: (what, sha256); settings: of the metrics asked for; kid_subset: 0 without kid. What remains follows
        from this machine."""
        return cls(
            metric=network.metric(len(images)),
            protocol=protocol.name,
            tool=f"torch-fidelity {torch_fidelity.__version__}",
            network=network.name,
            network_sha256=network.sha256,
            resize=network.resize(protocol),
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
            library=f"rddlib {rddlib.__version__}",
            git_commit=git_commit(),
            torch=torch.__version__,
            network_precision=str(next(network.module.parameters()).dtype).removeprefix("torch."),
            processes=processes,
            hardware=hardware(device),
            seconds=round(seconds, 2),
            written=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def differing_protocols(receipts: Sequence[dict]) -> list[str]:
    """The fields of PROTOCOL_FIELDS (and kid's subsets, where both have kid) in which receipts, as dicts, differ: none, and
    their numbers can be compared."""
    differing = [field for field in PROTOCOL_FIELDS if len({str(receipt.get(field)) for receipt in receipts}) > 1]
    subsets = {receipt["kid_subset"] for receipt in receipts if receipt.get("kid_subset")}
    return differing + ["kid_subset"] * (len(subsets) > 1)
