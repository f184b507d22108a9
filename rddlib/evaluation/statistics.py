"""Sums from which scores follow, gathered batch by batch in float64: what is held does not grow with the images."""

import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError

SPLITS, SHUFFLE_SEED = 10, 2020  # torch-fidelity's


@dataclass(frozen=True)
class Gaussian:
    """mu [D] and sigma [D, D], float64, of features."""

    mu: np.ndarray
    sigma: np.ndarray


class Moments:
    """Mean and covariance of rows that come in parts, each centred before it is squared (Chan et al. 1983)."""

    def __init__(self, features: int):
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """rows: [n, D]."""
        rows = rows.double()
        mean, total = rows.mean(0), self.count + len(rows)
        shift, centred = mean - self.mean, rows - mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The unbiased estimates; at least two rows."""
        return Gaussian(self.mean.numpy(), (self.scatter / (self.count - 1)).numpy())


def gaussian_of(parts: Iterable[tuple[int, Tensor]]) -> Gaussian:
    """From (first row, rows [n, D]) part after part."""
    moments = None
    for _, rows in parts:
        moments = moments or Moments(rows.shape[1])
        moments.add(rows)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (Eq. 6, Heusel et al. 2017), by torch-fidelity."""
    statistics = [{"mu": g.mu, "sigma": g.sigma} for g in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


class InceptionScore:
    """exp of the mean KL between an image's class predictions and their average over its split (Salimans et al. 2016).

    As torch-fidelity computes it, from sums: which split an image belongs to is known before it is drawn.
    """

    def __init__(self, samples: int, shuffled: bool, splits: int = SPLITS):
        order = np.random.RandomState(SHUFFLE_SEED).permutation(samples) if shuffled else np.arange(samples)
        self._split = torch.empty(samples, dtype=torch.long)
        for split in range(splits):
            self._split[torch.from_numpy(order[split * samples // splits : (split + 1) * samples // splits])] = split
        self._negentropy, self._average = torch.zeros(splits, dtype=torch.float64), None

    def add(self, start: int, logits: Tensor) -> None:
        """logits [n, K] of images start, start + 1, ..."""
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
    """mu and sigma from an .npz as EDM and ADM publish them; UserError where it holds no such thing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: expected the arrays mu and sigma") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as reference statistics: {error}; get it again") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} has mu {list(mu.shape)} and sigma {list(sigma.shape)}: expected finite [D] and [D, D]")
    return Gaussian(mu, sigma)


def write_statistics(path: Path, gaussian: Gaussian) -> None:
    """As `read_statistics` reads them."""
    content = io.BytesIO()
    np.savez(content, mu=gaussian.mu, sigma=gaussian.sigma)
    write_atomically(path, content.getvalue())


def holds_statistics(path: Path) -> bool:
    """Whether an .npz holds reference statistics rather than images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
