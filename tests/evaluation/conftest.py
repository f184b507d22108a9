"""Digits, noisy digits and small denoisers that the tests of scores share."""

import pytest
import torch
from tiny import randomised, tiny_denoiser

from rddlib.data import load_dataset


@pytest.fixture(scope="session")
def data():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def few():
    return load_dataset("digits", "test")  # 297 images: a reference whose features are soon computed


@pytest.fixture(scope="session")
def noisy(data):
    images, g = data.images[:700], torch.Generator().manual_seed(0)
    return (images + torch.randint(-40, 41, images.shape, generator=g)).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def unet():
    """Make a small denoiser of 8x8 images: unet(classes=0, label_dropout=0.0)."""

    def make(classes=0, label_dropout=0.0):
        denoiser = tiny_denoiser(num_classes=classes, label_dropout=label_dropout)
        randomised(denoiser.network.tail[-1], 0.3)
        return denoiser.eval().requires_grad_(False)

    return make
