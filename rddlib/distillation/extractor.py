"""Classifiers as feature extractors, through which CFD and the relational losses compare images."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.diffusion.latent_space import LatentSpace
from rddlib.utils.text import joined

MAPS = ("conv", "relu")


class Features(NamedTuple):
    """What an extractor sees in N images."""

    map: Tensor  # [N, C, H, W], the last feature map
    pooled: Tensor  # [N, C], averaged over its pixels
    logits: Tensor | None  # [N, classes], None where it predicts none


class Extractor(nn.Module):
    """What objectives look through: extractor(images [N, C, H, W] in [-1, 1]) -> Features."""

    channels: int  # C of its map
    predicts = True  # whether its features come with logits


class FeatureExtractor(Extractor):
    """A convolutional classifier that shows its last feature map.

    Args:
        trunk: everything up to the last convolution.
        norm: what stands between it and the final ReLU.
        channels: C of the trunk's map.
        num_classes: that it predicts, from the mean of the map after the ReLU.
        map_at: which map the relational losses see, "conv" (the last convolution's output, as the RDD paper says) or
            "relu" (after normalisation and ReLU, as its released code in effect returns).

    Raises ValueError for another map_at.
    """

    def __init__(self, trunk: nn.Module, norm: nn.Module, channels: int, num_classes: int, map_at: str = "conv"):
        super().__init__()
        if map_at not in MAPS:
            raise ValueError(f"map_at is {map_at!r}, expected one of {MAPS}")
        self.trunk, self.norm, self.channels, self.map_at = trunk, norm, channels, map_at
        self.fc = nn.Linear(channels, num_classes)

    @property
    def image_channels(self) -> int:
        """Channels of the images it takes."""
        return next(layer for layer in self.trunk.modules() if isinstance(layer, nn.Conv2d)).in_channels

    def stages(self, images: Tensor) -> list[Tensor]:
        """The last feature map [N, C_k, H_k, W_k] of each resolution on the way down; images as in `forward`."""
        maps: list[Tensor] = []
        h = images
        for layer in self.trunk:
            h = layer(h)
            if maps and maps[-1].shape[2:] == h.shape[2:]:
                maps[-1] = h
            else:
                maps.append(h)
        return maps

    def forward(self, images: Tensor) -> Features:
        """The features of images [N, image_channels, H, W] in [-1, 1]."""
        conv = self.trunk(images)
        relu = F.relu(self.norm(conv))
        pooled = relu.mean(dim=(2, 3))
        return Features(conv if self.map_at == "conv" else relu, pooled, self.fc(pooled))


class _PreactivationBlock(nn.Module):
    """x + two 3x3 convolutions, each after batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(h)))
        return self.shortcut(h) + self.conv2(F.relu(self.norm2(out)))


Parts = tuple[nn.Module, nn.Module, int]  # trunk, norm and channels of a FeatureExtractor


def _preactivation_resnet(image_channels: int, halvings: int, width: int = 48) -> Parts:
    """Pre-activation ResNet (He et al. 2016): the last map is smaller by 2^halvings, with as many times `width` channels."""
    layers = [nn.Conv2d(image_channels, width, 3, padding=1, bias=False), _PreactivationBlock(width, width, 1)]
    for _ in range(halvings):
        layers += [_PreactivationBlock(width, 2 * width, 2), _PreactivationBlock(2 * width, 2 * width, 1)]
        width *= 2
    return nn.Sequential(*layers), nn.BatchNorm2d(width), width


class _BeforeReLU(nn.Module):
    """torchvision's BasicBlock or Bottleneck without its final ReLU, which FeatureExtractor applies itself."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, h: Tensor) -> Tensor:
        b = self.block
        out = b.bn2(b.conv2(F.relu(b.bn1(b.conv1(h)))))
        if hasattr(b, "conv3"):
            out = b.bn3(b.conv3(F.relu(out)))
        return out + (h if b.downsample is None else b.downsample(h))


def _resnet(name: str, channels: int, image_channels: int) -> Parts:
    """torchvision's ResNet with a 3x3 stride-1 stem and no max-pooling: 32 px images give a [channels, 4, 4] map."""
    from torchvision import models

    net = getattr(models, name)(weights=None)
    net.layer4[-1] = _BeforeReLU(net.layer4[-1])
    stem = nn.Conv2d(image_channels, 64, 3, padding=1, bias=False)
    trunk = nn.Sequential(stem, net.bn1, nn.ReLU(), net.layer1, net.layer2, net.layer3, net.layer4)
    return trunk, nn.Identity(), channels


class _DenseBlock(nn.Sequential):
    """torchvision's, but each layer appends its maps to one growing map: a quarter of the operations in the backward pass.

    Theirs hands a list of all maps before to each layer, so that the gradient of every map is added up layer by layer.
    """

    def __init__(self, block: nn.Module):
        layers = ((name, nn.Sequential(OrderedDict(layer.named_children()))) for name, layer in block.named_children())
        super().__init__(OrderedDict(layers))

    def forward(self, h: Tensor) -> Tensor:
        for layer in self:
            h = torch.cat([h, layer(h)], dim=1)
        return h


def _densenet201(image_channels: int) -> Parts:
    """torchvision's DenseNet201 with a 3x3 stride-1 stem and no max-pooling: 32 px images give a 1920 x 4 x 4 map."""
    from torchvision.models import densenet201

    features = densenet201(weights=None).features
    features.conv0 = nn.Conv2d(image_channels, 64, 3, padding=1, bias=False)
    del features.pool0
    for name in ("denseblock1", "denseblock2", "denseblock3", "denseblock4"):
        setattr(features, name, _DenseBlock(getattr(features, name)))
    norm = features.norm5
    del features.norm5
    return features, norm, 1920


