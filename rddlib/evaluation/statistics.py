"""Statistics that scores follow from, summed batch by batch in float64: memory does not grow with the images."""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from rddlib.evaluation.images import UNREADABLE
from rddlib.utils.errors import UserError

SPLITS, SHUFFLE_SEED = 10, 2020  # torch-fidelity's


@dataclass(frozen=True)
class Gaussian:
    """Mean mu [D] and covariance sigma [D, D] of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


def gaussian_of(parts: Iterable[tuple[int, Tensor]]) -> Gaussian:
    """The unbiased Gaussian of at least two rows that come as (first row, rows [n, D]) part by part, each centred before it is
    squared (Chan et al. 1983)."""
    count, mean, scatter = 0, 0.0, 0.0
    for _, rows in parts:
        rows = rows.double()
        own, total = rows.mean(0), count + len(rows)
        shift, centred = own - mean, rows - own
        scatter = scatter + (centred.T @ centred + torch.outer(shift, shift) * (count * len(rows) / total))
        mean, count = mean + shift * (len(rows) / total), total
    return Gaussian(mean.numpy(), (scatter / (count - 1)).numpy())


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (Eq. 6, Heusel et al. 2017), by torch-fidelity."""
    return fid_statistics_to_metric(vars(a), vars(b), verbose=False)[KEY_METRIC_FID]


def inception_score(parts: Iterable[tuple[int, Tensor]], samples: int, shuffled: bool) -> tuple[float, float]:
    """(mean, standard deviation) over SPLITS of the images, which come as (first image, logits [n, K]) part by part.

    exp of the mean KL divergence of an image's class predictions from their average over its split (Salimans et al. 2016).
    Computed as in torch-fidelity, but from running sums: an image's split is known from its number.
    """
    order = np.random.RandomState(SHUFFLE_SEED).permutation(samples) if shuffled else np.arange(samples)
    splits = torch.empty(samples, dtype=torch.long)
    for split in range(SPLITS):
        splits[torch.from_numpy(order[split * samples // SPLITS : (split + 1) * samples // SPLITS])] = split
    negentropy, average = torch.zeros(SPLITS, dtype=torch.float64), None
    for start, logits in parts:
        p = logits.double().softmax(1)
        split = splits[start : start + len(p)]
        average = torch.zeros(SPLITS, p.shape[1], dtype=torch.float64) if average is None else average
        negentropy.index_add_(0, split, -torch.special.entr(p).sum(1))
        average.index_add_(0, split, p)
    count = torch.bincount(splits, minlength=SPLITS)
    scores = (negentropy / count + torch.special.entr(average / count[:, None]).sum(1)).exp()
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


def holds_statistics(path: Path) -> bool:
    """Whether an .npz holds reference statistics rather than images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
