"""Figures to explore: `explore` puts controls under a figure function, the views are such functions of the notebooks.

A view computes its heavy parts once and returns a function of what the controls set.
"""

import gc
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform, Transform
from torch import Tensor

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.diffusion.samplers import TRAINING_FREE, find_sampler
from rddlib.diffusion.sampling import ddim_sample, ddim_step
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.methods import LABELS
from rddlib.report import figures as plots
from rddlib.study.study import Study
from rddlib.utils.text import counted

DPI = 100  # of pictures that controls redraw
FEW = 20  # classes that digits can tell apart
SHADES = ListedColormap(plt.get_cmap("magma")(np.linspace(0, 0.75, 256)))  # none too light for white paper
NOTE = "*In JupyterLab, sliders for {names} appear here and redraw the figure above.*"

# A saved notebook keeps an output that names a widget by its id, but the widget is gone with its kernel, and JupyterLab
# prints an error in its place. The output below is saved right before that one: its style hides a view without a widget in
# it, and the line of text shows only where the view is hidden.
GONE = """<style>
.jp-OutputArea-child:has(.rdd-gone) + .jp-OutputArea-child:not(:has(.jupyter-widgets > *)),
.jp-OutputArea-child:has(.rdd-gone):has(+ .jp-OutputArea-child .jupyter-widgets > *) {{ display: none }}
</style><em class="rdd-gone">{words}</em>"""


class Live(ipywidgets.VBox):
    """Widgets in a column. In a saved notebook a line of text, `gone`, takes their place until the cell runs again."""

    gone = "Run this cell to see what it shows."

    def _ipython_display_(self) -> None:
        display(HTML(GONE.format(words=self.gone)))
        view = self._repr_mimebundle_()
        display(view | {"text/plain": ""}, raw=True)  # where no widget can be shown, the line above says enough


class Picture(anywidget.AnyWidget):
    """A PNG file's bytes as a picture; a click sends {"x", "y"}, shares of its size from the lower left corner."""

    value = traitlets.Bytes().tag(sync=True)
    clickable = traitlets.Bool(False).tag(sync=True)
    _esm = """
    export default { render({ model, el }) {
        const image = document.createElement("img");
        image.style.maxWidth = "100%";
        if (model.get("clickable")) image.style.cursor = "crosshair";
        image.onload = () => URL.revokeObjectURL(image.src);
        const show = () => { image.src = URL.createObjectURL(new Blob([model.get("value")], {type: "image/png"})); };
        image.onclick = event => {
            const box = image.getBoundingClientRect();
            model.send({x: (event.clientX - box.left) / box.width, y: (box.bottom - event.clientY) / box.height});
        };
        model.on("change:value", show);
        show();
        el.append(image);
    } };"""


def explore(figure: Callable[..., Figure], **controls: Sequence) -> Live | Markdown:
    """A control for each named argument of figure(...), over the picture that it draws; moving one redraws it.

    Where the figure's axes answer to clicks (`figures.answering`), a click on the picture moves the controls. Each control
    starts at the argument's default. Pictures are kept, so going back to one is immediate. A notebook that a program
    executes gets a line of text instead, since nobody is there to move anything.
    Raises ValueError where figure has no such argument, or its default is none of the values.

    Args:
        figure: what draws; where it takes `into`, one figure for all moves, which is faster.
        controls: the values an argument may take, `N=range(1, 65)` or `tau=(0.5, 1.0)`; words become a menu, all else a
            slider.
    """
    if _nobody_watches():
        return Markdown(NOTE.format(names=", ".join(controls)))
    named = {name: _control(figure, name, values) for name, values in controls.items()}
    picture, held = Picture(), False
    into = {"into": plots.Kept()} if "into" in inspect.signature(figure).parameters else {}

    @lru_cache(maxsize=256)
    def drawn(*values) -> tuple[bytes, list]:
        return plots.live(figure(**dict(zip(named, values, strict=True)), **into), DPI)

    def now() -> tuple[bytes, list]:
        return drawn(*(control.value for control in named.values()))

    def redraw(_change=None) -> None:
        if held:
            return
        collecting = gc.isenabled()
        gc.disable()  # with torch loaded a full collection takes longer than a picture, so it comes after the answer
        try:
            picture.value, answering = now()
            picture.clickable = bool(answering)
        finally:
            if collecting:
                gc.enable()

    def clicked(_picture, place: dict, _buffers) -> None:
        """Set what the axes under the place answer, then draw once."""
        nonlocal held
        at = place["x"], place["y"]
        chosen = next((answer(*way.transform(at)) for box, way, answer in now()[1] if box.contains(*at)), {})
        held = True
        for name, value in chosen.items():
            if name in named and value in named[name].options:
                named[name].value = value
        held = False
        redraw()

    picture.on_msg(clicked)
    for control in named.values():
        control.observe(redraw, names="value")
    redraw()
    box = ipywidgets.Layout(align_items="flex-start")  # else the picture is stretched to the page's width
    column = Live([*named.values(), picture], layout=box)
    column.gone = f"Run this cell for sliders ({', '.join(named)}) that redraw the figure above."
    return column


