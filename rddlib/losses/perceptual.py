"""Perceptual distances: LPIPS (VGG), and its form on the stages of any extractor.

Only `perceptual_loss` with the network of `load_lpips` may be called LPIPS. `stage_perceptual_loss` is a different
quantity on a different scale, and is reported under its own name. `lpips` is an extra, imported where it is used.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.losses.checks import at_least_float32, check_pair, unit
from rddlib.utils.download import fetch
from rddlib.utils.errors import UserError

VGG_FILE = "vgg16-397923af.pth"  # torchvision's name; the digits are the start of its SHA-256
VGG_ADDRESS = f"https://download.pytorch.org/models/{VGG_FILE}"


def perceptual_loss(x_student: Tensor, x_teacher: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """LPIPS distance averaged over the batch (Eq. 1, Zhang et al. 2018): a scalar, at least 0.

    x_student, x_teacher: images [N, 3, H, W] (or [N, 1, H, W], repeated to three channels) in [-1, 1]. Images under
    256 px are resized bilinearly to 224 first, as the consistency-model code does. network: `load_lpips()`, or any
    callable of two image batches. Raises TypeError for integer tensors, ValueError for shapes that differ.
    """
    check_pair("x_student", x_student, "x_teacher", x_teacher, "[N, 3, H, W]")
    if x_student.shape[1] not in (1, 3):
        raise ValueError(f"x_student has shape {list(x_student.shape)}, expected 3 channels (or 1, for grey images)")
    return at_least_float32(network(_for_vgg(x_student), _for_vgg(x_teacher.detach()))).mean()


def stage_perceptual_loss(stages_student: Sequence[Tensor], stages_teacher: Sequence[Tensor]) -> Tensor:
    """LPIPS without its learned weights, on any extractor (after Eq. 1, Zhang et al. 2018, with w_l = 1): not LPIPS.

    stages_*: the same number of feature maps [N, C_l, H_l, W_l], early to late. At each stage the pixels are normalised
    over channels and their squared distance is averaged over space and batch. Returns the mean over stages, in [0, 4].
    Raises TypeError for integer tensors, ValueError for shapes or numbers of stages that differ and for none at all.
    """
    if len(stages_student) != len(stages_teacher) or not stages_student:
        raise ValueError(
            f"stages_student has {len(stages_student)} and stages_teacher {len(stages_teacher)} maps: "
            "expected the same number, at least 1"
        )
    distances = []
    for stage, (map_student, map_teacher) in enumerate(zip(stages_student, stages_teacher, strict=True)):
        names = f"stages_student[{stage}]", f"stages_teacher[{stage}]"
        check_pair(names[0], map_student, names[1], map_teacher, "[N, C, H, W]")
        difference = unit(map_student, dim=1) - unit(map_teacher.detach(), dim=1)
        distances.append(difference.square().sum(dim=1).mean())
    return torch.stack(distances).mean()


def load_lpips(download: bool = False, timeout: float = 30.0) -> nn.Module:
    """The LPIPS network on VGG16, frozen, in evaluation mode, on the CPU.

    VGG16's ImageNet weights are read from torch's cache (`torch.hub.get_dir()/checkpoints`). Nothing is fetched unless
    download=True; then 528 MB, giving up after `timeout` seconds without an answer. Raises UserError, at once, where
    the weights or the `lpips` package are missing.
    """
    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the lpips package: pip install 'rddlib[baselines]'") from None
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not weights.is_file():
        if not download:
            raise UserError(f"LPIPS needs VGG16's weights: put {VGG_ADDRESS} at {weights}, or allow the download")
        fetch(VGG_ADDRESS, weights, weights.stem.rsplit("-")[-1], timeout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in its old way
        network = lpips.LPIPS(net="vgg", verbose=False)
    return network.requires_grad_(False).eval()


def _for_vgg(images: Tensor) -> Tensor:
    if min(images.shape[2:]) < 256:
        images = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False)
    return images.expand(-1, 3, -1, -1)
