"""Diffusion models of diffusers in and out: a network with its scheduler as a Denoiser, and back."""

import contextlib
import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.diffusers_unet import DiffusersUNet, diffusers_class, variant_of
from rddlib.diffusion.samplers import alpha_bars
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule
from rddlib.diffusion.unet import GUIDANCE_SCALE, TIME_SCALE, ResidualBlock, UNet, sinusoids
from rddlib.evaluation import check_guidance
from rddlib.interop.latent_pipelines import KINDS, latent_network, latent_usage, save_latent
from rddlib.interop.released import tensor_faults
from rddlib.interop.torchscript import scripted, shape_of
from rddlib.utils.checkpoint import cannot_write
from rddlib.utils.errors import UserError
from rddlib.utils.text import one_line, say

FRONT_MATTER = "---\nlibrary_name: diffusers\nlicense: # to be filled in\n---\n"  # of a model card, as hubs read it
PREDICTION_TYPES = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}  # diffusers' names, ours
UNETS = ("UNet2DModel", "UNetUnconditionalModel")  # the second as the first published pipelines call it
LATENT = ("vae", "vqvae", "movq", "prior", "transformer", "text_encoder")  # components of pipelines in latent space
TAKEN = f"pipelines of pixels with a UNet2DModel can be taken, and {', '.join(KINDS)}"
TABLE_TOLERANCE = 1e-3  # of a released time table against its sinusoids, which differ by 1e-4 in float32
PIXELS = "only pixel-space models, UNet2DModel with a DDPM or DDIM kind of scheduler, are supported"


# in


def from_diffusers(source, scheduler=None, *, null_class: bool | None = None) -> Denoiser:
    """A model of diffusers as a Denoiser in eval mode: (z, t) -> x, or (z, t, y) if it has classes or takes prompts.

    source: a pipeline (DDPMPipeline, DDIMPipeline, StableDiffusionPipeline, DiTPipeline, ...), a UNet2DModel, or the folder of
    either; a latent one draws latents, and `.space` says what they and its prompts mean; scheduler: a diffusers
    scheduler (or the folder of one), needed with a bare UNet2DModel, which does not know its betas. Any betas; prediction
    "epsilon", "sample" or "v_prediction". null_class: whether its last class embedding means "no class", so that it can be
    guided; by default what the pipeline records, as those of `to_diffusers` do.

    The scheduler's index i is t = (i + 1)/T: t = 1 is its noisiest index, and t = 0 lies beyond its cleanest. The network is
    copied, in float32. No code in a folder is run and nothing is downloaded. Raises UserError for other pipelines and kinds of
    networks and schedulers, for missing or damaged files, and without diffusers.
    """
    latent, found, own_scheduler, has_null = _parts(source)
    if not latent and not isinstance(found, diffusers_class("UNet2DModel")):
        raise UserError(f"expected a UNet2DModel or a pipeline with one, not {type(found).__name__}: {PIXELS}")
    scheduler = own_scheduler if scheduler is None else scheduler
    if isinstance(scheduler, (str, Path)):
        scheduler = _read_scheduler(Path(scheduler))
    if scheduler is None and not latent:
        raise UserError(
            "a UNet2DModel alone does not say its betas: name its pipeline, put the scheduler_config.json that it was "
            "trained with beside it, or in Python pass its scheduler too"
        )
    schedule, prediction = _schedule_of(scheduler)
    if latent:
        network = latent_network(latent, found, schedule.steps)
    else:
        has_null = has_null is True if null_class is None else null_class
        network = DiffusersUNet(copy.deepcopy(found).float(), schedule.steps, has_null)
    denoiser = Denoiser(network, schedule, prediction).eval().requires_grad_(False)
    dry_run(denoiser)
    return denoiser


