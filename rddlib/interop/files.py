"""Load a model from any source: our checkpoints, published files, and folders of diffusers pipelines."""

import json
from collections.abc import Callable
from pathlib import Path

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.model_file import describe, load_denoiser
from rddlib.distillation.extractor import FeatureExtractor, extractor_of
from rddlib.distillation.label_free import TEACHER, TORCHVISION
from rddlib.interop.hub import hub_folder, is_hub_name, licence
from rddlib.interop.pipelines import check_described, dry_run, from_diffusers, no_pipeline
from rddlib.interop.released import load_released_classifier, load_released_unet
from rddlib.utils.checkpoint import DamagedFile, digest, load_checkpoint
from rddlib.utils.errors import UserError

RELEASED, DIFFUSERS = "released with RCFD and RDD", "diffusers"  # who made a model


def load_model(path: str | Path, image_size: int | None = None, *, download: bool = False) -> tuple[Denoiser, dict]:
    """(denoiser in eval mode, its record) from any file or folder.

    path: a checkpoint of ours (.safetensors), a diffusers folder or its name on the hub ("owner/name", "owner/name@revision";
    download: fetch it where the hub's cache lacks it), or else a file published with RCFD or RDD; image_size: of
    `load_released_unet`. The record of a model from elsewhere is {"kind": "pretrained", "model", "source", "sha256"}.
    Raises UserError as `load_denoiser`, `from_diffusers`, `hub_folder` and `load_released_unet` do.
    """
    name, path = str(path), Path(path).expanduser()
    if is_hub_name(name):
        folder = hub_folder(name, download, lambda folder: check_described(folder) or no_pipeline(folder))
        denoiser = from_diffusers(folder)
        info = given_info(denoiser, Path(name), DIFFUSERS)
        info["source"] |= {"name": name, "revision": folder.name, "licence": licence(folder)}
        return denoiser, info
    if not path.exists():
        raise UserError(f"no model at {path}: correct the path (a published pipeline must be downloaded first)")
    if path.suffix == ".safetensors":
        denoiser, info = _whole(path, load_denoiser)
        return denoiser.within(_space_of(path, info)) if "space" in info else denoiser, info
    if path.is_dir():
        denoiser = from_diffusers(path)
        return denoiser, given_info(denoiser, path.resolve(), DIFFUSERS)
    denoiser = load_released_unet(path, image_size)
    dry_run(denoiser)
    return denoiser, given_info(denoiser, path.resolve(), RELEASED)


def _space_of(path: Path, info: dict) -> LatentSpace:
    """Where a latent checkpoint's network draws: that of the pipeline which it was distilled from."""
    origin, sha256 = info["space"].get("origin", ""), info["space"].get("sha256")
    if not origin or not Path(origin).is_dir():
        raise UserError(
            f"{path} draws in the latent space of the pipeline {origin or '(none recorded)'}, which is not there"
        )
    space = from_diffusers(origin).space
    if space is None or space.sha256 != sha256:
        raise UserError(
            f"{origin} is not the pipeline that {path} was distilled from: its autoencoder or text encoder differs"
        )
    return space


def _whole(path: Path, load: Callable):
    """load(path) for a file that may not be ours, so that the next run would not make it again."""
    if (path.parent / "config.json").exists():
        raise UserError(f"{path} is a part of a diffusers model: name its pipeline's folder")
    try:
        return load(path)
    except DamagedFile as error:
        raise UserError(f"{error.fault}: get or make it again") from error


def given_info(denoiser: Denoiser, path: Path, made_by: str) -> dict:
    """The record of a model from elsewhere. Its sha256 covers the tensors and the description."""
    model, space = describe(denoiser), denoiser.space
    names = {"class_names": space.class_names} if space and space.class_names else {}
    return {
        "kind": "pretrained",
        "model": model,
        "source": {"name": Path(path).name, "made_by": made_by},
        "sha256": digest(denoiser.state_dict(), json.dumps(model, sort_keys=True)),
        **({"space": space.facts} if space else {}),
        **names,
    }


def load_classifier(path: str | Path, map_at: str = "conv") -> tuple[FeatureExtractor, dict]:
    """(extractor in eval mode, {"name", "sha256"}) from a checkpoint of `rdd extractor` or a published classifier's file.

    Of one that learnt latents the record says which, as "space". map_at: of FeatureExtractor. Raises UserError for anything
    else.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a classifier's file")
    if path.suffix != ".safetensors":
        extractor = load_released_classifier(path, map_at)
        return extractor, {"name": "densenet201", "sha256": digest(extractor.state_dict(), "densenet201")}
    tensors, info = _whole(path, load_checkpoint)
    if info.get("kind") != "extractor":
        raise UserError(
            f"{path} holds no extractor but {info.get('kind', 'something else')}: name one made by rdd extractor"
        )
    try:
        name = info["facts"]["extractor"]["name"]
        if name == TEACHER or name.startswith(TORCHVISION):
            raise UserError(
                f"{path} holds no trained classifier but {name}: pass --extractor {name} instead of the file"
            )
        space = {"space": info["space"]} if "space" in info else {}
        return extractor_of(name, tensors, map_at), {"name": name, "sha256": info["sha256"], **space}
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise UserError(f"{path} holds an extractor that this version does not know: make it again") from error
