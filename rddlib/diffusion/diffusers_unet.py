"""A UNet2DModel of diffusers as the network of a Denoiser. diffusers is an extra, imported where it is used."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.unet import NO_CLASS
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

LABEL_DROPOUT = 0.1  # the usual share (Ho & Salimans 2022), for training from a network with a "no class" row


def diffusers_class(name: str) -> type:
    """The class of that name in diffusers. Raises UserError if diffusers cannot be imported."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: diffusers' own, where a part of it cannot be imported
        remedy = "pip install 'rddlib[baselines]'"
        raise UserError(f"this needs diffusers, which cannot be imported here: {remedy}") from error


def variant_of(folder: Path) -> dict[str, str]:
    """{"variant": "fp16"} and the like where weights lie in a folder as such a variant alone, else {}."""
    stems = [file.stem for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}")]
    variants = {stem.partition(".")[2].partition("-")[0] for stem in stems}
    return {"variant": min(variants)} if variants and "" not in variants else {}


@dataclass(frozen=True)
class DiffusersConfig:
    """What a Denoiser reads of a UNetConfig, for a UNet2DModel."""

    image_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int = 0
    label_dropout: float = 0.0
    guidance: tuple[float, ...] = ()


class DiffusersUNet(nn.Module):
    """A UNet2DModel with our times and labels.

    unet: a UNet2DModel; grid: the number T of times it was trained with, so that t enters as the index T t - 1, which may
    lie between two of them; null_class: its last class embedding means "no class" and is used where y is NO_CLASS; space: of a
    latent model, where it draws.
    Raises UserError for a UNet2DModel that is no denoiser of images on such a grid.
    """

    def __init__(self, unet: nn.Module, grid: int, null_class: bool = False, space: LatentSpace | None = None):
        super().__init__()
        self.unet, self.grid, self.null_class, self.space = unet, grid, null_class, space
        self.config = _config_of(unet, null_class)
        if unet.config.time_embedding_type == "learned" and unet.config.num_train_timesteps != grid:
            raise UserError(
                f"this UNet2DModel knows {unet.config.num_train_timesteps} times, its scheduler has {grid}: give "
                "it the scheduler that it was trained with"
            )

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The UNet2DModel's output, of z's shape. z: [N, C, H, W]; t: [N] in [0, 1]; y: [N] labels if it has classes.

        Raises ValueError where y is missing or not wanted.
        """
        if (y is None) != (self.config.num_classes == 0):
            raise ValueError(
                "this network is class-conditional: pass labels y" if y is None else "this network takes no labels y"
            )
        index = (t * self.grid - 1).clamp(min=0)
        if self.unet.config.time_embedding_type == "learned":
            index = index.round().long()
        labels = None if y is None else torch.where(y == NO_CLASS, self.config.num_classes, y)
        return self.unet(z, index, class_labels=labels, return_dict=False)[0]

    @property
    def facts(self) -> dict:
        """JSON-serialisable facts, from which `of` makes the network again with fresh weights."""
        return {"config": plain_config(self.unet), "grid": self.grid, "null_class": self.null_class}

    @classmethod
    def of(cls, facts: dict) -> "DiffusersUNet":
        """An untrained network from its `facts`. Raises UserError if diffusers is missing."""
        unet = diffusers_class("UNet2DModel").from_config(facts["config"])
        return cls(unet, facts["grid"], facts["null_class"])


def plain_config(network: nn.Module) -> dict:
    """The configuration from which diffusers makes a network like this one."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def sides_of(unet: nn.Module) -> tuple[int, int]:
    """(height, width) that a network of diffusers was made for. Raises UserError where it does not say them."""
    size = unet.config.sample_size
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        kind = type(unet).__name__
        raise UserError(f"this {kind} has sample_size {size}: set it to the height and width of its images")
    return sides


def _config_of(unet: nn.Module, null_class: bool) -> DiffusersConfig:
    config = unet.config
    sides, classes = sides_of(unet), config.num_class_embeds or 0
    if config.in_channels != config.out_channels:
        raise UserError(
            f"this UNet2DModel makes {counted(config.out_channels, 'channel')} of {config.in_channels}: only networks that "
            "predict epsilon, sample or v, without a variance, can be taken"
        )
    if config.time_embedding_type not in ("positional", "learned"):
        raise UserError(
            f"this UNet2DModel takes {config.time_embedding_type} times, as variance-exploding models do: only "
            "variance-preserving ones (DDPM, DDIM) can be taken"
        )
    if config.class_embed_type is not None:
        raise UserError(
            f"this UNet2DModel's classes are of the type {config.class_embed_type}: only labels can be taken"
        )
    if null_class and classes < 2:
        raise UserError("this UNet2DModel has no class embedding to stand for no class: leave null_class out")
    shape = (config.in_channels, *sides)
    return DiffusersConfig(shape, classes - null_class, LABEL_DROPOUT if null_class else 0.0)
