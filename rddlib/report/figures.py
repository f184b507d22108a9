"""Figures, each a function from numbers to a matplotlib Figure: notebooks, explorers and reports draw the same ones."""

import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox, Transform
from PIL import Image
from torch import Tensor

from rddlib.diffusion.schedule import Schedule
from rddlib.evaluation import SCORES
from rddlib.methods import COMPETING, LABELS, STYLES
from rddlib.utils.text import counted

IN_TURN = [STYLES[name] for name in ("ddim", *COMPETING, "pndm", "dpm-solver")]  # of curves that are no method's


def to_png(figure: Figure, dpi: int = 130, quick: bool = False) -> bytes:
    """The figure as a PNG file's bytes; quick: neither cropped, which draws it twice, nor packed small."""
    buffer, options = io.BytesIO(), dict(pil_kwargs={"compress_level": 1}) if quick else dict(bbox_inches="tight")
    figure.savefig(buffer, format="png", dpi=dpi, **options)
    plt.close(figure)
    return buffer.getvalue()


Answer = Callable[[float, float], dict]  # (x, y) in the axes' data -> what a click there chooses, {argument: value}


def answering(axes: Iterable[Axes], answer: Answer) -> None:
    """Let these axes answer to clicks, wherever their figure is explored."""
    for ax in axes:
        ax.answer = answer


def live(figure: Figure, dpi: int) -> tuple[bytes, list[tuple[Bbox, Transform, Answer]]]:
    """What a widget shows of a figure: a PNG file's bytes, made quickly, and of each axes that answers its box, the way to
    its data (both from shares of the figure's size) and its answer."""
    png = figure.png(dpi) if isinstance(figure, Kept) else to_png(figure, dpi, quick=True)
    to_data = [(ax, (figure.transFigure + ax.transData.inverted()).frozen()) for ax in figure.axes]
    return png, [(ax.get_position(), way, ax.answer) for ax, way in to_data if hasattr(ax, "answer")]


class Kept(Figure):
    """A figure that is drawn again and again, since a slider waits: its axes stay.

    What surrounds those in `still` (ticks, labels, titles) is drawn only when limits or words change: most of a figure's time.
    """

    still: Sequence[Axes] = ()
    around: tuple = None, None  # what it depends on, the picture

    def png(self, dpi: int) -> bytes:
        """The figure as a PNG file's bytes."""
        if not isinstance(self.canvas, FigureCanvasAgg):
            FigureCanvasAgg(self).figure.set_dpi(dpi)
        changing = [artist for ax in self.axes for artist in (_inside(ax) if ax in self.still else [ax])]
        changing += [self._suptitle] if self._suptitle else []
        words = [(ax.viewLim.bounds, ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) for ax in self.still]
        if self.around[0] != words:
            for artist in changing:
                artist.set_animated(True)  # left out of what is drawn next
            self.canvas.draw()
            for artist in changing:
                artist.set_animated(False)
            self.around = words, self.canvas.copy_from_bbox(self.bbox)
        self.canvas.restore_region(self.around[1])
        for artist in changing:
            self.draw_artist(artist)
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())).save(buffer, "png", compress_level=1)
        return buffer.getvalue()


def _inside(ax: Axes) -> list[Artist]:
    """What is drawn in an axes, from the lowest to its frame and legend."""
    around = ax.xaxis, ax.yaxis, ax.title, ax.patch, *(() if ax.axison else ax.spines.values())
    return sorted((one for one in ax.get_children() if one not in around), key=lambda one: one.zorder)


def blank(into: Kept | None, size: tuple[float, float], boxes: Sequence[tuple]) -> tuple[Figure, list[Axes]]:
    """A figure and its empty axes: a new one, or `into` again.

    Args:
        into: whose axes, once made, are emptied and used again.
        size: (width, height) in inches.
        boxes: (left, bottom, width, height) of each axes in shares of the figure's size; no solver, which takes its time.
    """
    figure = plt.figure(figsize=size) if into is None else into
    if not figure.axes:
        figure.set_size_inches(size)
        figure.still = [figure.add_axes(box) for box in boxes]
    for ax in figure.axes[len(boxes) :]:
        ax.remove()
    for ax in figure.axes:
        for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.images, *ax.texts):
            artist.remove()
        ax.relim()  # of nothing
    return figure, figure.axes


