"""Networks small enough to be trained in a test."""

import torch

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig

QUEUE = {"queue_size": 50, "draws": 16, "per_image": 2}  # of an RDD objective


def tiny_denoiser(channels=1, width=8, **options):
    """A U-Net for 8x8 images that predicts v, always with the same weights; options: of UNetConfig."""
    torch.manual_seed(0)
    return Denoiser(
        UNet(UNetConfig(8, channels, width, (1,), 1, attention=(), groups=4, **options)), CosineSchedule(), "v"
    )


def conditional_denoiser(**options):
    """One of ten classes, trained with label dropout for all it knows, whose output depends on time and class."""
    denoiser = tiny_denoiser(**{"num_classes": 10, "label_dropout": 0.1, **options})
    with torch.no_grad():
        for layer in denoiser.network.modules():
            if isinstance(layer, torch.nn.Conv2d):  # the last ones of blocks and of the network begin as zeros
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        denoiser.network.label_embedding.weight.normal_()
    return denoiser.eval().requires_grad_(False)