def _control(figure: Callable[..., Figure], name: str, values: Sequence) -> ipywidgets.Widget:
    argument, options = inspect.signature(figure).parameters.get(name), list(values)
    if argument is None or argument.default not in options:
        raise ValueError(f"{name} needs a default among {options} in {figure.__name__}{inspect.signature(figure)}")
    words = all(isinstance(value, str) for value in options)
    kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
    return kind(options=options, value=argument.default, description=name)


def _nobody_watches() -> bool:
    """Whether papermill or nbconvert executes the notebook: unlike in JupyterLab, such a kernel cannot ask for input.

    Nor can one of voila's, whose variable tells it apart.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and not getattr(kernel, "_allow_stdin", True) and "VOILA_PREHEAT" not in os.environ


def paths_view(mixture: GaussianMixture, starts: Tensor, data: Tensor, offset: float) -> Callable[..., Figure]:
    """DDIM's paths on a Gaussian mixture, from the noises `starts` [M, 2], over its samples `data` [n, 2].

    Returns paths(N, t, offset): N steps, gone down to time t, with the cosine schedule of that offset.
    """

    @lru_cache
    def walked(N: int, offset: float) -> tuple[CosineSchedule, list[Tensor], list[Tensor]]:
        """The schedule, z at the times 1, 1 - 1/N, ..., 0, and the estimate x at each but the last."""
        schedule, zs, xs = CosineSchedule(offset), [], []
        denoiser = as_denoiser(lambda z, t: mixture.denoise(z, t, schedule), schedule)
        end = ddim_sample(denoiser, starts, N, clip=False, callback=lambda k, t, z, x: (zs.append(z), xs.append(x)))
        return schedule, [*zs, end], xs

    def paths(N: int = 8, t: float = 0.0, offset: float = offset, into: plots.Kept | None = None) -> Figure:
        schedule, zs, xs = walked(N, offset)
        k = min(math.floor((1 - t) * N + 1e-9), N - 1)  # the step that t lies in; each step is a move along its x
        z = ddim_step(zs[k], xs[k], 1 - k / N, t, schedule)
        walk = torch.stack([*zs[: k + 1], z])
        boxes = (0.065, 0.13, 0.92 / 2.16, 0.72), (0.985 - 0.92 / 2.16, 0.13, 0.92 / 2.16, 0.72)
        figure, (left, right) = plots.blank(into, (9, 4.1), boxes)
        times, steps = torch.linspace(0, 1, 61, dtype=torch.float64), torch.arange(N + 1, dtype=torch.float64) / N
        for rate, name, style in (
            (schedule.alpha, "alpha (image)", dict(color="#0072B2", marker="o")),
            (schedule.sigma, "sigma (noise)", dict(color="#D55E00", marker="s", linestyle="--")),
        ):
            left.plot(times, rate(times), **style | dict(marker=""))
            left.plot(steps, rate(steps), **style | dict(linestyle=""), markersize=4)
            left.plot([], [], **style, markersize=4, label=f"{name}: {float(rate(t)):.3f} at t = {t:g}")
        left.axvline(t, color="0.2", linewidth=1, linestyle=":")
        left.set(xlabel="time t (1: noise, 0: image)", ylabel="rate", ylim=(-0.03, 1.05), xlim=(1.03, -0.03))
        left.set_title("The schedule and the sampler's times", fontsize=10)
        left.legend(fontsize=8, loc="lower center")
        right.plot(*data.T, linestyle="", marker=".", markersize=2, color="0.8", label="data")
        right.add_collection(LineCollection(walk.transpose(0, 1).numpy(), color="#0072B2", linewidth=0.7, alpha=0.8))
        hollow = dict(linestyle="", marker="o", markersize=3.5, markerfacecolor="none", markeredgecolor="0.3")
        right.plot(*walk[0].T, **hollow, label="noise, t = 1")
        right.plot(*walk[-1].T, linestyle="", marker="D", markersize=3.5, color="#D55E00", label=f"z at t = {t:g}")
        right.set(xlabel="first coordinate", ylabel="second coordinate", xlim=(-3.6, 3.6), ylim=(-3.1, 3.7))
        right.set_title(f"{len(data)} samples of the data, {walk.shape[1]} paths", fontsize=10)
        right.legend(fontsize=8, loc="upper right", ncols=3, frameon=False, columnspacing=0.8, handletextpad=0.1)
        figure.suptitle(f"DDIM on a Gaussian mixture, N = {N}, at t = {t:g}", fontsize=11)
        return figure

    return paths


class _RelationFigure:
    """How one pixel of a feature map relates to the pixels of another image's: teacher, student and difference; for images of
    this size (H, W) and maps of this shape (h, w)."""

    def __init__(self, size: tuple[int, int], shape: tuple[int, int], into: plots.Kept | None = None):
        height, width = shape
        self.figure = plt.figure() if into is None else into
        self.figure.set_size_inches(12, 2.9)
        self.figure.still = axes = self.figure.subplots(1, 5)
        self.figure.subplots_adjust(left=0.04, right=0.99, top=0.8, bottom=0.15, wspace=0.18)
        options = dict(extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
        self.images = [ax.imshow(np.ones((*size, 3)), **options) for ax in axes[:2]]
        names = "teacher, share in %", "student, share in %", "student - teacher, in % points"
        self.maps = [plots.HeatMap(ax, shape, name, ".1f") for ax, name in zip(axes[2:], names, strict=True)]
        for ax, name in zip(axes, ("the image with the pixel", "the other image"), strict=False):
            ax.set_title(name, fontsize=10)
        for ax in axes[1:]:
            ax.set(xticks=[0, width - 1], yticks=[0, height - 1], xlabel="column of the map", ylabel="row")
        axes[0].set(xticks=range(width), yticks=range(height), xlabel="column of the map", ylabel="row of the map")
        framed = ([axes[0]], "-"), (axes[[2, 1]], "-"), (axes[[3, 1]], ":")
        frame = dict(fill=False, edgecolor="#D55E00", linewidth=2.5)
        self.frames = [
            [ax.add_patch(Rectangle((0, 0), 0.92, 0.92, linestyle=dash, **frame)) for ax in places]
            for places, dash in framed
        ]

    def show(self, images: Tensor, pixel: tuple[int, int], teacher: Tensor, student: Tensor, title: str) -> Figure:
        """Draw other numbers: of two images [2, C, H, W], and of a pixel (row, column) of the first one's map its relations
        [h, w] to the second's, as shares of 1; the largest of each is framed."""
        for drawn, image in zip(self.images, images, strict=True):
            drawn.set_data(plots.tile(image[None], 1))
        teacher, student = 100 * teacher.detach().float().cpu(), 100 * student.detach().float().cpu()
        difference, shared = student - teacher, plots.limits(teacher, student)
        values = (teacher, shared), (student, shared), (difference, plots.limits(difference))
        largest = float(difference.abs().max())
        self.maps[2].form = f"+.{1 if largest > 3 else 2 if largest > 0.3 else 3}f"  # two digits that count, or more
        for drawn, (numbers, limits) in zip(self.maps, values, strict=True):
            drawn.show(numbers, limits)
        most = (divmod(int(share.argmax()), share.shape[1]) for share in (teacher, student))
        for frames, (row, column) in zip(self.frames, (pixel, *most), strict=True):
            for frame in frames:
                frame.set_xy((column - 0.46, row - 0.46))
        self.figure.suptitle(title, fontsize=11)
        return self.figure


