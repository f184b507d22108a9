"""Statistics that scores follow from, summed batch by batch in float64: memory does not grow with the images."""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from rddlib.evaluation.images import UNREADABLE, write_npz
from rddlib.utils.errors import UserError

SPLITS, SHUFFLE_SEED = 10, 2020  # torch-fidelity's


@dataclass(frozen=True)
class Gaussian:
    """Mean mu [D] and covariance sigma [D, D] of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


class Moments:
    """Running mean and covariance of rows added in parts, each centred before it is squared (Chan et al. 1983)."""

    def __init__(self, features: int):
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows [n, D]."""
        rows = rows.double()
        mean, total = rows.mean(0), self.count + len(rows)
        shift, centred = mean - self.mean, rows - mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The unbiased estimates; needs at least two rows."""
        return Gaussian(self.mean.numpy(), (self.scatter / (self.count - 1)).numpy())


def gaussian_of(parts: Iterable[tuple[int, Tensor]]) -> Gaussian:
    """The Gaussian of rows that come as (first row, rows [n, D]) part by part."""
    moments = None
    for _, rows in parts:
        moments = moments or Moments(rows.shape[1])
        moments.add(rows)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (Eq. 6, Heusel et al. 2017), by torch-fidelity."""
    return fid_statistics_to_metric(vars(a), vars(b), verbose=False)[KEY_METRIC_FID]


class InceptionScore:
    """exp of the mean KL divergence of an image's class predictions from their average over its split (Salimans et al. 2016).

    Computed as in torch-fidelity, but from running sums: an image's split is known from its number.
    """

    def __init__(self, samples: int, shuffled: bool, splits: int = SPLITS):
        order = np.random.RandomState(SHUFFLE_SEED).permutation(samples) if shuffled else np.arange(samples)
        self._split = torch.empty(samples, dtype=torch.long)
        for split in range(splits):
            self._split[torch.from_numpy(order[split * samples // splits : (split + 1) * samples // splits])] = split
        self._negentropy, self._average = torch.zeros(splits, dtype=torch.float64), None

    def add(self, start: int, logits: Tensor) -> None:
        """Add logits [n, K] of images start, start + 1, ..."""
        p = logits.double().softmax(1)
        split = self._split[start : start + len(p)]
        if self._average is None:
            self._average = torch.zeros(len(self._negentropy), p.shape[1], dtype=torch.float64)
        self._negentropy.index_add_(0, split, -torch.special.entr(p).sum(1))
        self._average.index_add_(0, split, p)

    def score(self) -> tuple[float, float]:
        """(mean, standard deviation) over the splits."""
        count = torch.bincount(self._split, minlength=len(self._negentropy))
        q = self._average / count[:, None]
        scores = (self._negentropy / count + torch.special.entr(q).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))


def read_statistics(path: Path) -> Gaussian:
    """Read mu and sigma from an .npz as EDM and ADM publish them; UserError if it holds no such arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: expected the arrays mu and sigma") from error
    except (*UNREADABLE, ValueError) as error:
        raise UserError(f"{path} cannot be read as reference statistics: {error}; get it again") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} has mu {list(mu.shape)} and sigma {list(sigma.shape)}: expected finite [D] and [D, D]")
    return Gaussian(mu, sigma)


def write_statistics(path: Path, gaussian: Gaussian) -> None:
    """Write mu and sigma as `read_statistics` reads them."""
    write_npz(path, **vars(gaussian))


def holds_statistics(path: Path) -> bool:
    """Whether an .npz holds reference statistics rather than images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
