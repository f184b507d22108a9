"""`rdd import` and `rdd export`: models from elsewhere into checkpoints, checkpoints into what others load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

if TYPE_CHECKING:
    from rddlib.diffusion.denoiser import Denoiser

importing = typer.Typer(help="Models from elsewhere as checkpoints of ours.", no_args_is_help=True)
exporting = typer.Typer(help="Checkpoints as what other programs load, with a card.", no_args_is_help=True)

ImportTo = Annotated[Path | None, typer.Option("--to", help="File to write; default NAME.safetensors in this folder.")]
SourceArgument = Annotated[Path, typer.Argument(help="A checkpoint, a published file, or a diffusers folder.")]
GuidanceOption = Annotated[float | None, typer.Option(help="The weight w it shall have, where the model takes one.")]
StepsOption = Annotated[int, typer.Option(min=0, help="Sampling steps; 0 for those it was distilled for.")]
UnclippedOption = Annotated[bool, typer.Option("--unclipped", help="Do not hold x in [-1, 1] at each step.")]


@importing.command()
def released(
    path: Annotated[Path, typer.Argument(help="A file published with RCFD or RDD: a U-Net's or a classifier's.")],
    to: ImportTo = None,
    image_size: Annotated[int, typer.Option(min=0, help="In pixels, for a U-Net's file that does not say it.")] = 0,
) -> None:
    """Read a file published with RCFD or RDD.

    Nothing in it is run; its tensors become a checkpoint.

    \b
    Examples:
      rdd import released ckpt.pt
      rdd import released densenet201.pt --to theirs.safetensors
    """
    from rddlib.interop import load_classifier, load_released_unet
    from rddlib.interop.files import RELEASED, given_info
    from rddlib.interop.released import is_classifier, read_tensors
    from rddlib.utils.checkpoint import save_checkpoint

    to = _new_file(to, path)
    if is_classifier(read_tensors(path)):
        extractor, found = load_classifier(path)
        facts = {"source": {"name": path.name, "made_by": RELEASED}, "extractor": {"name": found["name"]}}
        save_checkpoint(to, extractor.state_dict(), {"kind": "extractor", "facts": facts})
        print(f"{to}: DenseNet201, {extractor.fc.out_features} classes")
        return
    denoiser = load_released_unet(path, image_size or None)
    _write_model(to, denoiser, given_info(denoiser, path.resolve(), RELEASED))


@importing.command()
def diffusers(
    path: Annotated[Path, typer.Argument(help="Folder of a pipeline (DDPMPipeline, DDIMPipeline, DiTPipeline, ...).")],
    to: ImportTo = None,
    null_class: Annotated[
        bool, typer.Option("--null-class", help="Its last class means no class, so that it can be guided.")
    ] = False,
) -> None:
    """Read the model of a diffusers pipeline.

    No code of its folder is run; its network and its betas become a checkpoint. A latent one's autoencoder stays there.

    \b
    Example:
      rdd import diffusers ddpm-cifar10-32
    """
    from rddlib.interop.files import DIFFUSERS, given_info
    from rddlib.interop.pipelines import from_diffusers

    to = _new_file(to, path.resolve())
    denoiser = from_diffusers(path, null_class=null_class or None)
    _write_model(to, denoiser, given_info(denoiser, path.resolve(), DIFFUSERS))


def _new_file(to: Path | None, source: Path) -> Path:
    to = to or Path(f"{source.stem or source.name}.safetensors")
    if to.suffix != ".safetensors":
        raise UserError(f"--to {to}: a checkpoint's name ends in .safetensors")
    return _absent(to)


def _absent(path: Path) -> Path:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists: choose another --to, or delete it")
    return path


def _write_model(to: Path, denoiser: "Denoiser", info: dict) -> None:
    from rddlib.diffusion.model_file import summary
    from rddlib.utils.checkpoint import save_checkpoint

    save_checkpoint(to, denoiser.state_dict(), {name: value for name, value in info.items() if name != "sha256"})
    steps = f"for {counted(denoiser.steps)}" if denoiser.steps else "for any number of steps"
    print(f"{to}: {summary(denoiser)}, {steps}")


@exporting.command("diffusers")
def to_pipeline(
    checkpoint: SourceArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder to write, new or empty.")],
    steps: StepsOption = 0,
    guidance: GuidanceOption = None,
    unclipped: UnclippedOption = False,
) -> None:
    """Save a model as a pipeline of diffusers.

    It loads without rddlib, and has a model card (README.md).

    \b
    Examples:
      rdd export diffusers runs/digits/checkpoints/rdd-1-*.safetensors --to rdd-digits
      rdd export diffusers runs/digits/checkpoints/guided-rdd-2-*.safetensors --guidance 1 --to guided-digits
    """
    from rddlib.interop import to_diffusers
    from rddlib.interop.cards import card_of

    denoiser, info = _exportable(checkpoint)
    drawn = {"steps": steps or denoiser.steps, "guidance": guidance, "clip": not unclipped}

    def card(usage: str) -> str:
        return card_of(denoiser, checkpoint, info, title=to.name, usage=usage, **drawn)

    to_diffusers(denoiser, _absent(to), card=card, **drawn)
    print(f"{to}: a diffusers pipeline; {to / 'README.md'}: its model card, with the lines that draw with it")


@exporting.command()
def torchscript(
    checkpoint: SourceArgument,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; default NAME.ts in this folder.")] = None,
    steps: StepsOption = 0,
    guidance: GuidanceOption = None,
    unclipped: UnclippedOption = False,
) -> None:
    """Save a few-step sampler as one TorchScript file.

    Noise in, images out, on CPUs; with a model card (.md).

    \b
    Example:
      rdd export torchscript runs/digits/checkpoints/rdd-1-*.safetensors --to rdd-digits.ts
    """
    from rddlib.interop import export_torchscript
    from rddlib.interop.cards import card_of
    from rddlib.interop.torchscript import script_usage
    from rddlib.utils.checkpoint import write_atomically

    to = to or Path(f"{checkpoint.stem}.ts")
    if to.suffix == ".md":
        raise UserError(f"--to {to}: that is the model card's name, choose another, such as {to.with_suffix('.ts')}")
    path, _ = _absent(to.with_suffix(".md")), _absent(to)
    denoiser, info = _exportable(checkpoint)
    drawn = {"steps": steps or denoiser.steps, "guidance": guidance, "clip": not unclipped}
    usage = script_usage(denoiser, to.name, not unclipped)
    card = card_of(denoiser, checkpoint, info, title=to.stem, usage=usage, **drawn)
    difference = export_torchscript(denoiser, to, **drawn)
    write_atomically(path, card)
    print(f"{to}: noise in, images out, within {difference:.1g} of ours; {path}: its model card")


def _exportable(path: Path) -> tuple["Denoiser", dict]:
    """A model and what is recorded of it. Raises UserError where no export draws as it was trained to."""
    from rddlib.interop import load_model

    denoiser, info = load_model(path)
    if info.get("facts", {}).get("stochastic"):
        raise UserError(
            f"{path} was trained for the stochastic sampler, and exports draw by DDIM: export the student of as "
            "many steps that it started from"
        )
    return denoiser, info