def relations_view(images: Tensor, map_teacher: Tensor, map_student: Tensor) -> Callable[..., Figure]:
    """How a pixel of one image relates to the pixels of another, for images [N, C, H, W] and their maps [N, D, h, w].

    Returns relations(i, j, row, column, tau): the softmax at temperature tau of the cosines of image i's pixel
    (row, column) to the pixels of image j, by the teacher and by the student. A click on image i chooses the pixel; one on
    image j, or on a map of it, asks the question from there.
    """
    images, (height, width) = images.detach().cpu(), map_teacher.shape[2:]
    maps = (m.detach().double().cpu().flatten(2) for m in (map_teacher, map_student))
    F_T, F_S = (F.normalize(m, dim=1) for m in maps)  # [N, D, A]
    new = partial(_RelationFigure, images.shape[2:], (height, width))
    kept = lru_cache(maxsize=1)(new)

    def relations(
        i: int = 5, j: int = 9, row: int = 1, column: int = 1, tau: float = 0.1, into: plots.Kept | None = None
    ) -> Figure:
        a = row * width + column
        log_q, log_p = ((features[i, :, a] @ features[j] / tau).log_softmax(dim=0) for features in (F_T, F_S))
        q, p = log_q.exp(), log_p.exp()
        loss = (q * (log_q - log_p)).sum().item()
        title = f"Pixel ({row}, {column}) of image {i} against image {j}, tau = {tau:g}: KL = {loss:.2e} nats"
        shares = (share.reshape(height, width) for share in (q, p))
        figure = (new() if into is None else kept(into)).show(images[[i, j]], (row, column), *shares, title)
        plots.answering(figure.axes[:1], lambda x, y: {"row": round(y), "column": round(x)})
        plots.answering(figure.axes[1:], lambda x, y: {"i": j, "j": i, "row": round(y), "column": round(x)})
        return figure

    return relations


