"""Extractors that need no labels of the images: the teacher's own U-Net, and torchvision's classifiers of ImageNet."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.diffusion.class_transformer import ClassTransformer
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import expand_to
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation.extractor import Extractor, Features
from rddlib.utils.checkpoint import digest
from rddlib.utils.download import fetch
from rddlib.utils.errors import UserError, check_known

TEACHER, TORCHVISION = "teacher", "torchvision:"  # values of extractor.name; a model's name follows the second
FAMILIES = ("alexnet", "convnext", "densenet", "efficientnet", "mobilenet", "regnet", "resne", "vgg", "wide_resnet")


class TeacherFeatures(Extractor):
    """Feature maps of a denoiser's own network, as an extractor for CFD and RDD: no classifier, no labels.

    What a denoising U-Net computes on its way up tells objects and their parts apart (Baranchuk et al. 2022). An image x is
    shown as z = alpha_t x at a small t, its noise left at its mean, so that equal images have equal features. The map is the
    last one that the network computes at 2^-level of the image's size; pooled is its mean over the pixels, brought to mean 0
    and variance 1 over the channels, since CFD's softmax compares channels with each other.

    Args:
        denoiser: its network is any nn.Module; a conditional one must know NO_CLASS, and is asked for that.
        image_shape: (C, H, W) of the images; the network is tried once on zeros of it.
        level: how often the map's height and width are halved, at least 1.
        time: t, in (0, 1); the default was chosen on digits (data/results/digits_features_time.csv).

    Raises ValueError where the network has no such map, or needs labels.
    """

    predicts = False

    def __init__(self, denoiser: Denoiser, image_shape: tuple[int, int, int], level: int = 1, time: float = 0.3):
        super().__init__()
        if denoiser.num_classes and not denoiser.unconditional:
            raise ValueError(
                "a conditional teacher without label dropout needs labels to show features: name a classifier"
            )
        if isinstance(denoiser.network, ClassTransformer):
            raise ValueError("a transformer computes tokens and no maps: name a classifier, such as resnet18")
        self.denoiser, self.time = denoiser, time
        self.module, self.channels = self._find(image_shape, level)

    @torch.no_grad()
    def _find(self, image_shape: tuple[int, int, int], level: int) -> tuple[str, int]:
        """(name of the submodule whose output is the map, its channels)."""
        size, found, handles = [side >> level for side in image_shape[1:]], {}, []

        def note(name: str):
            def hook(module: nn.Module, inputs: tuple, output: object) -> None:
                output = output[0] if isinstance(output, tuple) and output else output
                if isinstance(output, Tensor) and output.ndim == 4:
                    found.pop(name, None)
                    found[name] = output.shape  # in the order of the calls

            return hook

        if isinstance(self.denoiser.network, nn.Module):
            handles = [m.register_forward_hook(note(name)) for name, m in self.denoiser.network.named_modules() if name]
        like = next(self.denoiser.parameters(), torch.zeros(()))
        try:
            self._show(torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype))
        finally:
            for handle in handles:
                handle.remove()
        maps = [(name, shape[1]) for name, shape in found.items() if list(shape[2:]) == size]
        if level < 1 or not maps:
            sizes = dict.fromkeys(f"{h}x{w}" for _, _, h, w in found.values() if h < image_shape[1])
            raise ValueError(
                f"the teacher's network has no map of {size[0]}x{size[1]} pixels (level {level}): it has "
                f"{', '.join(sizes) or 'none smaller than the image'}"
            )
        return maps[-1]

    def _show(self, images: Tensor) -> Tensor:
        d, n = self.denoiser, len(images)
        t = torch.full((n,), self.time, dtype=torch.float64, device=images.device)
        y = torch.full((n,), NO_CLASS, device=images.device) if d.num_classes else None
        return d(expand_to(d.schedule.alpha(t), images) * images, t, y, 0.0 if d.guidance else None)

    def forward(self, images: Tensor) -> Features:
        """The features of images [N, C, H, W] in [-1, 1]; no class predictions."""
        seen: list[Tensor] = []
        module = self.denoiser.network.get_submodule(self.module)
        handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            self._show(images)
        finally:
            handle.remove()
        found = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        pooled = found.mean(dim=(2, 3))
        return Features(found, F.layer_norm(pooled, pooled.shape[1:]), None)


class TorchvisionFeatures(Extractor):
    """A classifier of torchvision with its ImageNet weights (RCFD's Table 3 used ResNet50's), as an extractor.

    Images are brought to its own size, stretched where they are not square, and normalisation; grey ones are shown in all
    three channels. The map is what stands before its global pooling, with logits of ImageNet's 1000 classes.

    network: of torchvision, untrained or not; size: pixels it was trained at; mean, std: of its normalisation, [3] each.
    """

    def __init__(self, network: nn.Module, size: int, mean: list[float], std: list[float]):
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        with torch.no_grad():
            zeros = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
            self.channels = self.eval()(zeros).map.shape[1]

    def forward(self, images: Tensor) -> Features:
        """The features of images [N, 1 or 3, H, W] in [-1, 1]."""
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = ((x + 1) / 2 - self.mean) / self.std
        seen: list[Tensor] = []
        if hasattr(self.network, "avgpool"):
            handle = self.network.avgpool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        else:  # the DenseNets, whose features still lack their ReLU
            handle = self.network.features.register_forward_hook(
                lambda module, inputs, output: seen.append(F.relu(output))
            )
        try:
            logits = self.network(x.expand(-1, 3, -1, -1))
        finally:
            handle.remove()
        return Features(seen[-1], seen[-1].mean(dim=(2, 3)), logits)


def torchvision_features(name: str, download: bool = False) -> tuple[TorchvisionFeatures, str]:
    """(torchvision's classifier of that name with its best ImageNet weights, in eval mode; the sha256 of its tensors).

    The weights are read from torch's cache (`torch.hub.get_dir()/checkpoints`); nothing is fetched unless download=True.
    Raises UserError for an unknown name, and where the weights are missing, damaged or cannot be had.
    """
    network, weights = _untrained(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    checksum = path.stem.rsplit("-")[-1]
    if not path.is_file():
        if not download:
            raise UserError(
                f"{TORCHVISION}{name} needs its weights: put {weights.url} at {path}, or --set extractor.download=true"
            )
        fetch(weights.url, path, checksum)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file raises many kinds
        raise UserError(
            f"{path} does not hold the weights of {name}: delete it, and put {weights.url} there"
        ) from error
    features = _shown(network, weights)
    return features, digest(features.state_dict(), name)


def untrained_torchvision_features(name: str) -> TorchvisionFeatures:
    """As `torchvision_features`, without weights: to plan and to check with."""
    return _shown(*_untrained(name))


def _untrained(name: str):
    """(untrained network, its best weights' entry)."""
    from torchvision import models

    known = [kind for kind in models.list_models(module=models) if kind.startswith(FAMILIES)]
    check_known("classifier of torchvision", name, known)
    return models.get_model(name, weights=None), models.get_model_weights(name).DEFAULT


def _shown(network: nn.Module, weights) -> TorchvisionFeatures:
    kept = weights.transforms()
    return TorchvisionFeatures(network.eval(), kept.crop_size[0], kept.mean, kept.std).eval().requires_grad_(False)
