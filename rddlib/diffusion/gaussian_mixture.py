"""A Gaussian mixture with its exact denoiser: ground truth for samplers and targets."""

import torch
from torch import Tensor

from rddlib.diffusion.schedule import Schedule


class GaussianMixture:
    """A mixture of K Gaussians over images [C, H, W] or vectors [D], in float64.

    weights [K] (positive, normalised here), means [K, *shape], covariances [K, D, D] with D = prod(shape).
    Raises ValueError if the shapes disagree or a covariance is not positive semi-definite.
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
        """Random draws [count, *shape], float64."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        scaled = white * self.eigenvalues[component].sqrt()
        x = self.means[component] + torch.einsum("nde,ne->nd", self.eigenvectors[component], scaled)
        return x.unflatten(1, self.shape)

    def denoise(self, z: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """E[x | z_t], exact: z_t | k ~ N(alpha mu_k, alpha^2 Sigma_k + sigma^2 I), averaged over the posterior of k.

        z [N, *shape], t a number or [N] in (0, 1] -> [N, *shape] in z's dtype (computed in float64).
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
        """The end at time 0 of the probability-flow ODE from z_t, in closed form: the limit of DDIM in many steps.

        For a single Gaussian only, where each eigen-coordinate scales with its standard deviation:
        x = mu + U sqrt(lambda / (alpha^2 lambda + sigma^2)) U^T (z_t - alpha mu). z, t as for `denoise`. Raises
        ValueError for a mixture.
        """
        if len(self.weights) != 1:
            raise ValueError("the flow has a closed form for one Gaussian only")
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        values, vectors, mean = self.eigenvalues[0], self.eigenvectors[0], self.means[0]
        scale = (values / (alpha**2 * values + sigma**2)).sqrt()
        offset = z.double().flatten(1) - alpha * mean
        return (mean + (offset @ vectors * scale) @ vectors.T).reshape(z.shape).to(z.dtype)
