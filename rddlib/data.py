"""Images to learn from, held as uint8; and a Gaussian mixture whose denoiser is known exactly, to check the maths with."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rddlib.errors import UserError
from rddlib.schedule import Schedule

DIGITS_SPLITS = {"extractor": (0, 700), "metric": (700, 1500), "test": (1500, 1797)}
SPLIT_SEED = 20240


@dataclass(frozen=True)
class ImageDataset:
    """Images uint8 [M, C, H, W] with labels int64 [M]."""

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, indices: Tensor) -> Tensor:
        """The chosen images as float32 in [-1, 1], [len(indices), C, H, W]."""
        return self.images[indices].float() / 127.5 - 1

    def to(self, device) -> "ImageDataset":
        return ImageDataset(self.name, self.images.to(device), self.labels.to(device), self.num_classes)

    @cached_property
    def sha256(self) -> str:
        """Of the pixel values: which images a number was measured against."""
        return hashlib.sha256(self.images.cpu().numpy().tobytes()).hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest level."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _digits() -> ImageDataset:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    levels = np.rint(bundled.images * (255 / 16)).astype(np.uint8)  # the set has 17 grey levels, 0..16
    return ImageDataset("digits", torch.from_numpy(levels)[:, None], torch.from_numpy(bundled.target).long(), 10)


def load_dataset(name: str, split: str = "all") -> ImageDataset:
    """Load a data set by name.

    "digits": scikit-learn's 1,797 real 8x8 grey images (UCI, test part), bundled with it, so nothing is downloaded.
    split: "all", or one of three disjoint parts: "extractor" (700 images), "metric" (800, for the network that scores,
    so that it shares no image with the extractor) and "test" (297). Raises UserError for unknown names.
    """
    if name != "digits":
        raise UserError(f"data set {name!r} cannot be loaded by this version: known are digits")
    dataset = _digits()
    if split == "all":
        return dataset
    if split not in DIGITS_SPLITS:
        raise UserError(f"unknown split {split!r} of digits: known are all, {', '.join(DIGITS_SPLITS)}")
    start, stop = DIGITS_SPLITS[split]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(SPLIT_SEED))[start:stop]
    return ImageDataset(f"digits[{split}]", dataset.images[order], dataset.labels[order], 10)


class GaussianMixture:
    """A mixture of Gaussians over [C, H, W] (or [D]) with its exact denoiser: ground truth for samplers and targets.

    weights [K] (positive, normalised here), means [K, *shape], covariances [K, D, D] with D = prod(shape); float64.
    Raises ValueError where the shapes disagree or a covariance is not positive semi-definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        weights, means, covariances = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
        self.shape = means.shape[1:]
        size = self.shape.numel()
        if weights.shape != means.shape[:1] or covariances.shape != (len(weights), size, size):
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and covariances "
                f"{tuple(covariances.shape)} disagree, expected [K], [K, *shape], [K, D, D] with D = {size}"
            )
        self.weights = weights / weights.sum()
        self.means = means.flatten(1)  # [K, D]
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(covariances)  # [K, D], [K, D, D]
        if (self.eigenvalues < -1e-10).any():
            raise ValueError("covariances must be positive semi-definite")
        self.eigenvalues = self.eigenvalues.clamp(min=0)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw [count, *shape], float64."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        scaled = white * self.eigenvalues[component].sqrt()
        x = self.means[component] + torch.einsum("nde,ne->nd", self.eigenvectors[component], scaled)
        return x.unflatten(1, self.shape)

    def denoise(self, z: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """E[x | z_t], exactly: z_t | k ~ N(alpha mu_k, alpha^2 Sigma_k + sigma^2 I), averaged over the posterior of k.

        z [N, *shape], t number or [N] in (0, 1] -> [N, *shape] in z's dtype (computed in float64).
        """
        alpha = schedule.alpha(t).expand(len(z))[:, None, None]  # [N, 1, 1]
        variance = schedule.sigma(t).expand(len(z))[:, None, None] ** 2
        offset = z.double().flatten(1)[:, None] - alpha * self.means  # [N, K, D]
        projected = torch.einsum("kde,nkd->nke", self.eigenvectors, offset)
        spread = alpha**2 * self.eigenvalues + variance  # [N, K, D]
        log_density = -0.5 * (projected**2 / spread + spread.log()).sum(-1) + self.weights.log()  # [N, K]
        posterior = log_density.softmax(dim=1)
        gain = alpha * self.eigenvalues / spread * projected
        x = self.means + torch.einsum("kde,nke->nkd", self.eigenvectors, gain)  # [N, K, D]
        return torch.einsum("nk,nkd->nd", posterior, x).reshape(z.shape).to(z.dtype)

    def flow_endpoint(self, z: Tensor, t: float, schedule: Schedule) -> Tensor:
        """Where the probability-flow ODE takes z_t at time 0, in closed form: what DDIM tends to with many steps.

        Only for a single Gaussian, where each eigen-coordinate scales with its standard deviation:
        x = mu + U sqrt(lambda / (alpha^2 lambda + sigma^2)) U^T (z_t - alpha mu). Raises ValueError for a mixture.
        """
        if len(self.weights) != 1:
            raise ValueError("the flow has a closed form for one Gaussian only")
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        values, vectors, mean = self.eigenvalues[0], self.eigenvectors[0], self.means[0]
        scale = (values / (alpha**2 * values + sigma**2)).sqrt()
        offset = z.double().flatten(1) - alpha * mean
        return (mean + (offset @ vectors * scale) @ vectors.T).reshape(z.shape).to(z.dtype)
