"""Latent pipelines of diffusers in and out: of prompts, of classes or of neither, as networks in a LatentSpace."""

import copy
import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from rddlib.diffusion.class_transformer import ClassTransformer
from rddlib.diffusion.diffusers_unet import DiffusersUNet, diffusers_class, variant_of
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.prompted_unet import PromptedUNet
from rddlib.interop.released import tensor_faults
from rddlib.utils.errors import UserError
from rddlib.utils.text import one_line, say

# Pipelines by their class: the class that is saved, the network's, and the parts beside it by library and class. Those for
# image-to-image and inpainting have the same parts, so what is distilled of one serves all three.
PROMPTED = {"vae": ("diffusers", "AutoencoderKL"), "text_encoder": ("transformers", "CLIPTextModel")}
PROMPTED |= {"tokenizer": ("transformers", "CLIPTokenizer")}
KINDS = {
    "StableDiffusionPipeline": ("StableDiffusionPipeline", "UNet2DConditionModel", PROMPTED),
    "StableDiffusionImg2ImgPipeline": ("StableDiffusionPipeline", "UNet2DConditionModel", PROMPTED),
    "StableDiffusionInpaintPipeline": ("StableDiffusionPipeline", "UNet2DConditionModel", PROMPTED),
    "LDMPipeline": ("LDMPipeline", "UNet2DModel", {"vqvae": ("diffusers", ("VQModel", "AutoencoderKL"))}),
    "DiTPipeline": ("DiTPipeline", ("DiTTransformer2DModel", "Transformer2DModel"), {"vae": PROMPTED["vae"]}),
}
LatentNetwork = DiffusersUNet | PromptedUNet | ClassTransformer
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # parts that no training needs


def latent_network(name: str, source: Path | Mapping[str, object], grid: int) -> nn.Module:
    """The network of a latent pipeline, in its LatentSpace.

    name: the pipeline's class; source: its folder, or its components; grid: the number of times of its scheduler. Nothing is
    downloaded, no code in a folder is run, the network is in float32. Raises UserError for parts that are missing, damaged or
    do not belong together.
    """
    kind, network_class, wanted = KINDS[name]
    made = _part(source, "transformer" if kind == "DiTPipeline" else "unet", "diffusers", network_class)
    parts = {part: _part(source, part, *where) for part, where in wanted.items()}
    left = LEFT_OUT if isinstance(source, Path) else [part for part in LEFT_OUT if source.get(part) is not None]
    if left := [part for part in left if not isinstance(source, Path) or (source / part).is_dir()]:
        say(f"{name}: {', '.join(left)} left out, and not part of what is saved")
    if kind == "DiTPipeline":
        network, parts["id2label"] = ClassTransformer(made, grid), _id2label(source)
    elif kind == "LDMPipeline":
        network = DiffusersUNet(made, grid)
    else:
        # one that takes w does not say which it was distilled for: any up to diffusers' usual ones
        network = PromptedUNet(made, grid, guidance=(0.0, 14.0) if made.config.time_cond_proj_dim else ())
    origin = str(source.resolve()) if isinstance(source, Path) else ""
    network.space = LatentSpace(kind, parts, network.config.image_shape, origin)
    return network


def _id2label(source: Path | Mapping[str, object]) -> dict[str, str]:
    """{"0": "name, other name", ..} as a DiTPipeline's folder may say it; its components do not."""
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8")) if isinstance(source, Path) else {}
    found = index.get("id2label") or {}
    return found if isinstance(found, dict) and all(k.isdecimal() and isinstance(found[k], str) for k in found) else {}


def _part(source: Path | Mapping[str, object], part: str, library: str, names: str | tuple[str, ...]) -> object:
    """One component of a pipeline, in float32, of one of these classes."""
    names = (names,) if isinstance(names, str) else names
    if not isinstance(source, Path):
        found = source.get(part)
        if type(found).__name__ not in (*names, *(f"{name}Fast" for name in names)):
            raise UserError(f"this pipeline's {part} is a {type(found).__name__}: expected {' or '.join(names)}")
        return copy.deepcopy(found).float() if isinstance(found, nn.Module) else found
    folder, why = source / part, None
    for name in names:
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: get the whole folder of the pipeline again")
        try:
            kind = diffusers_class(name) if library == "diffusers" else _transformers_class(name)
            if not issubclass(kind, nn.Module):
                return kind.from_pretrained(folder, local_files_only=True)
            options = {"local_files_only": True, "output_loading_info": True, **variant_of(folder)}
            found, loading = kind.from_pretrained(folder, **options)
            if said := tensor_faults(sorted(loading["missing_keys"]), ()):
                raise UserError(f"{folder} holds other tensors than its configuration says: {said}")
            return found.float()
        except UserError:
            raise
        except Exception as error:  # of many kinds: a damaged file, tensors of other shapes, another class
            why = error
    raise UserError(
        f"{folder} cannot be read as {' or '.join(names)} ({one_line(str(why))}): get the folder again"
    ) from why


def _transformers_class(name: str) -> type:
    try:
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise UserError(
            "prompts need transformers, which cannot be imported here: pip install 'rddlib[text]'"
        ) from error


def save_latent(network: LatentNetwork, scheduler, folder: Path, guidance: float | None = None) -> None:
    """Save a network of ours with its space as the pipeline of diffusers that it came from.

    guidance: the fixed weight of a ClassTransformer that takes one.
    """
    space, options = network.space, {}
    if space.takes_prompts:
        options = dict.fromkeys(("safety_checker", "feature_extractor")) | {"requires_safety_checker": False}
    made = {"transformer": network.plain(guidance)} if space.kind == "DiTPipeline" else {"unet": network.unet}
    pipeline = diffusers_class(space.kind)(**space.parts, **made, scheduler=scheduler, **options)
    if names := space.parts.get("id2label"):
        pipeline.register_to_config(id2label=names)
    pipeline.save_pretrained(folder)


def latent_usage(network: LatentNetwork, name: str, steps: int) -> str:
    """Lines of Python that draw with a saved latent pipeline."""
    head = f'from diffusers import {network.space.kind}\n\npipeline = {network.space.kind}.from_pretrained("{name}")\n'
    if network.space.kind == "DiTPipeline":
        labels = list(range(min(4, network.config.num_classes)))
        options = f"class_labels={labels}, num_inference_steps={steps}, guidance_scale=1"
        return f"{head}images = pipeline({options}).images  # above 1 it would guide, by two evaluations a step"
    if not network.space.takes_prompts:
        return f"{head}images = pipeline(batch_size=4, num_inference_steps={steps}).images"
    scale = f", guidance_scale={1 + sum(network.guidance) / 2:g}" if network.guidance else ""
    return f'{head}images = pipeline("a prompt", num_inference_steps={steps}{scale}).images  # guidance_scale is 1 + w'
