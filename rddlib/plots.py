"""Figures, each a function from numbers to a matplotlib Figure: notebooks, widgets and the report draw the same ones."""

import io
import itertools
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from rddlib.schedule import Schedule

# Distinguishable in gray too: each method has its own marker and dash besides its colour.
STYLES = {
    "ddim": dict(color="0.35", marker="s", linestyle=":"),
    "pd": dict(color="#0072B2", marker="o", linestyle="-"),
    "cfd": dict(color="#E69F00", marker="^", linestyle="--"),
    "rcfd": dict(color="#009E73", marker="v", linestyle="-."),
    "rdd": dict(color="#D55E00", marker="D", linestyle="-"),
    "pndm": dict(color="#CC79A7", marker="p", linestyle=":"),
    "dpm-solver": dict(color="#56B4E9", marker="X", linestyle=":"),
}
NAMES = {
    "ddim": "DDIM", "pd": "PD", "cfd": "CFD", "rcfd": "RCFD", "rdd": "RDD", "pndm": "PNDM", "dpm-solver": "DPM-Solver",
}  # fmt: skip


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


def scores_figure(table: pd.DataFrame, metric: str) -> Figure:
    """FID and, where it was measured, pFD against sampling steps, a line a method; seeds as a band from lowest to highest.

    metric: the FID's full name.
    """
    labels = {"fid": metric, "pfd": "pFD (raw pixels)"}
    labels = {column: label for column, label in labels.items() if table[column].notna().any()}
    figure, axes = plt.subplots(1, len(labels), figsize=(4.5 * len(labels), 3.4), layout="constrained", squeeze=False)
    axes = axes[0]
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


# The kinds of numbers in a comparison: line, width, how far the method's colour is mixed with white, size of the marker.
_KINDS = {"paper": ("-", 1.2, 0.55, 5), "measured": ("--", 2.0, 0.0, 7)}
_FILLS = ("full", "none", "left", "right", "top", "bottom")  # several curves of one method
_OTHERS = [dict(color=gray, marker=marker) for gray, marker in zip(("0.25", "0.5") * 4, "Ph<>8d*H", strict=True)]


