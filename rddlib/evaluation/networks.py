"""The networks whose features are compared: torch-fidelity's Inception, or the project's own classifiers."""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from rddlib.data import data_folder
from rddlib.distillation.extractor import EXTRACTORS, MetricNetwork, extractor_of, metric_network_of
from rddlib.utils.checkpoint import DamagedFile, load_checkpoint
from rddlib.utils.distributed import rank, together
from rddlib.utils.download import fetch
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped

SHIPPED = {(1, 8, 8): "digits", (3, 16, 16): "photos"}  # networks that come with the package, by the images they take
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILES = (Path(URL_INCEPTION_V3).name, "pt_inception-2015-12-05-6726825d.pth")  # pytorch-fid's name for it
MEANWHILE = "score with the profile's own network meanwhile: --metric-network extractor"


@dataclass(frozen=True)
class Network:
    """A frozen network that scores images.

    sha256: of its weights' file; module: levels 0..255 [N, C, H, W] -> (features [N, D], logits [N, K]); features: D;
    shape: the (C, H, W) it takes, with H and W 0 if it takes any; resizes: whether it resizes its input as the protocol
    says.
    """

    name: str
    sha256: str
    module: nn.Module
    features: int
    shape: tuple[int, int, int]
    resizes: bool = False

    def check(self, name: str, shape: tuple[int, int, int]) -> None:
        """Raise UserError if it cannot take images of this (C, H, W); name: of the images."""
        channels, *size = self.shape
        if shape[0] != channels:
            colours = {1: "grayscale", 3: "colour"}
            raise UserError(
                f"{name}: {colours.get(shape[0], f'{shape[0]}-channel')} images, but the {self.name} takes "
                f"{colours[channels]}: convert them, or choose another --metric-network"
            )
        if any(size) and tuple(size) != tuple(shape[1:]):
            raise UserError(
                f"{name}: images of {shape[2]}x{shape[1]} pixels, but the {self.name} takes {size[1]}x{size[0]}: choose "
                "another --metric-network"
            )

    @property
    def published(self) -> bool:
        """Whether these are the Inception weights that the literature's FIDs are measured with."""
        return self.sha256 == INCEPTION_SHA256 and self.features == 2048

    def metric(self, samples: int) -> str:
        """The full name of its FID, which names the network unless it is the published Inception."""
        return f"FID ({'' if self.published else f'{self.name}, '}{samples} samples)"


class ClassifierFeatures(nn.Module):
    """A classifier that takes levels 0..255 [N, C, H, W] and returns (features [N, D], logits [N, K]).

    network: images in [-1, 1] -> (features, logits), or a FeatureExtractor, whose pooled features count.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.network.parameters()).dtype
        return self.network(levels.to(dtype) / 127.5 - 1)[-2:]  # a FeatureExtractor's map comes first


class InceptionFeatures(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception v3; float levels are resized as in the released RCFD/RDD code."""

    def forward(self, levels: Tensor) -> tuple[Tensor, ...]:
        if levels.dtype == torch.uint8:
            return super().forward(levels)
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        x = F.interpolate(levels / 127.5 - 1, size=size, mode="bilinear", align_corners=False)
        for name, layer in self.named_children():
            if name != "fc":
                x = layer(x)
        features = x.flatten(1)
        found = {"2048": features, "logits_unbiased": features @ self.fc.weight.T}
        if missing := set(self.features_list) - found.keys():
            raise UserError(f"the protocol released has no layer {', '.join(missing)}: take 2048, or another protocol")
        return tuple(found[name] for name in self.features_list)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped_network_file(name: str) -> str:
    """Where a network of SHIPPED lies, in the checkout and in the package."""
    return f"data/{name}_metric_network.safetensors"


def load_metric_network(path: Path | None = None) -> MetricNetwork:
    """Load a network that scores from its checkpoint (default: digits' own), checksum verified."""
    path = path or shipped(shipped_network_file("digits"))
    tensors, info = load_checkpoint(path)
    if info.get("kind") != "metric network":
        raise UserError(f"{path} holds no metric network: make one with `rdd metric-network`")
    return metric_network_of(tensors)


def shipped_network(name: str) -> Network:
    """A network of SHIPPED."""
    return replace(network_of_checkpoint(shipped(shipped_network_file(name))), name=f"{name} metric network")


