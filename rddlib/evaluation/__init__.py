"""Scores through torch-fidelity, each with a receipt that says how it was measured.

On digits the features are those of this project's metric network, so a score is called "FID (digits metric network, n
samples)", never plain FID; beside it stands pFD, the Fréchet distance on raw pixels, which no network can flatter.
"""

import dataclasses
import hashlib
import io
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset

import rddlib
from rddlib.checkpoint import load_checkpoint, write_atomically
from rddlib.data import ImageDataset, grid_png, to_uint8
from rddlib.denoiser import Denoiser
from rddlib.errors import UserError
from rddlib.extractor import MetricNetwork
from rddlib.progress import Progress
from rddlib.sampling import ddim_sample

DIGITS_NETWORK = "digits_metric_network.safetensors"


def shipped(relative: str) -> Path:
    """A file that comes with the project: from the checkout's top folder, else from inside the installed package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent, package / "_shipped"):
        if (folder / relative).exists():
            return folder / relative
    raise UserError(f"{relative} is missing from this installation: install rddlib again")


def load_metric_network(path: Path | None = None) -> MetricNetwork:
    """The network that scores digits, from its checkpoint (default: the shipped one), checksum verified."""
    path = path or shipped(f"data/{DIGITS_NETWORK}")
    tensors, info = load_checkpoint(path)
    if info.get("kind") != "metric network":
        raise UserError(f"{path} holds no metric network: make one with `rdd metric-network`")
    network = MetricNetwork()
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


class _NetworkFeatures(torch_fidelity.FeatureExtractorBase):
    """torch-fidelity's view of the metric network: uint8 [B, C, H, W] -> features and logits."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
        super().__init__(name, features_list)
        self.network = load_metric_network(feature_extractor_weights_path and Path(feature_extractor_weights_path))

    def forward(self, images: Tensor):
        features, logits = self.network(images.float() / 127.5 - 1)
        found = {"features": features.double(), "logits": logits.double()}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False


class _PixelFeatures(torch_fidelity.FeatureExtractorBase):
    """Raw pixels in [-1, 1] as features: the Fréchet distance on them is pFD."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    def forward(self, images: Tensor):
        return (images.double().flatten(1) / 127.5 - 1,)

    @staticmethod
    def get_provided_features_list():
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    @staticmethod
    def can_be_compiled():
        return False


_REGISTERED = {"rddlib-network": _NetworkFeatures, "rddlib-pixels": _PixelFeatures}
for _name, _extractor in _REGISTERED.items():
    if _name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(_name, _extractor)


class _Images(Dataset):
    """Bare uint8 [C, H, W] tensors, as torch-fidelity wants them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Scores:
    """fid: Fréchet distance on the network's features; pfd: on raw pixels in [-1, 1]; inception_score: exp of the mean
    KL between the network's predictions and their average, mean over 10 shuffled splits."""

    fid: float
    pfd: float
    inception_score: float


