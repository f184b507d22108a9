"""The checkpoint files published with RCFD and RDD: torch pickles, read without running any code in them.

A U-Net's file holds {net_model, ema_model (base models only), x_T, T, time_scale}: a network that predicts x on a grid of
T * time_scale steps (`DiscreteCosineSchedule`), to be sampled in T of them; time_scale = 1 is the base model. A
classifier's file holds {model}: a DenseNet201 for small images.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import DiscreteCosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import FeatureExtractor, build_extractor
from rddlib.utils.errors import UserError
from rddlib.utils.text import one_line

SHOWN = 10  # names of tensors in a message
GROUPS = 32  # of every GroupNorm there
LONGEST_GRID = 100_000  # steps; published grids have 1024
TIME_TABLE = "time_embedding.timembedding.0.weight"

# (pattern, replacement) from the names of our tensors to the released ones, applied in turn.
UNET_NAMES = (
    (r"^time_table$", TIME_TABLE),
    (r"^time_embedding\.0\.", "time_embedding.timembedding.1."),
    (r"^time_embedding\.2\.", "time_embedding.timembedding.3."),
    (r"^label_embedding\.", "y_embedding."),
    (r"^down\.(\d+)\.(weight|bias)$", r"downblocks.\1.main.\2"),
    (r"^up\.(\d+)\.conv\.", r"upblocks.\1.main."),
    (r"^(down|up|middle)\.", r"\1blocks."),
    (r"\.norm1\.", ".block1.0."),
    (r"\.conv1\.", ".block1.2."),
    (r"\.embed\.", ".temb_proj.1."),
    (r"\.norm2\.", ".block2.0."),
    (r"\.conv2\.", ".block2.3."),
    (r"\.attention\.norm\.", ".attn.group_norm."),
    (r"\.attention\.proj\.", ".attn.proj."),
    (r"\.attention\.qkv\.", ".attn.proj_*."),
)
DENSENET_NAMES = (
    (r"^trunk\.denseblock(\d)\.", r"block\1."),
    (r"^trunk\.transition(\d)\.", r"trans\1."),
    (r"^trunk\.", "features."),
    (r"^norm\.", "final_norm."),
)


def load_released_unet(path: str | Path, image_size: int | None = None) -> Denoiser:
    """A published U-Net as a Denoiser in eval mode that predicts x; its sampler is `ddim_sample` in denoiser.steps, clipped.

    image_size: in pixels, by default that of the file's noise x_T. Width, multipliers, attention, blocks and classes follow
    from the tensors, the schedule is DiscreteCosineSchedule(T * time_scale), and `steps` is T. Of the base model, for which
    `steps` is 0, the EMA weights are taken. Raises UserError for another kind of file, one that holds code, and one with
    missing or foreign tensors.
    """
    file = read_tensors(path)
    steps, scale = (_whole(file, name, path) for name in ("T", "time_scale"))
    tensors = _part(file, "ema_model" if scale == 1 else "net_model", path)
    if steps * scale > LONGEST_GRID:
        raise UserError(
            f"{path} has a grid of T * time_scale = {steps * scale} steps, more than {LONGEST_GRID}: is it a published one?"
        )
    size = image_size or _noise_size(file, path)
    try:
        config = _unet_config(tensors, steps * scale, size)
        with torch.device("meta"):  # nothing is allocated before the file is known to hold as much
            table = torch.empty(config.time_grid + 1, config.channels)
            _check_tensors(UNet(config), {TIME_TABLE: table, **tensors}, UNET_NAMES, path)
    except KeyError as error:
        raise UserError(
            f"{path} holds no U-Net of RCFD or RDD: it lacks {error.args[0]}; {listed('it has', tensors)}"
        ) from None
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds a U-Net that cannot be built: {one_line(error)}") from None
    network = UNet(config)
    _load(network, {TIME_TABLE: network.time_table, **tensors}, UNET_NAMES, path)  # some tools leave constants out
    denoiser = Denoiser(network, DiscreteCosineSchedule(steps * scale), "x", steps=0 if scale == 1 else steps)
    return denoiser.eval().requires_grad_(False)


def load_released_classifier(path: str | Path, map_at: str = "relu") -> FeatureExtractor:
    """The published DenseNet201 as a FeatureExtractor in eval mode: images [N, C, H, W] in [-1, 1] -> map, pooled, logits.

    map_at: of FeatureExtractor; "relu" as in the released network, or "conv" as in the RDD paper. Raises UserError for
    another kind of file, one that holds code, and one with missing or foreign tensors, ValueError for another map_at.
    """
    tensors = _part(read_tensors(path), "model", path)
    try:
        channels, classes = tensors["features.conv0.weight"].shape[1], len(tensors["fc.bias"])
    except KeyError as error:
        raise UserError(
            f"{path} holds no DenseNet201 of RCFD or RDD: it lacks {error.args[0]}; {listed('it has', tensors)}"
        ) from None
    except (IndexError, TypeError) as error:
        raise UserError(f"{path} holds a DenseNet201 that cannot be built: {one_line(error)}") from None
    extractor = build_extractor("densenet201", channels, classes, map_at)
    _load(extractor, tensors, DENSENET_NAMES, path)
    return extractor.eval().requires_grad_(False)


def read_tensors(path: str | Path) -> dict:
    """The dict in a torch file of tensors, numbers and dicts, on the CPU. Raises UserError for anything else in it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}: correct the path")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a damaged file
        if isinstance(error, pickle.UnpicklingError) and re.search("Unsupported (global|class)|GLOBAL", str(error)):
            raise UserError(
                f"{path} holds Python objects besides tensors, which could run code; nothing of it was run: "
                "ask its makers for a file of tensors"
            ) from None
        raise UserError(f"{path} is damaged or no torch file: get it again") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not a dict of tensors: name a published checkpoint")
    return dict(found)