@torch.no_grad()
def dry_run(denoiser: Denoiser) -> None:
    """Denoise one blank image of the size that the network's configuration says. Raises UserError where it cannot."""
    config = denoiser.network.config
    shape = config.image_shape
    said = "x".join(map(str, shape))
    device = next(denoiser.parameters()).device
    y = torch.zeros(1, dtype=torch.long, device=device) if config.num_classes else None
    w = denoiser.guidance[0] if denoiser.guidance else None
    try:
        found = denoiser(torch.zeros(1, *shape, device=device), 1.0, y, w)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"this network cannot take images of {said}, the size that its configuration says "
            f"({one_line(error)}): correct its sample_size, mostly to a multiple of what its levels halve"
        ) from error
    if found.shape != (1, *shape) or not found.isfinite().all():
        raise UserError(f"this network makes {list(found.shape)} of an image of {said}, or no numbers: get it again")


def _parts(source) -> tuple:
    """(None, network, scheduler or None, whether it records that its last class means none) of a model or a folder.

    Of a latent pipeline that can be taken: (its class, its folder or components, scheduler, False).
    """
    if isinstance(source, nn.Module):
        return None, source, None, False
    if not isinstance(source, (str, Path)):
        name, config = type(source).__name__, getattr(source, "config", {})
        if name in KINDS:
            return name, source.components, source.scheduler, False
        _refuse_latent(name, getattr(source, "components", {}))
        return None, getattr(source, "unet", None), getattr(source, "scheduler", None), config.get("null_class", False)
    folder = Path(source)
    if index := check_described(folder):
        if _is_latent(index):
            return index["_class_name"], folder, _read_scheduler(folder / "scheduler"), False
        # old ones have no sub-folders
        unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
        return None, _read_unet(unet), _read_scheduler(scheduler), index.get("null_class") is True
    if (folder / "config.json").is_file():
        beside = (folder / "scheduler_config.json").is_file()
        return None, _read_unet(folder), _read_scheduler(folder) if beside else None, False
    no_pipeline(folder)


def _is_latent(index: dict) -> bool:
    """Whether a model_index.json is that of a latent pipeline that can be taken."""
    name = index.get("_class_name")
    return isinstance(name, str) and name in KINDS


def _refuse_latent(name: str, components) -> None:
    if latent := [part for part in LATENT if part in components]:
        raise UserError(f"{name} has a {latent[0]} and is no latent pipeline of a known kind: {TAKEN}")


def _schedule_of(scheduler) -> tuple[BetaSchedule, str]:
    """(the scheduler's betas and last alpha^2 as a schedule, our name of what the network predicts)."""
    config, betas = getattr(scheduler, "config", {}), getattr(scheduler, "betas", None)
    kind = config.get("prediction_type", "epsilon")
    if kind == "epsilon" and config.get("predict_epsilon") is False:  # as schedulers said it before prediction_type
        kind = "sample"
    prediction = PREDICTION_TYPES.get(kind) if isinstance(kind, str) else None
    if betas is None or prediction is None:
        what = type(scheduler).__name__ if betas is None else f"prediction_type {one_line(kind)}"
        raise UserError(f"{what} is of another kind of diffusion: {PIXELS}")
    _check_teaches(scheduler, config)
    betas = tuple(torch.as_tensor(betas, dtype=torch.float64).tolist())
    if prediction == "eps" and 1.0 in betas:
        raise UserError(
            "this scheduler ends in pure noise, from which epsilon says nothing of the image: give it betas below "
            "1, or a network that predicts v"
        )
    try:
        return BetaSchedule(betas, float(getattr(scheduler, "final_alpha_cumprod", 1.0))), prediction
    except ValueError as error:
        raise UserError(f"{type(scheduler).__name__} is no schedule of a diffusion ({error}): {PIXELS}") from error