def score(images: Tensor, reference: ImageDataset, network: Path | None = None, batch_size: int = 500) -> Scores:
    """Score generated images against a data set.

    images: uint8 [M, C, H, W], the reference's shape; network: a metric network's checkpoint (default: the shipped one).
    Raises UserError for another dtype or shape, or fewer images than features.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != reference.images.shape[1:]:
        raise UserError(
            f"images are {images.dtype} {tuple(images.shape)}, the reference {reference.name} is uint8 "
            f"[M, {', '.join(map(str, reference.images.shape[1:]))}]: convert with to_uint8 and match the shape"
        )
    if len(images) < MetricNetwork.features + 1:
        raise UserError(
            f"{len(images)} images cannot fill a covariance of {MetricNetwork.features} features: "
            f"score at least {MetricNetwork.features + 1}"
        )
    common = dict(
        input1=_Images(images.cpu()), input2=_Images(reference.images.cpu()), batch_size=batch_size, cuda=False,
        fid=True, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    weights = {"feature_extractor_weights_path": str(network)} if network else {}
    on_features = torch_fidelity.calculate_metrics(feature_extractor="rddlib-network", isc=True, **weights, **common)
    on_pixels = torch_fidelity.calculate_metrics(feature_extractor="rddlib-pixels", **common)
    fid = "frechet_inception_distance"
    return Scores(on_features[fid], on_pixels[fid], on_features["inception_score_mean"])


def sample_batches(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    count: int,
    steps: int,
    *,
    seed: int,
    batch_size: int = 500,
    clip: bool = True,
    device: torch.device | str = "cpu",
    label: str = "sampling",
    done: Callable[[int], bool] = lambda batch: False,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Draw images with DDIM, batch after batch: (batch number, uint8 images [B, *shape], labels [B] or None).

    The same seed gives the same noise (and, for a class-conditional denoiser, the same random labels) to every method and
    batch size. Batches for which done(number) are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *shape, generator=generator)
    labels = torch.randint(denoiser.num_classes, (count,), generator=generator) if denoiser.num_classes else None
    for batch in Progress(label, -(-count // batch_size), unit="batches", quiet=True):
        if done(batch):
            continue
        rows = slice(batch * batch_size, (batch + 1) * batch_size)
        y = None if labels is None else labels[rows]
        x = ddim_sample(denoiser, noise[rows].to(device), steps, y=None if y is None else y.to(device), clip=clip)
        yield batch, to_uint8(x).cpu(), y


def sample_images(denoiser: Denoiser, shape: tuple[int, int, int], count: int, steps: int, **options) -> Tensor:
    """All images of `sample_batches`, uint8 [count, *shape]; the options are its own."""
    return torch.cat([images for _, images, _ in sample_batches(denoiser, shape, count, steps, **options)])


def draw_to_file(
    denoiser: Denoiser, path: Path, count: int, steps: int, *, seed: int, batch_size: int = 500, clip: bool = True
) -> Path:
    """Draw images into an .npz in ADM's layout, arr_0 [count, H, W, C] uint8 and arr_1 labels [count] where there are
    classes, and a picture of the first 64 beside it, whose path is returned.

    Finished batches lie in a folder beside it until all are there, so a killed run goes on; an .npz that exists is kept.
    """
    parts, picture = path.with_suffix(".parts"), path.with_suffix(".png")
    if path.exists():
        return picture
    device, c = next(denoiser.parameters()).device, denoiser.network.config

    def part(batch: int) -> Path:
        return parts / f"{batch:06d}-of-{batch_size}.npz"

    drawn = sample_batches(denoiser, (c.image_channels, c.image_size, c.image_size), count, steps, seed=seed, clip=clip,
                           batch_size=batch_size, device=device, done=lambda batch: part(batch).exists())  # fmt: skip
    for batch, images, labels in drawn:
        _write_npz(part(batch), images.permute(0, 2, 3, 1), labels)
    finished = [np.load(part(batch)) for batch in range(-(-count // batch_size))]
    images = torch.from_numpy(np.concatenate([one["arr_0"] for one in finished]))  # [count, H, W, C]
    labels = np.concatenate([one["arr_1"] for one in finished]) if "arr_1" in finished[0] else None
    _write_npz(path, images, labels)
    write_atomically(picture, grid_png(images[:64].permute(0, 3, 1, 2)))
    shutil.rmtree(parts)
    return picture


def _write_npz(path: Path, images: Tensor, labels) -> None:
    content, columns = io.BytesIO(), {} if labels is None else {"arr_1": np.asarray(labels)}
    np.savez(content, arr_0=images.numpy(), **columns)
    write_atomically(path, content.getvalue())


@lru_cache
def git_commit() -> str:
    """The checkout's commit, with "+changes" where files differ from it; "unknown" outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """The processor or GPU that computes, and how many threads PyTorch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Receipt:
    """How a number was measured: all that must agree before two numbers are compared, and what made this one."""

    metric: str
    tool: str
    network_sha256: str
    rounding: str
    reference: str
    reference_sha256: str
    samples: int
    sampler: str
    steps: int
    clip: bool
    noise_seed: int
    checkpoint_sha256: str
    library: str
    git_commit: str
    torch: str
    precision: str
    training_precision: str
    hardware: str
    written: str

    @classmethod
    def make(
        cls,
        reference: ImageDataset,
        samples: int,
        steps: int,
        clip: bool,
        noise_seed: int,
        checkpoint: str,
        training_precision: str,
    ) -> "Receipt":
        """Fill in what follows from this machine and checkout."""
        return cls(
            metric=f"FID (digits metric network, {samples} samples)",
            tool=f"torch-fidelity {torch_fidelity.__version__}",
            network_sha256=hashlib.sha256(shipped(f"data/{DIGITS_NETWORK}").read_bytes()).hexdigest(),
            rounding="uint8",
            reference=f"{reference.name}, {len(reference)} images",
            reference_sha256=reference.sha256,
            samples=samples,
            sampler="DDIM, t = 1 .. 1/steps",
            steps=steps,
            clip=clip,
            noise_seed=noise_seed,
            checkpoint_sha256=checkpoint,
            library=f"rddlib {rddlib.__version__}",
            git_commit=git_commit(),
            torch=torch.__version__,
            precision="float32",
            training_precision=training_precision,
            hardware=hardware(),
            written=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)