def plot_seeds(ax: Axes, groups, alpha: float, **style) -> None:
    """Means over seeds as a line, in a band from the lowest seed to the highest; groups: scores grouped by x."""
    ax.plot(groups.mean(), **style)
    ax.fill_between(list(groups.groups), groups.min(), groups.max(), color=style["color"], alpha=alpha, linewidth=0)


FAR = 3  # times the highest score of all others: DDIM's beyond it are named, not drawn
_RING = dict(markersize=9, markerfacecolor="none", linewidth=1)  # RCFD, which all but covers CFD


def log_axis(axis: Axis, subs: Sequence[int]) -> None:
    """Make an axis logarithmic, with plain numbers at `subs` times the powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> one array [rows*(H+1)-1, columns*(W+1)-1, 3] in [0, 1], white between them."""
    n, _, h, w = images.shape
    cells = torch.ones(-(-n // columns) * columns, 3, h + 1, w + 1)
    cells[:n, :, :h, :w] = (images.detach().float().cpu().clamp(-1, 1) + 1) / 2
    grid = cells.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # [rows, H + 1, columns, W + 1, 3]
    return grid.flatten(2, 3).flatten(0, 1)[:-1, :-1].numpy()


def show_images(ax, images: Tensor, columns: int, title: str = "") -> None:
    """Draw a tiling of images without ticks."""
    ax.imshow(tile(images, columns), interpolation="nearest")
    ax.set_title(title, fontsize=10, y=1)  # else matplotlib measures ticks that are not drawn
    ax.set_axis_off()


def image_rows(
    rows: dict[str, Tensor],
    title: str = "",
    width: float = 8.0,
    look: int | None = None,
    into: Kept | None = None,
    beside: Sequence[str] = (),
) -> Figure:
    """One labelled row of images for each entry of {label: [N, C, H, W]}; the same column is the same noise or image.

    look: the column that is framed, and shown large below; a click on an image answers {"image": its column}.
    beside: what stands at the right of each row.
    """
    count, left, head = max(len(images) for images in rows.values()), 0.17, 0.35 + 0.17 * title.count("\n")
    right = 0.93 if beside else 0.99
    tall, wide = next(iter(rows.values())).shape[2:]
    row_height = width * (right - left) / count * 1.06 * tall / wide  # and a little air
    below = 0 if look is None else 0.3 + min(1.6, width * (right - left) / len(rows) * tall / wide)
    height = row_height * len(rows) + head + below
    share, high = (right - left) / len(rows), (1 - (head + below) / height) / (1.06 * len(rows) - 0.06)
    boxes = [(left, 1 - head / height - (1.06 * i + 1) * high, right - left, high) for i in range(len(rows))]
    if look is not None:
        large = share, (below - 0.3) / height - 0.02
        boxes += [(left + place * share, 0.02, *large) for place in range(len(rows))]
    figure, axes = blank(into, (width, height), boxes)
    for ax, (label, images) in zip(axes, rows.items(), strict=False):
        show_images(ax, images, count)
        ax.text(-0.015, 0.5, label, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    for ax, words in zip(axes, beside, strict=False):
        ax.text(1.012, 0.5, words, transform=ax.transAxes, va="center", fontsize=9)
    half = 0.04 * max(map(len, title.split("\n"))) / width  # of a title that stays in the picture
    middle = min((left + right) / 2, max(0.5, 1 - half))
    figure.suptitle(title, fontsize=11, x=middle, y=1 - 0.1 / height, va="top")
    if look is not None:
        answering(axes[: len(rows)], lambda x, y: {"image": round(x) // (wide + 1)})
        for ax, large, (label, images) in zip(axes, axes[len(rows) :], rows.items(), strict=False):
            corner = look * (wide + 1) - 0.5, -0.5
            ax.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor="#D55E00", linewidth=2, clip_on=False))
            show_images(large, images[look : look + 1], 1, label)
    return figure


def same_noise_figure(
    draw: Callable[[str, int], Tensor],
    teacher: int,
    arms: Iterable[tuple[str, int]],
    title: str = "A column is one noise",
    width: float = 8.0,
    distances: bool = False,
) -> Figure:
    """Rows of images from the same noise: the teacher's in its steps, then those of each (method, steps).

    draw(method, steps) -> images [N, C, H, W] in [-1, 1]; distances: whether each row's from the teacher's stands beside it.
    """
    rows = {f"teacher, {counted(teacher)}": draw("pd", teacher)}
    rows |= {f"{LABELS[method]}, {counted(steps)}": draw(method, steps) for method, steps in arms}
    theirs, *others = rows.values()
    apart = [f"{(ours - theirs).square().mean().sqrt():.3f}" for ours in others]
    return image_rows(rows, title, width, beside=["", *apart] if distances else ())


def same_noise_blocks(
    draw: Callable[[str, int], Tensor], teacher: int, methods: Iterable[str], counts: Sequence[int]
) -> Figure:
    """The same with a row for each method and a block of columns for each number of steps, the same noises in each."""
    theirs = draw("pd", teacher)
    gap, count = torch.ones_like(theirs[:1]), len(theirs)

    def joined(blocks: Iterable[Tensor]) -> Tensor:
        return torch.cat([part for block in blocks for part in (block, gap)][:-1])

    rows = {f"teacher, {counted(teacher)}": joined([theirs] * len(counts))}
    rows |= {LABELS[method]: joined(draw(method, n) for n in counts) for method in methods}
    title = "A column is one noise: on top the teacher's image, below it each method's in fewer steps\n"
    figure = image_rows(rows, title, width=10.0)
    shared = len(counts) * (count + 1) - 1
    for place, n in enumerate(counts):
        middle = (place * (count + 1) + count / 2) / shared
        words = dict(xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=10)
        figure.axes[0].annotate(counted(n), (middle, 1), (0, 5), **words)
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


def error_figure(steps: Sequence[int], errors: dict[str, Sequence[float]], title: str) -> Figure:
    """Errors against step counts on log axes, with a line of slope -1 to compare with."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for (label, values), style in zip(errors.items(), IN_TURN, strict=False):
        ax.loglog(steps, values, label=label, **style)
    first = next(iter(errors.values()))
    ax.loglog(steps, [first[0] * steps[0] / n for n in steps], color="0.7", label="slope -1 (first order)")
    ax.set(xlabel="steps N", ylabel="root mean square error", title=title)
    ax.legend(fontsize=8)
    return figure


def _panels(count: int, size: tuple[float, float], more: float = 0, **options) -> tuple[Figure, np.ndarray]:
    """So many axes side by side, each this large in inches, with room for more at the right."""
    size = (size[0] * count + more, size[1])
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False, **options)
    return figure, axes[0]


def limits(*maps: Tensor) -> tuple[float, float]:
    """The least and the largest value of all."""
    return min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)


def matrices_figure(matrices: dict[str, Tensor], title: str, label: str) -> Figure:
    """Square matrices side by side on one colour scale."""
    figure, axes = _panels(len(matrices), (3, 3), 0.6)
    low, high = limits(*matrices.values())
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=True):
        drawn = ax.imshow(matrix.detach().cpu(), cmap="viridis", interpolation="nearest", vmin=low, vmax=high)
        ax.set(title=name, xlabel="pixel b", ylabel="pixel a")
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
    figure.colorbar(drawn, ax=axes, shrink=0.75, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def scores_figure(table: pd.DataFrame, metric: str) -> Figure:
    """FID and, where it was measured, pFD against sampling steps, a line a method; metric: the FID's full name."""
    labels = {"fid": metric, "pfd": "pFD (raw pixels)"}
    labels = {column: label for column, label in labels.items() if table[column].notna().any()}
    figure, axes = _panels(len(labels), (4.7, 3.4))
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for method, rows in table.groupby("method", sort=False):
            style = STYLES[method] | (_RING if method == "rcfd" else {})
            plot_seeds(ax, rows.groupby("steps")[column], 0.2, label=LABELS[method], **style)
        ticks = sorted(n for n in table["steps"].unique() if n & (n - 1) == 0)  # powers of two: 10 and 12 would touch
        ax.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=label, xticks=ticks)
        ax.set_xticklabels(ticks)
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
        _leave_out_far(ax, table.groupby(["method", "steps"])[column].mean())
        ax.set_title(f"{SCORES[column].label} by sampling steps, lower is better", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _leave_out_far(ax: Axes, means: pd.Series) -> None:
    """End the axis above all others where DDIM would squeeze them; what of DDIM lies beyond is written at its upper end."""
    top = means[means.index.get_level_values("method") != "ddim"].max()
    far = means.get("ddim", means[:0]).loc[lambda values: values > FAR * top]
    if not len(far):
        return
    ax.set_ylim(top=2 * top)
    ax.margins(x=0.09)
    look = dict(xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="center", va="top")
    for steps, value in far.items():
        words = f"{value:,.0f}" if value > 99 else f"{value:.3g}"
        ax.annotate(f"\u25b2\nDDIM\n{words}", (steps, 1), (0, -2), fontsize=7, color=STYLES["ddim"]["color"], **look)


def scatter_figure(samples: dict[float, Tensor], data: Tensor, title: str) -> Figure:
    """A panel of 2-D samples [N, 2] for each entry, over the data [n, 2]; title: a format of its key."""
    figure, axes = _panels(len(samples), (2.4, 2.6), sharex=True, sharey=True)
    for ax, (key, points) in zip(axes, samples.items(), strict=True):
        ax.plot(*data.T, linestyle="", marker=".", markersize=1.5, color="0.75", label="data of all classes")
        ax.plot(*points.T, linestyle="", marker="o", markersize=2, color="#D55E00", alpha=0.6, label="samples")
        ax.set_title(title.format(key), fontsize=10)
        ax.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
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
    for place, ((label, values), style) in enumerate(zip(curves.items(), IN_TURN, strict=False)):
        values = [math.nan if v is None else float(v) for v in values]
        marks = place * every // len(curves), every  # curves that lie on one another show by turns
        ax.plot(x, values, label=LABELS.get(label, label), markersize=4, markevery=marks, **STYLES.get(label, style))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if xlog:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{value:g}" for value in x])
    if ylog:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if low > 1e-4 and high < 1e5:  # else powers of ten
            log_axis(ax.yaxis, (1, 2, 5) if high / low < 200 else (1,))
    if len(curves) > 1:
        ax.legend(fontsize=8)
    return figure


class HeatMap:
    """An [H, W] map in gray with its numbers written in, where they fit; form: how these are written."""

    def __init__(self, ax: Axes, shape: tuple[int, int], title: str, form: str):
        self.form, texts = form, dict(ha="center", va="center", fontsize=7)
        self.image = ax.imshow(np.zeros(shape), cmap="gray", interpolation="nearest")
        places = list(np.ndindex(*shape)) if math.prod(shape) <= 16 else []
        self.numbers = [ax.text(column, row, "", **texts) for row, column in places]
        ax.set(xlabel="column", ylabel="row", xticks=range(shape[1]), yticks=range(shape[0]))
        ax.set_title(title, fontsize=10)

    def show(self, values: Tensor, limits: tuple[float, float]) -> None:
        """Fill it with values [H, W]; limits: those shown black and white."""
        values = values.detach().float().cpu().numpy()
        self.image.set(data=values, clim=limits)
        for text, value in zip(self.numbers, values.flat, strict=False):
            text.set(text=format(value, self.form), color="black" if value > sum(limits) / 2 else "white")


def maps_figure(maps: dict[str, Tensor], title: str, label: str, form: str = ".2f") -> Figure:
    """Maps {name: [H, W]} side by side on one gray scale; label: what the values are, with their unit."""
    figure, axes = _panels(len(maps), (2.6, 2.9), 0.7)
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        drawn = HeatMap(ax, values.shape, name, form)
        drawn.show(values, limits(*maps.values()))
    figure.colorbar(drawn.image, ax=axes, shrink=0.8, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


Panel = tuple[str, str, pd.DataFrame]  # title, name of the FID, rows: see comparison_figure
KINDS = {"all rows": None, "papers": "paper", "peers": "peer", "measured here": "measured"}
DRAWABLE = "steps > 0 and fid > 0"  # which rows have a place on log axes
# The kinds of lines in a comparison: dash, width, size of the marker, name.
_LINES = {"paper": ("-", 1.2, 5, "from the papers"), "measured": ("--", 2.0, 7, "measured here, ± spread")}
_PEERS = dict(linestyle="", marker="o", markersize=5, markerfacecolor="white", markeredgecolor="0.35", zorder=5)
_FILLS = ("full", "none", "left", "right", "top", "bottom")  # several curves of one method
_OTHERS = [dict(color=gray, marker=marker) for gray, marker in zip(("0.25", "0.5") * 4, "Ph<>8d*H", strict=True)]


def comparison_figure(panels: Sequence[Panel]) -> Figure:
    """FID against sampling steps on log axes, a panel for each table.

    Papers' lines are solid, measured ones dashed and wider with their spread, peers hollow points with their names. What is
    far beyond all other numbers of steps is named below the axis, not drawn.

    Args:
        panels: (title, name of the FID, rows); rows with the columns kind ("paper", "peer" or "measured"), method (a name
            of the table of methods, or any other), curve (what is one line), steps, fid and fid_spread. Rows without a
            positive number of steps and FID are left out.
    """
    options = dict(figsize=(10, 4.3 * len(panels) + 0.8), layout="constrained", squeeze=False)
    figure, axes = plt.subplots(len(panels), 1, **options)
    styles = _curve_styles(panels)
    for ax, (title, metric, rows) in zip(axes[:, 0], panels, strict=True):
        ax.set_title(title)
        _comparison_panel(ax, rows, metric, styles)
    kinds = {kind for _, _, rows in panels for kind in rows["kind"]}
    handles = _comparison_legend(styles, kinds)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def scores_view(panels: Sequence[Panel]) -> Callable[..., Figure]:
    """One of comparison_figure's panels alone, in the same styles whatever is shown; panels: as there.

    Returns scores(table, rows, method): a panel by its title, what kind of rows (a key of KINDS), and the method that is
    brought out of the others.
    """
    named = {title: (metric, rows) for title, metric, rows in panels}

    def scores(table: str = panels[0][0], rows: str = "all rows", method: str = "all methods") -> Figure:
        metric, shown = named[table]
        shown = shown[(KINDS[rows] is None) | (shown["kind"] == KINDS[rows])].query(DRAWABLE)
        brought_out = (shown["method"] == method) | (method == "all methods")
        pale = set(shown.loc[~brought_out, "curve"])
        styles = {c: style | ({"color": "0.7"} if c in pale else {}) for c, style in _curve_styles(panels).items()}
        figure = plt.figure(figsize=(11, 4.6))
        ax = figure.add_axes((0.075, 0.12, 0.735, 0.8))  # by hand, no solver: a slider waits
        ax.set_title(f"{table}, {rows}, {method}", fontsize=11)
        _comparison_panel(ax, shown, metric, styles, pale)
        if not brought_out.any():
            ax.text(0.5, 0.93, f"no rows here: {rows}, {method}", transform=ax.transAxes, ha="center", color="0.3")
        lines = set(shown.loc[shown["kind"] != "peer", "curve"])
        handles = _comparison_legend({c: style for c, style in styles.items() if c in lines}, set(shown["kind"]))
        if handles:
            figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.815, 0.935), fontsize=8, frameon=False)
        return figure

    return scores


def _curve_styles(panels: Sequence[Panel]) -> dict[str, dict]:
    """Colour, marker and its fill for each curve but the peers', the same in every panel; one method, one marker."""
    known, others = {label: STYLES[name] for name, label in LABELS.items()} | STYLES, itertools.cycle(_OTHERS)
    looks: dict[str, tuple[dict, itertools.cycle]] = {}
    styles: dict[str, dict] = {}
    curves = [rows.loc[rows["kind"] != "peer", ["method", "curve"]] for _, _, rows in panels]
    for method, curve in pd.concat(curves).drop_duplicates().itertuples(index=False):
        if method not in looks:
            looks[method] = known.get(method) or next(others), itertools.cycle(_FILLS)
        look, fills = looks[method]
        own = dict(fillstyle=next(fills), markerfacecoloralt="white")
        styles[curve] = dict(color=look["color"], marker=look["marker"], **own)
    return styles


def _comparison_panel(
    ax: Axes, rows: pd.DataFrame, metric: str, styles: dict[str, dict], unnamed: Collection[str] = ()
) -> None:
    """Lines for the papers' and measured curves, points for peers, named but for those in `unnamed`."""
    ax.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=f"{metric}\nlower is better")
    rows = rows.query(DRAWABLE)
    for (kind, curve), line in rows[rows["kind"] != "peer"].groupby(["kind", "curve"], sort=False):
        dash, width, size, _ = _LINES[kind]
        line, style = line.sort_values("steps"), styles[curve] | dict(linestyle=dash, linewidth=width, markersize=size)
        if line["fid_spread"].notna().any():
            ax.errorbar(line["steps"], line["fid"], yerr=line["fid_spread"].fillna(0), capsize=2, **style)
        else:
            ax.plot(line["steps"], line["fid"], **style)
    peers = rows[rows["kind"] == "peer"]
    ax.plot(peers["steps"], peers["fid"], **_PEERS)
    if beyond := _beyond(rows):
        ax.set_xlim(right=1.6 * max(n for n in rows["steps"] if n < min(beyond)))
        said = (f"{row.method} {row.fid:g} at {row.steps:,g}" for row in rows.itertuples() if row.steps in beyond)
        ax.set_xlabel(f"sampling steps (beyond the axis: {', '.join(said)})")
    if len(peers):
        ax.set_xlim(left=rows["steps"].min() / (2.4 if beyond else 4))
        if not beyond:
            ax.set_xlim(right=rows["steps"].max() * 1.6)
        ax.set_ylim(rows["fid"].min() / 1.25, rows["fid"].max() * 1.25)
        for count, group in peers[~peers["curve"].isin(unnamed)].groupby("steps"):
            _label_points(ax, count, group.sort_values("fid"), left=count == peers["steps"].min())
    _plain_log_axes(ax)


def _beyond(rows: pd.DataFrame) -> set[float]:
    """The numbers of steps above a gap that would leave the axis half empty."""
    counts = sorted(set(rows["steps"]))
    gaps = [k for k in range(1, len(counts)) if counts[k] > 8 * counts[k - 1]]
    return set(counts[gaps[0] :]) if gaps else set()


def _label_points(ax: Axes, steps: float, points: pd.DataFrame, left: bool) -> None:
    """Names beside points above one another, moved apart so that none covers another, each with a line to its point."""
    low, high = (math.log(limit) for limit in ax.get_ylim())
    gap = 0.041 * (high - low)
    places = [math.log(fid) for fid in points["fid"]]
    for _ in range(200):  # push neighbours apart until all fit
        for i in range(len(places) - 1):
            if (overlap := gap - (places[i + 1] - places[i])) > 1e-9:
                places[i], places[i + 1] = places[i] - overlap / 2, places[i + 1] + overlap / 2
        shift = max(0.0, low + 0.6 * gap - min(places))
        places = [place + shift for place in places]
    x, places = steps / 1.45 if left else steps * 1.16, [math.exp(place) for place in places]
    style = dict(fontsize=8, color="0.25", va="center", ha="right" if left else "left", zorder=4)
    for place, name in zip(places, points["method"], strict=True):
        ax.text(x, place, name, bbox=dict(facecolor="white", edgecolor="none", alpha=0.75, pad=0.4), **style)
    lines = [((x, place), (steps, fid)) for place, fid in zip(places, points["fid"], strict=True)]
    ax.add_collection(LineCollection(lines, color="0.7", linewidth=0.6, zorder=2.5))


def _plain_log_axes(ax: Axes) -> None:
    """Ticks as plain numbers, few enough to read: powers of two along x."""
    low, high = ax.get_xlim()
    ax.set_xticks([2**n for n in range(11) if low <= 2**n <= high])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = ax.get_ylim()
    log_axis(ax.yaxis, (1, 2, 5) if high / low < 3000 else (1,))
    ax.minorticks_off()
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)


def _comparison_legend(styles: dict[str, dict], kinds: set[str]) -> list[Line2D]:
    """Lines for the legend: methods by marker and colour, kinds by dash and width."""
    handles = [Line2D([], [], linestyle="", label=curve, **style) for curve, style in styles.items()]
    for kind, (dash, width, _, words) in _LINES.items():
        if kind in kinds:
            handles.append(Line2D([], [], label=words, color="0.2", linestyle=dash, linewidth=width))
    if "peer" in kinds:
        handles.append(Line2D([], [], color="0.35", marker="o", markerfacecolor="white", linestyle="", label="peers"))
    return handles