def _check_teaches(scheduler, config) -> None:
    """Raise UserError for the scheduler of a few-step model, or alphas that its betas do not give; say what is left out."""
    name = type(scheduler).__name__
    if "original_inference_steps" in config:  # LCMScheduler, TCDScheduler
        raise UserError(
            f"{name} is for models that were distilled to few steps, which DDIM cannot follow: name the pipeline that this one "
            "was distilled from, or give it the DDIMScheduler's scheduler_config.json if it never was"
        )
    alphas = getattr(scheduler, "alphas_cumprod", None)
    expected = (1 - torch.as_tensor(scheduler.betas, dtype=torch.float64)).cumprod(0)
    if alphas is None or not torch.allclose(torch.as_tensor(alphas).double(), expected, rtol=0, atol=1e-4):
        raise UserError(f"{name} has no alphas that follow from its betas: {PIXELS}")
    left, reach = "", config.get("clip_sample_range", 1.0)
    if config.get("thresholding"):
        left = "thresholding"
    elif config.get("clip_sample") and reach != 1:
        left = f"clip_sample_range {one_line(reach)}"
    if left:
        say(f"{name}: {left} left out; pixels are held in [-1, 1] at each step, or not at all (evaluation.clip)")


def check_described(folder: Path) -> dict:
    """What model_index.json says ({} without it). Raises UserError for a pipeline of another kind, before its weights count."""
    if not (folder / "model_index.json").is_file():
        return {}
    index = _json(folder / "model_index.json")
    if _is_latent(index):
        return index
    _refuse_latent(f"{folder}", index)
    kind = index.get("unet", "no unet")
    kind = kind[1] if isinstance(kind, list) and len(kind) == 2 else kind
    if kind not in UNETS:
        raise UserError(f"{folder} has {one_line(kind)} for its network: {PIXELS}")
    return index


def no_pipeline(folder: Path) -> None:
    """Raise UserError for a folder without a pipeline, naming its networks: checkpoints of training scripts have some."""
    configs = sorted(folder.glob("*/config.json"), key=lambda path: "ema" not in path.parent.name)
    networks = [str(path.parent) for path in configs if _json(path).get("_class_name") in UNETS]
    raise UserError(
        f"{folder} holds no diffusers model (no model_index.json): name "
        + (" or ".join(networks) or "the folder of a downloaded pipeline")
    )


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: get the folder again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: get the folder again")
    return found