def is_classifier(file: Mapping) -> bool:
    """Whether `read_tensors` found a classifier."""
    return "model" in file and "net_model" not in file


def _part(file: Mapping, name: str, path: str | Path) -> dict[str, Tensor]:
    part = file.get(name)
    if not (isinstance(part, Mapping) and all(isinstance(key, str) and _plain(part[key]) for key in part)):
        raise UserError(
            f"{path} has no {name}, a dict of tensors: {listed('it holds', file) if file else 'it is empty'}"
        )
    return dict(part)


def _plain(tensor) -> bool:
    """Whether this is a dense tensor of real numbers that are all stored: an expanded one could fill the memory."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _whole(file: Mapping, name: str, path: str | Path) -> int:
    value = file.get(name)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, (int, float)) or not 1 <= value <= LONGEST_GRID or value != int(value):
        expected = f"expected a whole number, 1 to {LONGEST_GRID}"
        remedy = "name a published checkpoint, or the folder of a diffusers pipeline"
        raise UserError(f"{path} has {name} = {one_line(value)}, {expected}: {remedy}")
    return int(value)


def _noise_size(file: Mapping, path: str | Path) -> int:
    noise = file.get("x_T")
    if not isinstance(noise, Tensor) or noise.ndim != 4 or noise.shape[2] != noise.shape[3]:
        raise UserError(
            f"{path} has no noise x_T [N, C, H, H] that tells its size: pass image_size (rdd import released --image-size)"
        )
    return noise.shape[2]


def _unet_config(tensors: Mapping[str, Tensor], grid: int, image_size: int) -> UNetConfig:
    """The configuration of the U-Net with these tensors, which have their released names."""
    channels, image_channels = tensors["head.weight"].shape[:2]
    numbers = [int(name.split(".")[1]) for name in tensors if re.match(r"downblocks\.\d+\.", name)]
    levels: list[list[int]] = [[]]  # for each level, the numbers of its residual blocks in downblocks
    for number in range(1 + max(numbers, default=0)):
        if f"downblocks.{number}.main.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(number)
    if not all(levels):
        raise ValueError("it has a level without residual blocks")
    widths = [_width(tensors, f"downblocks.{level[-1]}") for level in levels]
    attends = [f"downblocks.{level[-1]}.attn.proj.weight" in tensors for level in levels]
    if any(width % channels for width in widths):
        raise ValueError(f"its widths {widths} are no multiples of {channels}")
    return UNetConfig(
        image_size,
        image_channels,
        channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=len(levels[0]),
        attention=tuple(image_size >> level for level, attending in enumerate(attends) if attending),
        groups=GROUPS,
        num_classes=tensors["y_embedding.weight"].shape[1] if "y_embedding.weight" in tensors else 0,
        time_grid=grid,
    )


def _width(tensors: Mapping[str, Tensor], block: str) -> int:
    """Channels of a residual block, from any of its tensors: `_check_tensors` says later which are missing."""
    layers = "block1.2.bias block1.2.weight temb_proj.1.bias block2.0.weight block2.3.bias block2.3.weight"
    found = [len(tensors[name]) for layer in layers.split() if (name := f"{block}.{layer}") in tensors]
    if not found:
        raise KeyError(f"{block}.block1.2.weight")
    return found[0]


def _released_names(name: str, rules: tuple[tuple[str, str], ...]) -> list[str]:
    """The released names of our tensor of this name: three for q, k and v, which are one tensor here."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return [name.replace("*", part) for part in "qkv"] if "*" in name else [name]


def _load(network: torch.nn.Module, tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...], path) -> None:
    """Fill the network from tensors with released names. Raises UserError where names or shapes differ."""
    parts = _check_tensors(network, tensors, rules, path).items()
    joined = {name: [tensors[part] for part in names] for name, names in parts}
    network.load_state_dict({name: torch.cat(found) if len(found) > 1 else found[0] for name, found in joined.items()})


def _check_tensors(network: torch.nn.Module, tensors: Mapping[str, Tensor], rules, path) -> dict[str, list[str]]:
    """{our name: released names} of the network's tensors. Raises UserError if the file's names or shapes differ."""
    own = network.state_dict()
    parts = {name: _released_names(name, rules) for name in own}
    shapes = {
        part: [len(own[name]) // len(names), *own[name].shape[1:]] if own[name].ndim else []
        for name, names in parts.items()
        for part in names
    }
    wrong = [
        f"{name} {list(tensors[name].shape)} for {shape}"
        for name, shape in shapes.items()
        if name in tensors and list(tensors[name].shape) != shape
    ]
    lacking = [name for name in shapes if name not in tensors]
    foreign = [name for name in tensors if name not in shapes]
    if said := tensor_faults(lacking, foreign, wrong):
        raise UserError(f"{path} holds other tensors than its network has: {said}")
    return parts


def tensor_faults(lacking, foreign, wrong=()) -> str:
    """What is wrong with a file's tensors, for a message: "" if nothing is. Each argument: names."""
    faults = {"lacks": list(lacking), "has, beyond its own,": list(foreign), "has in another shape": list(wrong)}
    return "; ".join(listed(f"it {what}", names) for what, names in faults.items() if names)


def listed(what: str, names) -> str:
    """`what`, then the first ten of the names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(map(one_line, names[:SHOWN]))}{more}"