def queue_view(rows: Tensor, classes: Tensor, per_push: int, ranks: Tensor) -> Callable[..., Figure]:
    """A queue of unit vectors while it is filled: its rows in the plane, marked by their class, those drawn ringed; below
    them its slots by age. A click on a row, or on its slot, chooses it.

    Returns queue(N_q, pushes, V, colour, row): N_q rows long, after that many pushes; colour: "class", "age", "nearest" or
    "row", the likeness to the one of that number, which is framed.

    Args:
        rows: [n, C], oldest first.
        classes: [n], of the image that each row comes from.
        per_push: how many are pushed at a time.
        ranks: [n], a permutation; the V lowest of those held are drawn.
    """
    rows, classes, ranks = rows.detach().float().cpu(), classes.cpu(), ranks.cpu()
    total, centred = len(rows), rows - rows.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T  # the same axes for every setting

    @lru_cache
    def state(N_q: int, pushes: int, V: int) -> tuple[slice, Tensor, Tensor]:
        """Which rows are held, which of these are drawn [held], and the cosine of each to the nearest drawn."""
        pushed = min(pushes * per_push, total)
        held = slice(max(0, pushed - N_q), pushed)
        drawn = torch.zeros(pushed - held.start, dtype=torch.bool)
        drawn[ranks[held].argsort()[:V]] = True
        return held, drawn, (rows[held] @ rows[held][drawn].T).max(dim=1).values.clamp(max=1)

    def queue(
        N_q: int = total,
        pushes: int = -(-total // per_push),
        V: int = 64,
        colour: str = "class",
        row: int = total - 1,
        into: plots.Kept | None = None,
    ) -> Figure:
        held, drawn, nearest = state(N_q, pushes, V)
        arrival = torch.arange(held.start, held.stop)
        age = pushes - 1 - arrival // per_push
        slots = torch.full((N_q,), math.nan)
        slots[arrival % N_q] = age.float()
        shade, name = {
            "class": (None, ""),
            "age": (age, "age in pushes"),
            "nearest": (nearest, "cosine to the nearest drawn row"),
            "row": (rows[held] @ rows[row], f"cosine to row {row}"),
        }[colour]
        here = held.start <= row < held.stop
        near = f"in slot {row % N_q}; cosine to the nearest drawn {nearest[row - held.start]:.3f}" if here else ""
        title = (
            f"{len(arrival)} of {N_q} rows after {counted(pushes, 'push')}; mean cosine to the nearest of V = "
            f"{int(drawn.sum())} drawn: {nearest.mean():.3f}\n"
            f"row {row}: class {classes[row]}, came with push {row // per_push + 1}, {near or 'not in the queue'}"
        )
        boxes = (0.1, 0.25, 0.75, 0.66), (0.1, 0.09, 0.75, 0.045)
        figure, (ax, below) = plots.blank(into, (7.4, 5.6), boxes)
        ax.plot(*points.T, linestyle="", marker=".", markersize=1.5, color="0.7")
        dots = _class_dots(points[held], classes[held], shade, ax.transData)
        ax.add_collection(dots, autolim=False)
        hollow = dict(linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black")
        ax.plot(*points[held][drawn].T, **hollow, markeredgewidth=0.7, label=f"drawn, V = {int(drawn.sum())}")
        framed = dict(linestyle="", marker="s", markersize=13, markerfacecolor="none", markeredgecolor="#D55E00")
        ax.plot(*points[row], **framed, markeredgewidth=2, label=f"row {row} of all that came")
        if shade is not None:
            figure.colorbar(dots, cax=figure.add_axes((0.88, 0.25, 0.02, 0.66)), label=name)
        kind = "a row held is the number of its class" if len(classes.unique()) <= FEW else "black: rows held"
        ax.set(xlabel=f"first principal component ({kind}, gray dots: rows not held)")
        ax.set(ylabel="second principal component")
        ax.legend(fontsize=8, loc="upper right")
        figure.suptitle(title, fontsize=10)
        _show_slots(below, slots)
        in_slot = {one % N_q: one for one in range(held.start, held.stop)}
        if row in in_slot.values():
            below.plot(row % N_q, -0.75, marker="v", color="#D55E00", clip_on=False)
        there = points[held]
        plots.answering([ax], lambda *at: {"row": held.start + int((there - torch.tensor(at)).norm(dim=1).argmin())})
        plots.answering([below], lambda x, y: {"row": in_slot.get(round(x))})
        return figure

    return queue


def _class_dots(points: Tensor, classes: Tensor, shade: Tensor | None, to_axes: Transform) -> PathCollection:
    """Points [n, 2] marked by their class, and coloured by it too where there is no shade [n]."""
    order, few = classes.argsort(stable=True), len(classes.unique()) <= FEW
    numbers = classes[order].numpy() if few else np.zeros(len(order), dtype=int)
    styles = {number: MarkerStyle(f"${number}$" if few else ".") for number in set(numbers.tolist())}
    marks = {number: style.get_path().transformed(style.get_transform()) for number, style in styles.items()}
    tones = dict(facecolors=plt.get_cmap("tab10")(numbers % 10))
    if shade is not None:
        tones = dict(array=shade[order].numpy(), cmap=SHADES)
    paths = [marks[number] for number in numbers.tolist()]  # one collection: a scatter of each class takes its time
    places = dict(offsets=points[order].numpy(), offset_transform=to_axes, transform=IdentityTransform())
    return PathCollection(paths, [22 if few else 12], linewidths=0, **places, **tones)


def _show_slots(ax: Axes, ages: Tensor) -> None:
    """A queue's slots by the age of their rows in pushes, NaN where empty."""
    held = ages.isfinite()
    oldest = ages[held].max()
    ax.imshow(ages[None].numpy(), aspect="auto", cmap="gray_r", interpolation="nearest", vmin=-1, vmax=oldest + 2)
    if not held.all():
        ax.axvspan(int(held.sum()) - 0.5, len(ages) - 0.5, facecolor="white", edgecolor="0.5", hatch="///")
    changes = [0, *((ages[1:] != ages[:-1]) & held[1:]).nonzero().flatten().add(1).tolist()]
    for start, stop in zip(changes, [*changes[1:], int(held.sum())], strict=True):
        age = int(ages[start])
        shade = "white" if age > (oldest + 1) / 2 else "black"
        ax.text((start + stop - 1) / 2, 0, age, ha="center", va="center", fontsize=8, color=shade)
    ax.set(xlabel="slot of the queue (hatched: still empty)")
    ax.yaxis.set_visible(False)
    words = dict(xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=9)
    ax.annotate(f"{held.double().mean():.0%} full; age of the rows in pushes", (0.5, 1), (0, 3), **words)


def between(first: Tensor, second: Tensor, count: int) -> Tensor:
    """[count, C, H, W] from one noise [C, H, W] to another: cos(a) first + sin(a) second, a = 0 .. 90 degrees.

    cos^2 + sin^2 = 1, so from two independent standard normal noises each is again standard normal, unlike on the
    straight line between them, whose middle has half the variance.
    """
    angle = torch.linspace(0, math.pi / 2, count, dtype=first.dtype, device=first.device)[:, None, None, None]
    return angle.cos() * first + angle.sin() * second


def at_hand(study: Study) -> tuple[list[str], list[int]]:
    """Methods, and numbers of steps, whose images can be drawn without training; all of them where there is none yet."""
    profile = study.profile
    methods = [name for name in profile.methods if study.at_hand(name, 1)]
    steps = [n for n in profile.student_steps if all(study.at_hand(name, n) for name in methods)]
    return ["ddim", *(methods or profile.methods)], steps


def same_noise_view(study: Study, count: int = 12, pool: int = 48) -> Callable[..., Figure]:
    """What the teacher and a method's student make of the same noises, on the way from one noise to another.

    Returns same_noise(method, steps, first, second, image): of the study's first `pool` noises, numbered from 0, the
    `image`-th of the way large too; where the models take a class, all images get that of `first`.
    """
    noises, clip = study.noise(pool), study.profile.evaluation.clip
    classes, teacher = study.profile.unet.num_classes, study.profile.progressive.teacher_steps
    denoiser, methods = lru_cache(study.denoiser), at_hand(study)[0]
    usual = "rdd" if "rdd" in methods else methods[-1]

    def way(first: int, second: int) -> Tensor:
        same = noises[first].expand(count, -1, -1, -1)
        return same if first == second else between(noises[first], noises[second], count)

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, first: int, second: int) -> Tensor:
        noise = way(first, second)
        y = torch.full((count,), first % classes, device=noise.device) if classes else None
        sample = find_sampler(method, steps) if method in TRAINING_FREE else ddim_sample
        return sample(denoiser(method, steps), noise, steps, y=y, clip=clip).cpu()

    def same_noise(
        method: str = usual,
        steps: int = 1,
        first: int = 0,
        second: int = 1,
        image: int = 0,
        into: plots.Kept | None = None,
    ) -> Figure:
        theirs, ours = drawn("pd", teacher, first, second), drawn(method, steps, first, second)
        apart = (theirs - ours).square().mean().sqrt()
        name = f"{LABELS[method]}, {counted(steps)}"
        # a third of the noise, whose values then fit the range of an image
        rows = {"noise / 3": way(first, second) / 3, f"teacher, {teacher} steps": theirs, name: ours}
        ends = f"From noise {first} (left) to noise {second} (right)"
        title = f"{ends}; RMS distance of the two models {apart:.2f} (range 2)"
        return plots.image_rows(rows, title, look=image, into=into)

    return same_noise


def gradients_view(x: Tensor, cfd: Tensor, relations: Mapping[float, Tensor], count: int = 8) -> Callable[..., Figure]:
    """Where CFD and relations pull a student's images, the relations' gradient at a share of CFD's.

    Args:
        x: the student's images [N, C, H, W] in [-1, 1].
        cfd: CFD's gradient at them, of the same shape.
        relations: {tau: gradient of a relational loss at that temperature}.
        count: how many of them are drawn.

    Returns gradients(share, tau): a step against each gradient, in the scale of CFD's 99th percentile; grey is no pull.
    """
    scale = cfd.abs().flatten().quantile(0.99)

    def gradients(share: float = 1.0, tau: float = min(relations)) -> Figure:
        gradient = relations[tau]
        weight = share * cfd.norm() / gradient.norm()
        cosine = F.cosine_similarity(gradient.flatten(), cfd.flatten(), dim=0)
        most = float((weight * gradient / scale).abs().max())
        seen = f"\n(not empty: at most\n{most:.0%} of the scale)" if most < 0.1 else ""
        relation = f"IS_P2P, share {share:g}{seen}"
        pulls = {"CFD": cfd, relation: weight * gradient, "their sum": cfd + weight * gradient}
        rows = {"the student's": x} | {name: (-pull / scale).clamp(-1, 1) for name, pull in pulls.items()}
        title = (
            f"tau_IS = {tau:g}: a share of {share:g} is a weight of {weight:.3g}; cosine of the two pulls {cosine:+.2f}"
        )
        return plots.image_rows({name: images[:count].cpu() for name, images in rows.items()}, title)

    return gradients


def guidance_view(guided: Study, count: int = 12) -> Callable[..., Figure]:
    """What guidance makes of the same noises: the teacher, stage one, and stage two's students.

    Returns guidance(w, steps, label): all images of class `label`, the students in `steps` steps (those that there are).
    """
    noise, profile = guided.noise(count), guided.profile
    top, known = profile.base.steps, {(arm.method, arm.steps, arm.sampler) for arm in guided.arms()}
    denoiser = lru_cache(guided.denoiser)

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, sampler: str, w: float, label: int) -> Tensor:
        y = torch.full((count,), label, device=noise.device)
        model = denoiser(method, steps, None, sampler)
        return guided.sample(model, noise, steps, w, y, sampler).cpu()

    first, near_one = min(3, profile.unet.num_classes - 1), min(profile.guidance.at, key=lambda w: abs(w - 1))

    def guidance(w: float = near_one, steps: int = profile.student_steps[0], label: int = first) -> Figure:
        rows = {
            f"teacher, 2 x {top}": drawn("teacher", top, "ddim", w, label),
            f"stage one, {top}": drawn("stage_one", top, "ddim", w, label),
        }
        for method in profile.guidance.objectives:
            for sampler, words in (("ddim", ""), ("stochastic", " stochastic")):
                if (method, steps, sampler) in known:
                    rows[f"{LABELS[method]}{words}, {steps}"] = drawn(method, steps, sampler, w, label)
        return plots.image_rows(rows, f"Class {label}, guidance weight w = {w:g}; a column is one noise")

    return guidance


