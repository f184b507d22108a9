"""Figures, each a function from numbers to a matplotlib Figure: notebooks, widgets and the report draw the same ones."""

import io
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rddlib.schedule import Schedule

# Distinguishable in gray too: each method has its own marker and dash besides its colour.
STYLES = {
    "ddim": dict(color="0.35", marker="s", linestyle=":"),
    "pd": dict(color="#0072B2", marker="o", linestyle="-"),
    "cfd": dict(color="#E69F00", marker="^", linestyle="--"),
    "rcfd": dict(color="#009E73", marker="v", linestyle="-."),
    "rdd": dict(color="#D55E00", marker="D", linestyle="-"),
}
NAMES = {"ddim": "DDIM", "pd": "PD", "cfd": "CFD", "rcfd": "RCFD", "rdd": "RDD"}


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> one array [rows*(H+gap), columns*(W+gap), 3] in [0, 1], white between them."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), dtype=np.float32)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).expand(n, 3, h, w).permute(0, 2, 3, 1).numpy()
    for i in range(n):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = pixels[i]
    return canvas


def show_images(ax, images: Tensor, columns: int, title: str = "") -> None:
    """Draw a tiling of images without ticks."""
    ax.imshow(tile(images, columns), interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def image_rows(rows: dict[str, Tensor], title: str = "", width: float = 8.0) -> Figure:
    """One labelled row of images for each entry of {label: [N, C, H, W]}; the same column is the same noise or image."""
    count, left, head = max(len(images) for images in rows.values()), 0.17, 0.35
    row_height = width * (0.99 - left) / count * 1.06  # square images and a little air
    height = row_height * len(rows) + head
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, height), squeeze=False)
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        show_images(ax, images, count)
        ax.text(-0.015, 0.5, label, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11, y=1 - 0.1 / height, va="top")
    figure.subplots_adjust(left=left, right=0.99, top=1 - head / height, bottom=0, hspace=0.06)
    return figure


def schedule_figure(schedule: Schedule) -> Figure:
    """alpha, sigma and log SNR against t."""
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    left.plot(t, schedule.alpha(t), label=r"$\alpha_t$ (image)", color="#0072B2")
    left.plot(t, schedule.sigma(t), label=r"$\sigma_t$ (noise)", color="#D55E00", linestyle="--")
    left.set(xlabel="time t", ylabel="rate", title="Signal and noise")
    left.legend()
    right.plot(t[1:-1], schedule.log_snr(t[1:-1]), color="0.2")
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xlabel="time t", ylabel="log SNR (nats)", title=r"$\log(\alpha_t^2/\sigma_t^2)$")
    return figure


def trajectory_figure(paths: Tensor, target: Tensor, title: str) -> Figure:
    """2-D sampling paths [steps+1, N, 2] from noise (dots) to their ends, over samples of the target [M, 2]."""
    figure, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    ax.scatter(*target.T, s=3, color="0.8", label="data")
    ax.plot(paths[:, :, 0], paths[:, :, 1], color="#0072B2", linewidth=0.7, alpha=0.8)
    ax.scatter(*paths[0].T, s=10, facecolors="none", edgecolors="0.3", label="noise, t = 1")
    ax.scatter(*paths[-1].T, s=14, color="#D55E00", label="sample, t = 0", zorder=3)
    ax.set(xlabel="first coordinate", ylabel="second coordinate", title=title, aspect="equal")
    ax.legend(fontsize=8)
    return figure


