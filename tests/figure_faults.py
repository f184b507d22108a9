"""What a reader would miss in a figure: a title, an axis label, a unit, or curves that gray paper cannot tell apart."""

import json
import os
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

GRAYS_APART = 0.1  # two luminances (0 black, 1 white) that a reader takes for different
IN_NATS = r"entropy|\bKL\b|\bSNR\b"
UNIT = r"\([^)]+\)|\b(nats|bits|MiB|GiB|seconds|minutes|hours|pushes)\b|%|, (s|ms)$"
# Counts, places and quantities without a unit: a label that has none of these words must state one.
PLAIN = (
    r"time t|\b(rate|weight|probability|density|cosine|ratio|share|error|distance|length|temperature|rank|row|rows|column|"
    r"pixel|slot|push|coordinate|component|steps|iteration|iterations|images|number|seed|FID|pFD|IS|KID|precision|recall)\b"
)


def faults(figure: Figure) -> list[str]:
    """One line for each thing that is missing, empty where nothing is."""
    found, titled = [], bool(figure.get_suptitle())
    for place, ax in enumerate(ax for ax in figure.axes if ax.has_data() or is_colorbar(ax)):
        where = f"axes {place} ({ax.get_title() or 'no title'})"
        if not (titled or is_colorbar(ax) or any(ax.get_title(loc=side) for side in ("left", "center", "right"))):
            found.append(f"{where}: neither it nor the figure has a title")
        found += [f"{where}: {fault}" for fault in [*label_faults(figure, ax), *gray_faults(ax)]]
    return found


def is_colorbar(ax: Axes) -> bool:
    return getattr(ax, "_colorbar", None) is not None  # set by matplotlib on any axes that a colour bar was drawn in


def label_faults(figure: Figure, ax: Axes) -> Iterator[str]:
    if not ax.axison:  # a tiling of pictures
        return
    x = [a.get_xlabel() for a in ax.get_shared_x_axes().get_siblings(ax)] + [figure.get_supxlabel()]
    y = [a.get_ylabel() for a in ax.get_shared_y_axes().get_siblings(ax)] + [figure.get_supylabel()]
    if is_colorbar(ax):
        wanted = {"colour bar": [ax.get_xlabel(), ax.get_ylabel()]}
    else:
        axes = {"x": (ax.xaxis, x), "y": (ax.yaxis, y)}
        wanted = {name: labels for name, (axis, labels) in axes.items() if axis.get_visible() and not in_words(axis)}
    for name, labels in wanted.items():
        label = next(filter(None, labels), "")
        if not label:
            yield f"no label on the {name} axis"
        elif re.search(IN_NATS, label) and "nats" not in label:
            yield f"{label!r} does not say that it is in nats"
        elif not re.search(f"{UNIT}|{PLAIN}", label):
            yield f"{label!r} has no unit: put it in brackets (or name the quantity in PLAIN if it has none)"


def in_words(axis: Axis) -> bool:
    """Whether its ticks are names, which need no label and no unit."""
    written = axis.get_major_formatter()
    return any(re.match("[a-zA-Z]{2}", str(written(place))) for place in axis.get_majorticklocs())


def gray_faults(ax: Axes) -> Iterator[str]:
    for (name, shape, gray), (other, its_shape, its_gray) in combinations(labelled(ax), 2):
        if shape == its_shape and abs(gray - its_gray) < GRAYS_APART:
            yield f"{name!r} and {other!r} look alike in gray: same {shape}, luminance {gray:.2f} and {its_gray:.2f}"
    for drawn in (*ax.images, *ax.collections):
        scalars = drawn.get_array()
        if scalars is None or np.ndim(scalars) != (2 if isinstance(drawn, AxesImage) else 1):
            continue
        steps = np.diff([luminance(colour) for colour in drawn.get_cmap()(np.linspace(0, 1, 64))])
        if steps.min() < -0.02 and steps.max() > 0.02:
            yield f"the colours of {drawn.get_cmap().name!r} neither only darken nor only brighten"


def labelled(ax: Axes) -> Iterator[tuple[str, tuple, float]]:
    """(label, how it is drawn apart from its colour, its luminance) of all that a legend would list."""
    held = [c for c in ax.containers if isinstance(c, ErrorbarContainer | BarContainer)]
    for label, line in [(c.get_label(), c[0]) for c in held if len(c)] + [
        (a.get_label(), a) for a in ax.get_children()
    ]:
        label = str(label)
        if not label or label.startswith("_"):
            continue
        if hasattr(line, "get_marker"):
            yield (
                label,
                ("line", line.get_linestyle(), line.get_marker(), line.get_fillstyle()),
                luminance(line.get_color()),
            )
        elif isinstance(line, PathCollection):
            faces, edges = line.get_facecolors(), line.get_edgecolors()
            if line.get_array() is None and len(shown := faces if len(faces) else edges):
                marker = line.get_paths()[0].vertices.round(3).tobytes()
                yield label, ("dots", hash(marker), len(faces) > 0), luminance(shown[0])
        elif hasattr(line, "get_hatch") and hasattr(line, "get_fill"):
            colour = line.get_facecolor() if line.get_fill() else line.get_edgecolor()
            yield label, ("area", line.get_linestyle(), line.get_hatch(), line.get_fill()), luminance(colour)


def luminance(colour) -> float:
    """Of a colour on white paper, as a gray copy shows it."""
    red, green, blue, alpha = to_rgba(colour)
    return 1 - alpha * (1 - (0.299 * red + 0.587 * green + 0.114 * blue))


def watch(folder: Path) -> None:
    """From now on in this IPython kernel, write the faults of each cell's figures to a file of the folder."""
    from IPython import get_ipython

    made: list[Figure] = []
    begin = Figure.__init__

    def noted(self, *arguments, **options) -> None:
        begin(self, *arguments, **options)
        made.append(self)

    def report(result) -> None:
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a") as file:
            for figure in made:
                if figure.axes:
                    file.write(json.dumps({"cell": result.info.raw_cell, "faults": faults(figure)}) + "\n")
        made.clear()

    Figure.__init__ = noted
    get_ipython().events.register("post_run_cell", report)
