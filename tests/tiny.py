"""Networks small enough to be trained in a test, folders to train them on, and what tests of every part ask."""

import csv
import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.utils.errors import UserError

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
quiet = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # in diffusers
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]
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


def refused(call, *inputs, **options):
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def same(one, other):
    """Whether two networks, or dicts of tensors, are the same to the bit."""
    one, other = (found if isinstance(found, dict) else found.state_dict() for found in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def settings(changes):
    """The command's words for changes of a profile."""
    return [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]


def without(packages):
    """The first lines of a program in which these packages are not installed."""
    return f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(packages)}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def randomised(module, std):
    """The module without the zeros that a new one begins with."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def gray_images(folder, count, step):
    """A folder of images of 8x8 pixels, number k of level k * step."""
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.full((8, 8), k * step, np.uint8)).save(folder / f"{k}.png")
    return folder


def captioned(folder, captions, form="metadata.csv", size=(4, 4)):
    """A folder of these files, image k of level k, and their captions in one of the forms."""
    folder.mkdir(parents=True)
    for k, name in enumerate(captions):
        Image.fromarray(np.full((*size, 3), k, np.uint8)).save(folder / name)
    rows = [{"file_name": name, "text": text} for name, text in captions.items()]
    if form == "metadata.jsonl":
        (folder / form).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "metadata.csv":
        with open(folder / form, "w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "text"])
            table.writeheader()
            table.writerows(rows)
    else:
        for row in rows:
            (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"])
    return folder
