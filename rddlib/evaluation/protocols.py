"""How images become numbers: everything that moves a score and is not the images themselves, under a name."""

from dataclasses import dataclass

from torch import Tensor

from rddlib.data import to_uint8
from rddlib.utils.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """rounding: what the network sees, "uint8" levels or "float" ones; resize: how Inception's input is made from it;
    shuffled: whether the inception score's splits are drawn at random (with torch-fidelity's seed)."""

    name: str
    rounding: str
    resize: str
    shuffled: bool

    def levels(self, images: Tensor) -> Tensor:
        """Images, uint8 or floats in [-1, 1] -> levels 0..255, [N, C, H, W]: uint8, or float32 where nothing is rounded."""
        if self.rounding == "uint8":
            return images if not images.is_floating_point() else to_uint8(images)
        return (images.float() + 1) * 127.5 if images.is_floating_point() else images.float()


PROTOCOLS = {
    "torch-fidelity": Protocol("torch-fidelity", "uint8", "bilinear to 299 px as in TensorFlow 1", True),
    # As the RCFD/RDD code scores (score/both.py and ddim_eval.py there): pytorch-fid's Inception, the same weights.
    "released": Protocol("released", "float", "bilinear to 299 px, half-pixel centres", False),
}


def find_protocol(name: str) -> Protocol:
    """A protocol by name; UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}: known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