def comparison_figure(panels: Sequence[tuple[str, str, pd.DataFrame]]) -> Figure:
    """FID against sampling steps on log axes, one panel for each (title, name of the FID, rows).

    rows: columns kind ("paper", "peer" or "measured"), method (a key or name of STYLES, or any other), curve (what is one
    line), steps, fid and fid_spread; rows without a positive number of steps and FID are left out. Papers' lines are solid
    and pale, measured ones dashed and dark with their spread, peers hollow points with their names.
    """
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(10, 4.3 * len(panels) + 0.8), layout="constrained", squeeze=False
    )
    styles = _curve_styles(panels)
    for ax, (title, metric, rows) in zip(axes[:, 0], panels, strict=True):
        ax.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=f"{metric}\nlower is better", title=title)
        _comparison_panel(ax, rows[(rows["steps"] > 0) & (rows["fid"] > 0)], styles)
        _plain_log_axes(ax)
    kinds = {kind for _, _, rows in panels for kind in rows["kind"]}
    figure.legend(
        handles=_comparison_legend(styles, kinds), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    return figure


def _curve_styles(panels: Sequence[tuple[str, str, pd.DataFrame]]) -> dict[str, dict]:
    """Colour, marker and its fill for each curve but the peers', the same in every panel; one method, one marker."""
    keys, others = {name: key for key, name in NAMES.items()}, itertools.cycle(_OTHERS)
    methods: dict[str, dict] = {}
    styles: dict[str, dict] = {}
    curves = [rows.loc[rows["kind"] != "peer", ["method", "curve"]] for _, _, rows in panels]
    for method, curve in pd.concat(curves).drop_duplicates().itertuples(index=False):
        known = STYLES.get(keys.get(method, method))
        style = methods.setdefault(method, dict(known or next(others), used=0))
        fill = _FILLS[style["used"] % len(_FILLS)]
        styles[curve] = dict(color=style["color"], marker=style["marker"], fillstyle=fill, markerfacecoloralt="white")
        style["used"] += 1
    return styles


def _comparison_panel(ax, rows: pd.DataFrame, styles: dict[str, dict]) -> None:
    for (kind, curve), line in rows[rows["kind"] != "peer"].groupby(["kind", "curve"], sort=False):
        dash, width, pale, size = _KINDS[kind]
        line, style = line.sort_values("steps"), styles[curve]
        style = {**style, "color": _mixed(style["color"], pale)}
        ax.errorbar(line["steps"], line["fid"], yerr=line["fid_spread"].fillna(0), linestyle=dash, linewidth=width,
                    markersize=size, capsize=2, **style)  # fmt: skip
    peers = rows[rows["kind"] == "peer"]
    ax.plot(peers["steps"], peers["fid"], linestyle="", marker="o", markersize=5, markerfacecolor="white",
            markeredgecolor="0.35", zorder=3)  # fmt: skip
    if len(peers):
        steps = rows["steps"]
        ax.set_xlim(steps.min() / 4, steps.max() * 1.6)
        ax.set_ylim(rows["fid"].min() / 1.25, rows["fid"].max() * 1.25)
        for count, group in peers.groupby("steps"):
            _label_points(ax, count, group.sort_values("fid"), left=count == peers["steps"].min())


def _label_points(ax, steps: float, points: pd.DataFrame, left: bool) -> None:
    """Names beside points above one another, moved apart so that none covers another, each with a line to its point."""
    low, high = (math.log(limit) for limit in ax.get_ylim())
    gap = 0.036 * (high - low)
    places = [math.log(fid) for fid in points["fid"]]
    for _ in range(200):  # push neighbours apart until all fit
        for i in range(len(places) - 1):
            if (overlap := gap - (places[i + 1] - places[i])) > 1e-9:
                places[i], places[i + 1] = places[i] - overlap / 2, places[i + 1] + overlap / 2
        shift = max(0.0, low + 0.6 * gap - min(places))
        places = [place + shift for place in places]
    x = steps / 1.6 if left else steps * 1.2
    for place, name, fid in zip(places, points["method"], points["fid"], strict=True):
        ax.annotate(
            name, (steps, fid), (x, math.exp(place)), fontsize=7, color="0.25", va="center", ha="right" if left else "left",
            arrowprops=dict(arrowstyle="-", color="0.7", linewidth=0.6, shrinkA=0, shrinkB=3), zorder=4,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.75, pad=0.4),
        )  # fmt: skip


def _plain_log_axes(ax) -> None:
    """Ticks as plain numbers, few enough to read."""
    low, high = ax.get_xlim()
    powers = [2**n for n in range(11) if low <= 2**n <= high]
    ax.set_xticks(powers)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.minorticks_off()
    low, high = ax.get_ylim()
    marks = [
        m * 10.0**n
        for n in range(-4, 7)
        for m in ((1, 2, 5) if high / low < 3000 else (1,))
        if low <= m * 10.0**n <= high
    ]
    ax.set_yticks(marks)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.minorticks_off()
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)


def _mixed(colour: str, white: float) -> tuple[float, ...]:
    """A colour with a share of white in it."""
    return tuple(1 - (1 - part) * (1 - white) for part in to_rgb(colour))


def _comparison_legend(styles: dict[str, dict], kinds: set[str]) -> list[Line2D]:
    """Lines for the legend: methods by marker and colour, kinds by dash, width and tone."""
    handles = [Line2D([], [], linestyle="", label=curve, **style) for curve, style in styles.items()]
    names = {"paper": "from the papers", "measured": "measured here, ± spread"}
    for kind, name in names.items():
        if kind in kinds:
            dash, width, pale, _ = _KINDS[kind]
            handles.append(Line2D([], [], color=_mixed("0.2", pale), linestyle=dash, linewidth=width, label=name))
    if "peer" in kinds:
        handles.append(Line2D([], [], color="0.35", marker="o", markerfacecolor="white", linestyle="", label="peers"))
    return handles
