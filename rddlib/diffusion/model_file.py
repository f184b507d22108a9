"""Denoisers in checkpoints: the description that rebuilds one, and its provenance for receipts."""

import dataclasses
from pathlib import Path

from rddlib.diffusion.class_transformer import ClassTransformer
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.diffusers_unet import DiffusersUNet
from rddlib.diffusion.prompted_unet import PromptedUNet
from rddlib.diffusion.schedule import schedule_facts, schedule_of
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.utils.checkpoint import load_checkpoint
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

OF_DIFFUSERS = {"diffusers": DiffusersUNet, "prompted": PromptedUNet, "transformer": ClassTransformer}


def describe(denoiser: Denoiser) -> dict:
    """What `load_denoiser` needs besides the tensors; {} for a network that is neither a UNet nor of OF_DIFFUSERS."""
    network = denoiser.network
    made_of = {name: network.facts for name, kind in OF_DIFFUSERS.items() if isinstance(network, kind)}
    if isinstance(network, UNet):
        made_of = {"unet": dataclasses.asdict(network.config)}
    if not made_of:
        return {}
    return {**made_of, "prediction": denoiser.prediction, "steps": denoiser.steps, **schedule_facts(denoiser.schedule)}


def build_described(model: dict) -> Denoiser:
    """An untrained denoiser from what `describe` returned."""
    if known := OF_DIFFUSERS.keys() & model.keys():
        (name,) = known
        network = OF_DIFFUSERS[name].of(model[name])
    else:
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in model["unet"].items()}
        network = UNet(UNetConfig(**lists))
    return Denoiser(network, schedule_of(model), model["prediction"], steps=model.get("steps", 0))


def load_denoiser(path: Path) -> tuple[Denoiser, dict]:
    """The base model, teacher or student of a checkpoint: (denoiser in eval mode without gradients, its record).

    Raises UserError if the file is missing, damaged or holds something else.
    """
    tensors, info = load_checkpoint(path)
    if not info.get("model"):
        raise UserError(
            f"{path} holds no denoiser but {info.get('kind', 'something else')}: name a base-, pd-, or student's file"
        )
    try:
        denoiser = build_described(info["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds a model unknown to this version: make it again, or update rddlib") from error
    try:
        denoiser.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} holds other tensors than its own description says: make it again") from error
    return denoiser.eval().requires_grad_(False), info


def provenance(denoiser: Denoiser, info: dict) -> dict[str, str]:
    """A receipt's entries on a trained model: size, checkpoint, EMA decay, training precision and seed.

    info: the record in its checkpoint.
    """
    facts, whence = info.get("facts", {}), ""
    if "shipped" in info:
        whence = f", as it comes with rddlib in {info['stored']}"
    elif "after_shipped" in info:
        whence = ", trained from a student that comes with rddlib"
    ema = facts.get("base", facts).get("train", {}).get("ema", "not known")
    return {
        "model": summary(denoiser) + whence,
        "checkpoint_sha256": info.get("sha256", "not known"),
        "ema": "none" if ema == 0 else str(ema),
        "training_precision": info.get("precision", "not known"),
        "training_seed": facts.get("seed", "not known"),
    }


def summary(denoiser: Denoiser) -> str:
    """A model in one line: its network, size, prediction, classes and guidance."""
    network, size = denoiser.network, sum(p.numel() for p in denoiser.parameters()) / 1e6
    kind = f"U-Net, {network.config.channels} channels" if isinstance(network, UNet) else type(network).__name__
    inner = getattr(network, "unet", getattr(network, "transformer", None))
    kind = kind if inner is None else f"{type(inner).__name__} of diffusers"
    facts = [kind, f"{size:.2f}M parameters", f"{denoiser.prediction} prediction"]
    facts += [counted(denoiser.num_classes, "class")] if denoiser.num_classes else []
    facts += [f"takes guidance {denoiser.guidance[0]:g} to {denoiser.guidance[1]:g}"] if denoiser.guidance else []
    return ", ".join(facts)