def prompt_view(guided: Study, count: int = 8) -> Callable[..., Figure]:
    """What a text-guided model and its students make of a prompt.

    Returns told(prompt, w, steps, seed): images of the prompt guided by w, a column for each of `count` noises of that seed;
    the teacher above, the students below in `steps` steps. Its default prompt is the data set's first caption.
    """
    profile, space = guided.profile, guided.space
    models = {f"teacher, 2 x {profile.base.steps}": ("teacher", profile.base.steps)}
    names = {method: LABELS[method] for method in profile.guidance.objectives}

    @lru_cache(maxsize=256)
    def drawn(method: str, steps: int, prompt: str, w: float, seed: int) -> Tensor:
        model = guided.denoiser(method, steps).within(space.with_prompts([prompt]))
        noise = guided.noise(count, seed)
        y = torch.zeros(count, dtype=torch.long, device=noise.device)
        return guided.sample(model, noise, steps, w, y).cpu()

    near_one = min(profile.guidance.at, key=lambda w: abs(w - 1))

    def told(
        prompt: str = space.prompts[0], w: float = near_one, steps: int = profile.student_steps[0], seed: int = 0
    ) -> Figure:
        shown = models | {f"{label}, {steps}": (method, steps) for method, label in names.items()}
        rows = {label: drawn(*model, prompt, w, seed) for label, model in shown.items()}
        return plots.image_rows(rows, f"“{prompt}”, w = {w:g}; a column is one noise")

    return told
