"""Entropy of a classifier's prediction at each sampling step (Fig. 2, Sun et al. 2023)."""

from collections.abc import Callable

import torch
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.losses import entropy_loss
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted


@torch.no_grad()
def entropy_by_step(
    denoiser: Denoiser,
    classify: Callable[[Tensor], Tensor],
    noise: Tensor,
    steps: int,
    *,
    y: Tensor | None = None,
    clip: bool = True,
    batch_size: int = 500,
) -> Tensor:
    """Mean entropy of softmax(classify(x)) for the x predicted at each DDIM step (Eq. 5, Sun et al. 2023), in nats.

    Args:
        classify: images [n, C, H, W] -> logits [n, classes], in eval mode.
        noise: the starting z [N, C, H, W]; the same noise with other numbers of steps gives the figure's other runs.
        y: labels [N], or None.
        clip: clamp each x to [-1, 1], both for the sampler and for the classifier.
        batch_size: images at a time; memory grows with it and not with N.

    Returns float64 [steps] on the CPU, each in [0, log(classes)], from t = 1 to t = 1/steps. Raises UserError for empty
    noise, a wrong number of labels, or steps or batch_size below 1.
    """
    if len(noise) == 0:
        raise UserError("the noise holds no image: pass at least one")
    if y is not None and len(y) != len(noise):
        raise UserError(f"{counted(len(y), 'label')} for {counted(len(noise), 'image')}: pass one label for each")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: choose at least 1")
    totals = torch.zeros(steps, dtype=torch.float64)
    for first in range(0, len(noise), batch_size):
        rows = slice(first, first + batch_size)
        z = noise[rows]

        def add(k: int, t: float, z_t: Tensor, x: Tensor, count: int = len(z)) -> None:
            totals[k] += count * entropy_loss(classify(x).cpu().double())

        ddim_sample(denoiser, z, steps, y=None if y is None else y[rows], clip=clip, callback=add)
    return totals / len(noise)
