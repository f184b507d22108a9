"""Classifier entropy at each sampling step as a figure, after Fig. 2 of Sun et al. 2023."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

# Told apart in gray too: each run has its marker and dash, and more steps are darker.
MARKERS = "oDs^vP*X"
DASHES = ("-", "--", "-.", ":")


def entropy_figure(curves: dict[int, Sequence[float]], classes: int, images: int) -> Figure:
    """Plot the entropy of the predicted class against time, one curve per number of steps (Fig. 2, Sun et al. 2023).

    Args:
        curves: {steps: entropy_by_step(...)} in nats, all of one model and the same noise.
        classes: the classifier's number of classes; log(classes) is the largest possible entropy.
        images: the number of images averaged over.

    Time runs from noise on the left to the image on the right; at t = 1 all runs see the same z. The axis is logarithmic
    if all entropies are below log(classes) / 4. Raises UserError if there is no curve, or if a curve does not have one
    value per step.
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


def _scale(ax: Axes, entropies: list[float], most: float) -> None:
    """Set a linear axis from 0 to log(classes), or a logarithmic one if all entropies are small."""
    if 0 < max(entropies) < most / 4:
        least = min(value for value in entropies if value > 0)
        ax.set_yscale("log")
        ax.set_ylim(max(least, 1e-4) / 2, 1.8 * most)
    else:
        ax.set_ylim(0, 1.1 * most)


def _draw_run(ax: Axes, place: int, runs: int, steps: int, values: list[float]) -> None:
    """Draw one run; runs of fewer steps get larger, hollow markers, so that all remain visible at t = 1."""
    if len(values) != steps or steps < 1:
        raise UserError(f"the run of {counted(steps)} has {len(values)} entropies: pass one for each step")
    times = [(steps - k) / steps for k in range(steps)]
    style = dict(color=plt.cm.cividis(0.7 * place / max(runs - 1, 1)), linestyle=DASHES[place % len(DASHES)])
    marker = dict(marker=MARKERS[place % len(MARKERS)], markersize=5 + 3 * place, markerfacecolor="none")
    ax.plot(times, values, label=f"{steps}: {values[-1]:.2f}", linewidth=1.3, **style, **marker)
