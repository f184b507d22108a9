"""What must be known before two numbers are compared, and what made each of them."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch_fidelity

import rddlib
from rddlib.errors import UserError
from rddlib.evaluation.images import Images
from rddlib.evaluation.networks import Network
from rddlib.evaluation.protocols import Protocol
from rddlib.installation import git_commit, hardware

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
    reference: str
    reference_sha256: str
    samples: int
    images: str
    images_sha256: str
    model: str
    sampler: str
    steps: int
    clip: bool
    ema: str
    noise_seed: int | str
    checkpoint_sha256: str
    training_precision: str
    library: str
    git_commit: str
    torch: str
    precision: str
    processes: int
    hardware: str
    seconds: float
    written: str

    @classmethod
    def make(
        cls, network: Network, protocol: Protocol, reference: tuple[str, str], images: Images, settings: str,
        seconds: float, processes: int,
    ) -> "Receipt":  # fmt: skip
        """reference: (what, sha256); settings: of the metrics asked for. What remains follows from this machine."""
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
            reference=reference[0],
            reference_sha256=reference[1],
            samples=len(images),
            images=images.name,
            images_sha256=images.sha256,
            **images.provenance,
            library=f"rddlib {rddlib.__version__}",
            git_commit=git_commit(),
            torch=torch.__version__,
            precision=str(next(network.module.parameters()).dtype).removeprefix("torch."),
            processes=processes,
            hardware=hardware(),
            seconds=round(seconds, 2),
            written=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def differing_protocols(receipts: Sequence[dict]) -> list[str]:
    """The fields of PROTOCOL_FIELDS in which receipts (as dicts) differ: none, and their numbers can be compared."""
    return [field for field in PROTOCOL_FIELDS if len({str(receipt.get(field)) for receipt in receipts}) > 1]


def check_comparable(receipts: Sequence[dict], remedy: str) -> None:
    """UserError, naming the fields, where numbers measured in different ways would stand side by side."""
    if differing := differing_protocols(receipts):
        raise UserError(f"results were measured differently (they differ in {', '.join(differing)}): {remedy}")