def network_of_checkpoint(path: Path) -> Network:
    """A network from a checkpoint of `rdd extractor` (its pooled features count) or `rdd metric-network`."""
    tensors, info = load_checkpoint(path)
    if info.get("kind") == "metric network":
        # float64, so that scores do not depend on how images are split into batches; in this layout it is faster on a CPU
        network = metric_network_of(tensors).to(torch.float64, memory_format=torch.channels_last)
        name, features, shape = "metric network", network.features, network.shape
    elif info.get("kind") == "extractor":
        kind = info["facts"]["extractor"]["name"]
        if "space" in info:
            raise UserError(f"{path} holds a classifier of latents, and images are scored: name one of images")
        if kind not in EXTRACTORS:
            raise UserError(f"{path} holds {kind}, which scores nothing: use a classifier made by `rdd extractor`")
        name = f"extractor {kind}" + (f", {info['test_accuracy']:.1%} right" if "test_accuracy" in info else "")
        network = extractor_of(kind, tensors)
        features, shape = network.channels, (network.image_channels, 0, 0)
    else:
        raise UserError(f"{path} holds no network that scores: use one made by `rdd extractor` or `rdd metric-network`")
    return Network(name, _file_sha256(path), ClassifierFeatures(network), features, shape)


def inception_weights(download: bool = True, timeout: float = 30.0) -> Path:
    """Find Inception's published weights in torch's cache or the data folder, else download them (95 MB).

    Raises UserError for a file that is not the published one, and if the download fails or `timeout` seconds pass without
    an answer.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for path in (folder / name for folder in (cache, data_folder()) for name in INCEPTION_FILES):
        if path.is_file():
            if _file_sha256(path) != INCEPTION_SHA256:
                raise UserError(f"{path} is damaged (its sha256 is not {INCEPTION_SHA256[:8]}...): delete it")
            return path
    path, error = cache / INCEPTION_FILES[0], None
    if not download:
        raise UserError(f"Inception's weights are missing: put {URL_INCEPTION_V3} at {path}, or {MEANWHILE}")
    try:
        if rank() == 0:
            fetch(URL_INCEPTION_V3, path, INCEPTION_SHA256, timeout)
    except UserError as met:
        error = UserError(f"Inception's weights are missing: {met}, or {MEANWHILE}")
    together(error)
    return path


def inception_network(path: Path | None = None, layer: str = "2048", logits: bool = True) -> Network:
    """Inception v3 of FID (default: the published weights), with the features of one of torch-fidelity's layers.

    logits=False leaves out the class predictions, which only the inception score needs, and the layers above `layer`. No
    code in the file is run. Raises UserError if the file holds something else.
    """
    path = path or inception_weights()
    try:
        state, again = torch.load(path, map_location="cpu", weights_only=True), io.BytesIO()
        torch.save(state, again)  # torch-fidelity would unpickle the file as it is; this copy holds tensors alone
        again.seek(0)
        layers = [layer, "logits_unbiased"] if logits else [layer]
        module = InceptionFeatures("rddlib-inception", layers, feature_extractor_weights_path=again)
    except (OSError, EOFError, RuntimeError, UnpicklingError, AttributeError, TypeError, KeyError) as error:
        reason = type(error).__name__
        raise UserError(f"{path} holds no Inception v3 of FID ({reason}): get {URL_INCEPTION_V3}") from error
    sha256 = _file_sha256(path)
    published = "" if sha256 == INCEPTION_SHA256 else ", other weights than FID's"
    name = f"Inception v3{'' if layer == '2048' else f', layer {layer}'}{published}"
    return Network(name, sha256, module, int(layer), (3, 0, 0), resizes=True)


def find_network(choice: str, shape: tuple[int, int, int]) -> Network:
    """The network of this name for images of (C, H, W); UserError if there is none.

    choice: one of SHIPPED, "inception", a checkpoint of `rdd extractor` or `rdd metric-network`, a .pth file of Inception's
    weights, or "" for the default: the network of SHIPPED that takes images of this shape, else Inception.
    """
    choice = choice or SHIPPED.get(tuple(shape), "inception")
    if choice in SHIPPED.values():
        return shipped_network(choice)
    if choice == "inception":
        if shape[0] != 3:
            raise UserError(f"grayscale images cannot be scored by Inception: convert them to colour, or {MEANWHILE}")
        return inception_network()
    if not Path(choice).is_file():
        raise UserError(
            f"--metric-network {choice}: no such file; known are {', '.join(SHIPPED.values())}, inception and checkpoints"
        )
    try:
        return (inception_network if choice.endswith(".pth") else network_of_checkpoint)(Path(choice))
    except DamagedFile as error:
        raise UserError(f"{error.fault}: name another --metric-network") from error
