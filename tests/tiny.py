"""Networks small enough to be trained in a test, and folders to train them on."""

import csv
import json

import numpy as np
import torch
from PIL import Image

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
