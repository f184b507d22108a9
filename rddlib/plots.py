"""Figures, each a function from numbers to a matplotlib Figure: notebooks, widgets and the report draw the same ones."""

import io
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
    count = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, (width / count + 0.08) * len(rows) + 0.4), squeeze=False)
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        show_images(ax, images, count)
        ax.text(-0.015, 0.5, label, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.subplots_adjust(left=0.17, right=0.99, top=1 - 0.35 / figure.get_figheight(), bottom=0.01, hspace=0.08)
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
        ax.minorticks_off()
        ax.set_title("Lower is better", fontsize=10)
    axes[0].legend(fontsize=8)
    return figure
