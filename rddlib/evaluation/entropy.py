"""How sure a classifier is of the x predicted at each sampling step (Fig. 2, Sun et al. 2023), and that figure."""

import math
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.losses import entropy_loss
from rddlib.utils.errors import UserError

# Told apart in gray too: each run has its marker and dash, and more steps are darker.
MARKERS = "oDs^vP*X"
DASHES = ("-", "--", "-.", ":")


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
    """Mean entropy, in nats, of softmax(classify(x)) for the x predicted at each of `steps` DDIM steps.

    Eq. 5, Sun et al. 2023, averaged over the images that grow from noise [N, C, H, W]; y [N] labels or None; clip holds
    each x in [-1, 1], for the sampler and the classifier alike; classify: images [n, C, H, W] -> logits [n, classes],
    in eval mode. Returns float64 [steps] on the CPU, in [0, log(classes)], first the step at t = 1, last at t = 1/steps.
    The same noise and denoiser with fewer steps give the figure's other runs. Memory grows with batch_size, not with N.
    Raises UserError for an empty noise, labels of another number, or steps or batch_size below 1.
    """
    _check(noise, steps, y, batch_size)
    totals = torch.zeros(steps, dtype=torch.float64)
    for first in range(0, len(noise), batch_size):
        rows = slice(first, first + batch_size)
        z = noise[rows]

        def add(k: int, t: float, z_t: Tensor, x: Tensor, count: int = len(z)) -> None:
            totals[k] += count * entropy_loss(classify(x).cpu().double())

        ddim_sample(denoiser, z, steps, y=None if y is None else y[rows], clip=clip, callback=add)
    return totals / len(noise)


def _check(noise: Tensor, steps: int, y: Tensor | None, batch_size: int) -> None:
    if len(noise) == 0:
        raise UserError("the noise holds no image: pass at least one")
    if y is not None and len(y) != len(noise):
        raise UserError(f"there are {len(y)} labels for {len(noise)} images: pass one label for each")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: choose at least 1")


def entropy_figure(curves: dict[int, Sequence[float]], classes: int, images: int) -> Figure:
    """Entropy of the predicted x against time, a curve for each number of steps, as in Fig. 2 of Sun et al. 2023.

    curves {steps: entropy_by_step(...)}, in nats, all of one model and the same noise; classes: of the classifier, whose
    log is the most an entropy can be; images: how many were averaged. Time runs from noise on the left to the image on
    the right; at t = 1 all runs see the same z. The axis is logarithmic where all entropies are below a quarter of
    that log. Raises UserError where there is no curve or one has not one value for each step.
    """
    if not curves:
        raise UserError("there is no run to draw: pass the entropies of at least one")
    figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for place, (steps, values) in enumerate(sorted(curves.items(), reverse=True)):
        _draw_run(ax, place, len(curves), steps, [float(value) for value in values])
    most = math.log(classes)
    _scale(ax, [float(value) for values in curves.values() for value in values], most)
    ax.axhline(most, color="0.6", linewidth=0.8)
    ax.annotate(
        f"log {classes} = {most:.2f}: all classes equally likely",
        (0.99, most),
        (0, 2),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    ax.set(xlim=(1.05, 0), xlabel="time t of the prediction (noise at 1, image at 0)")
    ax.set(ylabel="entropy of the predicted class (nats)")
    ax.set_title(f"Classifier entropy at each sampling step\nmean of {images:,} images, the same noise", fontsize=11)
    figure.legend(
        loc="outside right upper", fontsize=9, title="steps: last entropy", title_fontsize=9, labelspacing=0.8
    )
    return figure


def _scale(ax, entropies: list[float], most: float) -> None:
    """Linear from 0 to log(classes), or logarithmic where a linear axis would press all curves onto its foot."""
    if 0 < max(entropies) < most / 4:
        least = min(value for value in entropies if value > 0)
        ax.set_yscale("log")
        ax.set_ylim(max(least, 1e-4) / 2, 1.8 * most)
    else:
        ax.set_ylim(0, 1.1 * most)


def _draw_run(ax, place: int, runs: int, steps: int, values: list[float]) -> None:
    """One run's curve; a run of fewer steps gets a larger, hollow marker, so that the first ones nest at t = 1."""
    if len(values) != steps or steps < 1:
        raise UserError(f"the run of {steps} steps has {len(values)} entropies: pass one for each step")
    times = [(steps - k) / steps for k in range(steps)]
    style = dict(color=plt.cm.cividis(0.7 * place / max(runs - 1, 1)), linestyle=DASHES[place % len(DASHES)])
    marker = dict(marker=MARKERS[place % len(MARKERS)], markersize=5 + 3 * place, markerfacecolor="none")
    ax.plot(times, values, label=f"{steps}: {values[-1]:.2f}", linewidth=1.3, **style, **marker)