def error_figure(steps: Sequence[int], errors: dict[str, Sequence[float]], title: str) -> Figure:
    """Errors against step counts on log axes, with a line of slope -1 to compare with."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for (label, values), style in zip(errors.items(), STYLES.values(), strict=False):
        ax.loglog(steps, values, label=label, **style)
    first = next(iter(errors.values()))
    ax.loglog(steps, [first[0] * steps[0] / n for n in steps], color="0.7", label="slope -1 (first order)")
    ax.set(xlabel="steps N", ylabel="root mean square error", title=title)
    ax.legend(fontsize=8)
    return figure


def loss_figure(history: Sequence[dict], title: str) -> Figure:
    """A training loss against iterations."""
    figure, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
    ax.semilogy([h["step"] for h in history], [h["loss"] for h in history], color="#0072B2")
    ax.set(xlabel="iteration", ylabel="loss", title=title)
    return figure


def matrices_figure(matrices: dict[str, Tensor], title: str, label: str, shared: bool = True) -> Figure:
    """Square matrices side by side on one colour scale (or one each)."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(3 * len(matrices) + 0.6, 3), layout="constrained")
    low = min(float(m.min()) for m in matrices.values())
    high = max(float(m.max()) for m in matrices.values())
    for ax, (name, matrix) in zip(np.atleast_1d(axes), matrices.items(), strict=True):
        limits = dict(vmin=low, vmax=high) if shared else {}
        drawn = ax.imshow(matrix.detach().cpu(), cmap="viridis", interpolation="nearest", **limits)
        ax.set(title=name, xlabel="pixel b", ylabel="pixel a")
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
        if not shared:
            figure.colorbar(drawn, ax=ax, shrink=0.75, label=label)
    if shared:
        figure.colorbar(drawn, ax=axes, shrink=0.75, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def scores_figure(table: pd.DataFrame, samples: int) -> Figure:
    """FID and pFD against sampling steps, a line a method; seeds as a band from lowest to highest."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = {"fid": f"FID (digits metric network, {samples} samples)", "pfd": "pFD (raw pixels)"}
    for ax, column in zip(axes, labels, strict=True):
        for method, rows in table.groupby("method", sort=False):
            by_steps = rows.groupby("steps")[column]
            steps, mean = list(by_steps.groups), by_steps.mean()
            ax.plot(steps, mean, label=NAMES[method], **STYLES[method])
            ax.fill_between(steps, by_steps.min(), by_steps.max(), color=STYLES[method]["color"], alpha=0.2)
        ticks = sorted(table["steps"].unique())
        ax.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=labels[column], xticks=ticks)
        ax.set_xticklabels(ticks)
        ax.xaxis.minorticks_off()
        ax.set_title("Lower is better", fontsize=10)
    axes[0].legend(fontsize=8)
    return figure


def lines_figure(
    x: Sequence[float],
    curves: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    xlog: bool = False,
    ylog: bool = False,
) -> Figure:
    """Curves {label: values} over common x (None where a value is missing), told apart by marker and dash too.

    A label that is a method's key ("pd", "rdd") takes that method's name and style.
    """
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    every = max(1, len(x) // 12)
    for (label, values), style in zip(curves.items(), STYLES.values(), strict=False):
        values = [math.nan if v is None else float(v) for v in values]
        ax.plot(x, values, label=NAMES.get(label, label), markersize=4, markevery=every, **STYLES.get(label, style))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if xlog:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{value:g}" for value in x])
    if ylog:
        ax.set_yscale("log")
    if len(curves) > 1:
        ax.legend(fontsize=8)
    return figure


def _heat_map(ax, values: Tensor, title: str, form: str, **limits):
    """An [H, W] map with its numbers written in, where they fit."""
    values = values.detach().float().cpu()
    drawn = ax.imshow(values, cmap="gray", interpolation="nearest", **limits)
    if values.numel() <= 16:
        low, high = drawn.get_clim()
        for (row, column), value in np.ndenumerate(values.numpy()):
            shade = "black" if value > (low + high) / 2 else "white"
            ax.text(column, row, format(value, form), ha="center", va="center", fontsize=7, color=shade)
    ax.set(title=title, xlabel="column", ylabel="row", xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    ax.title.set_fontsize(10)
    return drawn


def maps_figure(maps: dict[str, Tensor], title: str, label: str, form: str = ".2f") -> Figure:
    """Maps {name: [H, W]} side by side on one gray scale; label: what the values are, with their unit."""
    figure, axes = plt.subplots(1, len(maps), figsize=(2.6 * len(maps) + 0.7, 2.9), layout="constrained")
    low = min(float(m.min()) for m in maps.values())
    high = max(float(m.max()) for m in maps.values())
    for ax, (name, values) in zip(np.atleast_1d(axes), maps.items(), strict=True):
        drawn = _heat_map(ax, values, name, form, vmin=low, vmax=high)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def relation_figure(images: Tensor, pixel: tuple[int, int], teacher: Tensor, student: Tensor, title: str) -> Figure:
    """How one pixel of a feature map relates to the pixels of another image's: teacher, student and difference.

    images [2, C, H, W]: the image that holds the pixel and the one looked at; pixel (row, column) in the feature map;
    teacher, student [h, w]: its relations as shares of 1, drawn in per cent.
    """
    figure, axes = plt.subplots(1, 5, figsize=(12, 3))
    figure.subplots_adjust(
        left=0.04, right=0.99, top=0.8, bottom=0.15, wspace=0.28
    )  # a slider must not wait for a solver
    for ax, image, name in zip(axes, images, ("image i", "image j"), strict=False):
        ax.imshow(tile(image[None], 1), extent=(0, teacher.shape[1], teacher.shape[0], 0), interpolation="nearest")
        ax.set(xlabel="column of the map", ylabel="row of the map")
        ax.set_title(name, fontsize=10)
    outline = dict(fill=False, edgecolor="#D55E00", linewidth=2.5)
    axes[0].add_patch(plt.Rectangle(pixel[::-1], 1, 1, **outline))
    low, high = (100 * float(pick(teacher, student)) for pick in (_least, _most))
    for ax, values, name in zip(axes[2:4], (teacher, student), ("teacher", "student"), strict=True):
        _heat_map(ax, 100 * values, f"{name}, % of the row", ".2f", vmin=low, vmax=high)
    _heat_map(axes[4], 100 * (student - teacher), "student - teacher, % points", "+.2f")
    figure.suptitle(title, fontsize=11)
    return figure


def _least(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a.min(), b.min())


def _most(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a.max(), b.max())


def queue_figure(points: Tensor, groups: Tensor, chosen: Tensor, title: str) -> Figure:
    """The queue's rows as points [n, 2], their group's number as marker; chosen [n] bool: those that were drawn."""
    figure, ax = plt.subplots(figsize=(6.2, 4.6), layout="constrained")
    points, groups, chosen = points.detach().cpu(), groups.cpu(), chosen.cpu()
    for group in groups.unique().tolist():
        for drawn, colour, size in ((False, "0.7", 22), (True, "#0072B2", 48)):
            shown = points[(groups == group) & (chosen == drawn)]
            ax.scatter(shown[:, 0], shown[:, 1], marker=f"${group}$", color=colour, s=size, linewidths=0.3)
    ax.scatter([], [], marker="$0$", color="0.7", label=f"held, not drawn ({int((~chosen).sum())})")
    ax.scatter([], [], marker="$0$", color="#0072B2", s=40, label=f"drawn ({int(chosen.sum())})")
    ax.set(xlabel="first principal component", ylabel="second principal component", title=title)
    ax.legend(fontsize=8, loc="best")
    return figure
