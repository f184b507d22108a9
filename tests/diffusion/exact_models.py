"""Mixtures of Gaussians on images [1, 2, 2], and the denoisers that know them exactly."""

import torch

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import NO_CLASS

SCHEDULE = CosineSchedule()


def mixture(components=3):
    g = torch.Generator().manual_seed(0)
    root = torch.randn(components, 4, 4, generator=g, dtype=torch.float64) * 0.4
    means = torch.randn(components, 1, 2, 2, generator=g, dtype=torch.float64)
    covariances = root @ root.mT + 0.01 * torch.eye(4).double()
    return GaussianMixture(torch.rand(components, generator=g) + 0.2, means, covariances)


def component(gmm, k):
    """One of a mixture's Gaussians."""
    covariance = gmm.eigenvectors[k] * gmm.eigenvalues[k] @ gmm.eigenvectors[k].T
    return GaussianMixture([1.0], gmm.means[k].reshape(1, *gmm.shape), covariance[None])


def exact(gmm, schedule=SCHEDULE):
    """The denoiser E[x | z]."""
    return as_denoiser(lambda z, t: gmm.denoise(z, t, schedule), schedule)


def labelled(gmm, schedule=SCHEDULE):
    """E[x | z, y] as a function, a mixture's components being the classes; E[x | z] for NO_CLASS."""
    parts = {k: component(gmm, k) for k in range(len(gmm.weights))} | {NO_CLASS: gmm}

    def denoise(z, t, y):
        return torch.cat([parts[int(k)].denoise(z[n : n + 1], t[n : n + 1], schedule) for n, k in enumerate(y)])

    return denoise


def conditional(gmm, schedule=SCHEDULE):
    """The denoiser E[x | z, y], guided by two evaluations."""
    return as_denoiser(labelled(gmm, schedule), schedule, num_classes=len(gmm.weights))