_MAKERS = {
    "small_resnet": lambda image_channels: _preactivation_resnet(image_channels, 1),  # 8x8 images: [96, 4, 4]
    "medium_resnet": lambda image_channels: _preactivation_resnet(image_channels, 2, 32),  # 16x16 images: [128, 4, 4]
    "resnet18": lambda image_channels: _resnet("resnet18", 512, image_channels),
    "resnet50": lambda image_channels: _resnet("resnet50", 2048, image_channels),
    "densenet201": _densenet201,
}
EXTRACTORS = tuple(_MAKERS)


def build_extractor(name: str, image_channels: int, num_classes: int, map_at: str = "conv") -> FeatureExtractor:
    """An untrained extractor by name: one of EXTRACTORS. Raises ValueError for another name."""
    if name not in EXTRACTORS:
        raise ValueError(f"extractor is {name!r}, expected one of {joined(EXTRACTORS)}")
    return FeatureExtractor(*_MAKERS[name](image_channels), num_classes, map_at)


def extractor_of(name: str, tensors: dict[str, Tensor], map_at: str = "conv") -> FeatureExtractor:
    """The extractor of that name with these tensors, which say its image channels and classes; in eval mode."""
    stem = next(tensors[stem] for stem in ("trunk.0.weight", "trunk.conv0.weight") if stem in tensors)
    extractor = build_extractor(name, stem.shape[1], len(tensors["fc.bias"]), map_at)
    extractor.load_state_dict(tensors)
    return extractor.eval().requires_grad_(False)


class MapExtractor(Extractor):
    """Any network that returns a feature map of images, as an extractor for CFD and RDD; made by `as_extractor`."""

    predicts = False

    def __init__(self, network: nn.Module, channels: int):
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, images: Tensor) -> Features:
        """The map [N, C', H', W'] of images [N, C, H, W] in [-1, 1] and its mean; no class predictions."""
        found = self.network(images)
        return Features(found, found.mean(dim=(2, 3)), None)


def as_extractor(network: nn.Module, image_shape: tuple[int, int, int]) -> Extractor:
    """Make any network an extractor that the objectives can look through. An extractor is returned as it is.

    network: images [N, C, H, W] in [-1, 1] -> a feature map [N, C', H', W']. image_shape: (C, H, W); it is tried once on
    zeros of that shape. Raises ValueError where it returns anything but such a map.
    """
    if isinstance(network, Extractor):
        return network
    modes, like = {module: module.training for module in network.modules()}, next(network.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            found = network.eval()(torch.zeros(2, *image_shape, device=like.device, dtype=like.dtype))
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the extractor returns {shape} for 2 images, expected a feature map [2, C, H, W]")
    return MapExtractor(network, found.shape[1])


class DecodedFeatures(Extractor):
    """An extractor of images, as one of a latent model's latents: each is decoded first, and the gradient goes through that.

    extractor: of images [N, C, H, W]. space: where the latents lie; on the meta device nothing is decoded.
    """

    def __init__(self, extractor: Extractor, space: LatentSpace):
        super().__init__()
        self.extractor, self.space = extractor, space
        self.channels, self.predicts = extractor.channels, extractor.predicts

    def forward(self, latents: Tensor) -> Features:
        """The features of the images that latents [N, c, h, w] stand for."""
        blank = latents.is_meta
        images = latents.new_zeros(len(latents), *self.space.image_shape) if blank else self.space.seen(latents)
        return self.extractor(images)


class MetricNetwork(nn.Module):
    """The plain convolutional network that scores small images: no residual connection, no batch statistics at test time.

    Another architecture than any extractor a student is distilled with, so a student cannot have been trained to
    please it. Images are [N, image_channels, image_size, image_size], features [N, 2 width].
    """

    def __init__(self, image_channels: int = 1, num_classes: int = 10, image_size: int = 8, width: int = 32):
        super().__init__()
        self.shape, self.features = (image_channels, image_size, image_size), 2 * width
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((image_channels, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.GELU()]
        pixels = (image_size // 4) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * pixels, self.features), nn.GELU())
        self.fc = nn.Linear(self.features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features [N, 2 width], logits [N, num_classes]) of images in [-1, 1]."""
        features = self.body(images)
        return features, self.fc(features)


def metric_network_of(tensors: dict[str, Tensor]) -> MetricNetwork:
    """The network with these tensors, which say its sizes; in eval mode, frozen."""
    width, channels = tensors["body.0.weight"].shape[:2]
    features, inputs = next(
        value.shape for name, value in tensors.items() if name.startswith("body.") and value.ndim == 2
    )
    size = 4 * round((inputs / features) ** 0.5)
    network = MetricNetwork(channels, len(tensors["fc.bias"]), size, width)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: nn.Module, logits: Callable, dataset, batch_size: int = 500) -> float:
    """Share of the data set's images whose largest logit is the label; logits(network's output) -> [N, classes]."""
    dataset, right = dataset.to(next(network.parameters()).device), 0
    for start in range(0, len(dataset), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(dataset)))
        right += int((logits(network(dataset.floats(rows))).argmax(1) == dataset.labels_of(rows)).sum())
    return right / len(dataset)