def _read_unet(folder: Path) -> nn.Module:
    kind, unet2d = _json(folder / "config.json").get("_class_name"), diffusers_class("UNet2DModel")
    if kind not in (None, *UNETS):
        raise UserError(f"{folder} holds a {kind}: {PIXELS}")
    try:
        unet, found = unet2d.from_pretrained(
            folder,
            **variant_of(folder),
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # of many kinds: a damaged file, one with code in it, tensors of other shapes
        raise UserError(
            f"{folder} cannot be read as a UNet2DModel ({one_line(error) or type(error).__name__}): get the folder again"
        ) from error
    if said := tensor_faults(sorted(found["missing_keys"]), sorted(found["unexpected_keys"])):
        raise UserError(f"{folder} holds other tensors than its configuration says: {said}")
    return unet


def _read_scheduler(folder: Path):
    name = one_line(_json(folder / "scheduler_config.json").get("_class_name"))
    kind = None
    with contextlib.suppress(AttributeError):  # diffusers has no class of that name
        kind = diffusers_class(name) if name.endswith("Scheduler") else None
    try:
        scheduler = kind and kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, for numbers of which no scheduler can be made
        raise UserError(f"{folder} cannot be read as a {name} ({one_line(error)}): get the folder again") from error
    if scheduler is None:  # or diffusers has given it up and keeps the name only
        raise UserError(f"{folder} names the scheduler {name}, which this diffusers lacks: {PIXELS}")
    return scheduler


# out


def to_diffusers(
    denoiser: Denoiser,
    folder: str | Path,
    *,
    steps: int = 0,
    guidance: float | None = None,
    clip: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    card: Callable[[str], str] | None = None,
) -> Path:
    """Save a denoiser as a pipeline that diffusers loads without rddlib. Returns the folder, which must be new or empty.

    steps: that it was distilled for (default denoiser.steps), for TorchScript and for the model card; guidance: the fixed
    weight w, for a network that takes one; clip: clamp x to [-1, 1] at each step; image_shape: (C, H, W), for a network that
    does not know it; card: makes the text of the model card, README.md, from the lines of Python that draw with the pipeline
    (default: `model_card` of the denoiser).

    A latent model becomes a pipeline of the class that it came from; a network that takes w keeps taking it there, as
    guidance_scale - 1, and guidance is not given here. A DiTPipeline alone has no place for w: there it is given and becomes
    part of the classes, and guidance_scale=1 draws with it.

    A network that is a UNet2DModel, or maps onto one as our U-Net does, becomes a DDIMPipeline, or with classes the pipeline
    of class_pipeline.py in the folder, which takes class_labels. num_inference_steps=n, eta=0 and
    use_clipped_model_output=True then give the images of `ddim_sample` in n steps, for n that divide 1024 (or the T of the
    model's betas). Any other network or number of steps becomes a TorchScript sampler of `steps` steps, with
    scripted_pipeline.py. A pipeline with a module in its folder is loaded by
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

    How our U-Net becomes a UNet2DModel: a step's index i is p - 1, a shift of the sinusoids' positions, which is a rotation
    that the first time layer absorbs; w becomes part of a bias, and labels rows of a table. Raises UserError for a folder with
    other content, for guidance that the model does not take or lacks, and without diffusers.
    """
    from rddlib.interop.cards import model_card

    folder, steps = Path(folder), steps or denoiser.steps
    _check_latent(denoiser, steps, guidance) if denoiser.space else check_guidance(denoiser, guidance)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            made = Path(temporary) / "pipeline"
            if denoiser.space:
                save_latent(denoiser.network, _scheduler(denoiser, clip=False), made, guidance)
            elif maps_onto_unet2d(denoiser, guidance) and _grid(denoiser) % (steps or 1) == 0:
                _save_unet2d(denoiser, guidance, clip, made)
            else:
                _save_scripted(denoiser, steps, guidance, clip, image_shape, made)
            usage = _usage(denoiser, folder.name, steps, {path.stem for path in made.glob("*.py")})
            drawn = {"steps": steps, "guidance": guidance, "clip": clip}
            text = card(usage) if card else model_card(denoiser, title=folder.name, usage=usage, **drawn)
            (made / "README.md").write_text(f"{FRONT_MATTER}{text}")
            made.replace(folder)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error
    return folder


def _check_latent(denoiser: Denoiser, steps: int, guidance: float | None) -> None:
    """Raise UserError for a weight that would be lost; say where diffusers' DDIM would step by other times than ours."""
    if denoiser.space.kind == "DiTPipeline" and denoiser.guidance:
        check_guidance(denoiser, guidance)
        say(f"a DiTPipeline passes no w on: its w is always {guidance:g}, and guidance_scale=1 draws with it")
    elif guidance is not None:
        raise UserError("a latent pipeline takes its weight when it draws, as guidance_scale - 1: leave guidance out")
    if steps and _grid(denoiser) % steps:
        say(
            f"diffusers' DDIM steps by whole indices of {_grid(denoiser)}, which {steps} does not divide: it draws a little off"
        )


def maps_onto_unet2d(denoiser: Denoiser, guidance: float | None = None) -> bool:
    """Whether the network is a UNet2DModel, or computes the same function as one."""
    network = denoiser.network
    if isinstance(network, DiffusersUNet):
        return guidance is None and network.grid == _grid(denoiser)
    if not isinstance(network, UNet) or (guidance is not None and not denoiser.guidance):
        return False
    c = network.config
    if c.multipliers[0] != 1 or _grid(denoiser) != (c.time_grid or TIME_SCALE):
        return False
    if not c.time_grid:
        return True
    expected = sinusoids(torch.arange(c.time_grid + 1, device=network.time_table.device), c.channels)
    return bool((network.time_table - expected).abs().max() <= TABLE_TOLERANCE)  # a file may bring another table


def _save_unet2d(denoiser: Denoiser, guidance: float | None, clip: bool, folder: Path) -> None:
    network = denoiser.network
    if isinstance(network, DiffusersUNet):
        unet = network.unet
    else:
        unet = diffusers_class("UNet2DModel")(**_config(network)).eval()
        unet.load_state_dict(_weights(network, guidance))
    scheduler = _scheduler(denoiser, clip)
    if not denoiser.num_classes:
        diffusers_class("DDIMPipeline")(unet, scheduler).save_pretrained(folder)
        return
    from rddlib.interop.class_pipeline import ClassDDIMPipeline

    ClassDDIMPipeline(unet, scheduler, null_class=denoiser.unconditional).save_pretrained(folder)
    _own_pipeline(folder, "class_pipeline", "ClassDDIMPipeline")


def _save_scripted(denoiser: Denoiser, steps: int, guidance, clip: bool, image_shape, folder: Path) -> None:
    from rddlib.interop.scripted_pipeline import ScriptedPipeline

    content, _ = scripted(denoiser, steps, clip, guidance, image_shape)
    pipeline = ScriptedPipeline(shape_of(denoiser, image_shape), steps, denoiser.num_classes)
    pipeline.save_pretrained(folder)
    (folder / "sampler.ts").write_bytes(content)
    _own_pipeline(folder, "scripted_pipeline", "ScriptedPipeline")


def _own_pipeline(folder: Path, module: str, name: str) -> None:
    """Make the class of a saved pipeline that of a module of ours, copied into its folder."""
    shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    index = _json(folder / "model_index.json") | {"_class_name": [module, name]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _usage(denoiser: Denoiser, name: str, steps: int, modules: set[str]) -> str:
    """Lines of Python that draw with a saved pipeline, given the modules in its folder."""
    if denoiser.space:
        return latent_usage(denoiser.network, name, steps or 4)
    labels = list(range(min(4, denoiser.num_classes)))
    arguments = [f"class_labels={labels}" if labels else "batch_size=4"]
    if "scripted_pipeline" not in modules:
        few = steps or next(n for n in (8, 5, 4, 2, 1) if _grid(denoiser) % n == 0)
        arguments += [f"num_inference_steps={few}", "use_clipped_model_output=True"]
    trust = ", trust_remote_code=True" if modules else ""
    return f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}"{trust})
images = pipeline({", ".join(arguments)}).images"""


def _grid(denoiser: Denoiser) -> int:
    """T of the scheduler, whose index i is t = (i + 1)/T."""
    return 1024 if isinstance(denoiser.schedule, CosineSchedule) else denoiser.schedule.steps


def _scheduler(denoiser: Denoiser, clip: bool):
    """A DDIMScheduler with the schedule's alphas at t = (i + 1)/T, and its alpha(0) at the end.

    diffusers ends at alpha 1 or at that of index 0. So where alpha(0) < 1, as on the released grid, it replaces the alpha of
    index 0, which only a sampler of T steps would use.
    """
    schedule, size = denoiser.schedule, _grid(denoiser)
    alpha_bar = alpha_bars(schedule, size)
    last = float(schedule.alpha(0.0)) ** 2
    if last < 1:
        alpha_bar[0] = last
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    ratios = torch.where(before > 0, alpha_bar / before.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    predictions = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    return diffusers_class("DDIMScheduler")(
        num_train_timesteps=size,
        trained_betas=(1 - ratios).tolist(),
        clip_sample=clip,
        set_alpha_to_one=last == 1,
        prediction_type=predictions[denoiser.prediction],
        timestep_spacing="trailing",
        steps_offset=1 if denoiser.space else 0,  # as latent pipelines want it, though trailing times have none
    )


def _config(network: UNet) -> dict:
    """The arguments of the UNet2DModel that our U-Net becomes."""
    c = network.config
    return {
        "sample_size": c.image_size,
        "in_channels": c.image_channels,
        "out_channels": c.image_channels,
        "block_out_channels": tuple(c.channels * m for m in c.multipliers),
        "layers_per_block": c.blocks,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in c.attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attends)),
        "attention_head_dim": None,
        "norm_num_groups": c.groups,
        "dropout": c.dropout,
        "flip_sin_to_cos": False,
        "num_class_embeds": (c.num_classes + (c.label_dropout > 0)) or None,
    }


def _weights(network: UNet, guidance: float | None) -> dict[str, Tensor]:
    """Our U-Net's tensors under the names of UNet2DModel."""
    c, found = network.config, {}

    def put(name: str, layer: nn.Module) -> None:
        found.update({f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()})

    def put_block(stem: str, number: int, block: ResidualBlock) -> None:
        theirs = {"embed": "time_emb_proj", "shortcut": "conv_shortcut"}
        for ours in ("norm1", "conv1", "embed", "norm2", "conv2", "shortcut"):
            put(f"{stem}.resnets.{number}.{theirs.get(ours, ours)}", getattr(block, ours))
        name, attention = f"{stem}.attentions.{number}", block.attention
        if isinstance(attention, nn.Identity):
            return
        put(f"{name}.group_norm", attention.norm)
        for part, weight, bias in zip("qkv", attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True):
            found.update({f"{name}.to_{part}.weight": weight[:, :, 0, 0], f"{name}.to_{part}.bias": bias})
        found[f"{name}.to_out.0.weight"] = attention.proj.weight[:, :, 0, 0]
        found[f"{name}.to_out.0.bias"] = attention.proj.bias

    for stem, layers in (("down", network.down), ("up", network.up)):
        level, number = 0, 0
        for layer in layers:
            if isinstance(layer, ResidualBlock):
                put_block(f"{stem}_blocks.{level}", number, layer)
                number += 1
            else:
                put(f"{stem}_blocks.{level}.{stem}samplers.0.conv", layer.conv if stem == "up" else layer)
                level, number = level + 1, 0
    for number, block in enumerate(network.middle):
        put_block("mid_block", number, block)
    put("conv_in", network.head)
    put("conv_norm_out", network.tail[0])
    put("conv_out", network.tail[2])
    put("time_embedding.linear_1", network.time_embedding[0])
    put("time_embedding.linear_2", network.time_embedding[2])
    found["time_embedding.linear_1.weight"] = _shifted(network)
    if guidance is not None:
        bias = found["time_embedding.linear_2.bias"]
        w = sinusoids(torch.tensor([guidance * GUIDANCE_SCALE], device=bias.device), c.channels)
        found["time_embedding.linear_2.bias"] = bias + network.guidance_embedding(w.to(bias.dtype))[0]
    if network.label_embedding is not None:
        rows = network.label_embedding.weight.T
        rows = torch.cat([rows, torch.zeros_like(rows[:1])]) if c.label_dropout else rows  # the last one: no class
        found["class_embedding.weight"] = rows + network.label_embedding.bias
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def _shifted(network: UNet) -> Tensor:
    """Weights of the first time layer for the sinusoids of p - 1, sines first, instead of those of p, interleaved.

    sin(p w) = sin((p-1) w) cos w + cos((p-1) w) sin w, and likewise the cosine: a rotation of each pair.
    """
    c, weight = network.config, network.time_embedding[0].weight.double()
    w = torch.exp(torch.arange(0, c.channels, 2, device=weight.device).double() * (-math.log(10000.0) / c.channels))
    sines, cosines = weight[:, 0::2], weight[:, 1::2]
    return torch.cat([sines * w.cos() - cosines * w.sin(), sines * w.sin() + cosines * w.cos()], dim=1)
