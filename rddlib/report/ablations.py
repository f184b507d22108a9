"""A sweep from beginning to end: what its runs share, then the runs, then tables, receipts and figures.

An ablation's tidy table as a figure is laid out as in the papers: along an axis, row by row, or entropies against time; the
entropies of one model at each sampling step, after Fig. 2 of Sun et al. 2023, are drawn here too.
"""

import itertools
import math
import re
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rddlib.methods import LABELS, STYLES
from rddlib.report.figures import log_axis, plot_seeds, to_png
from rddlib.report.published import figure_values, paper_table
from rddlib.study.ablations import ABLATIONS, RCFD_PAPER, RDD_PAPER, Ablation
from rddlib.study.engines import Engine, Outcome, Task
from rddlib.study.profiles import Profile
from rddlib.study.sweep import Sweep, mark_version
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, human_time, say

WIDTH, NARROW = 9.2, 7.2  # inches, of several panels and of one; 1200 pixels at the 130 dots an inch of plots.to_png
BASELINES = {"PD": "-.", "CFD": "--"}  # settings to compare the others with, and their dash beside an axis
_LABELS = {"pfd": "pFD (raw pixels)", "peak_mib": "peak memory of a training (MiB)"}
_AXES = {
    "distill.train.batch_size": "batch size (images)",
    "distill.temperatures": "temperature of CFD, tau",
    "loss.tau_is": "temperature of IS_P2P, tau_IS",
    "loss.tau_m": "temperature of M_P2P, tau_M",
    "loss.queue_size": "rows of the pixel queue, N_q",
    "loss.draws": "rows drawn from the queue, V",
    "loss.alpha": "weight of IS_P2P, alpha",
    "loss.beta": "weight of M_P2P, beta",
}
# Every other line has large hollow markers, so that both are seen where two are one.
_COLORS, _DASHES, _MARKERS = ("#D55E00", "0.1", "#009E73", "#CC79A7"), ("-", "--", "-.", ":"), "Dos^vPX*"
_SIZES = dict(markersize=6), dict(markersize=10, markerfacecolor="none")
_ARROW = dict(linestyle="", marker=r"$\rightarrow$", markersize=9)
_LINES = [dict(color=_COLORS[k % 4], linestyle=_DASHES[k % 4], marker=_MARKERS[k], **_SIZES[k % 2]) for k in range(8)]


@dataclass(frozen=True)
class PaperSeries:
    """What a paper says of an ablation's FID.

    Args:
        label: whose.
        steps: of all of it.
        fids: {setting: FID}.
        marks: values of the axis that its text names, as marks_label says.
        levels: {method, with its classifier where that is named: FID}, lines that its figure compares with.
    """

    label: str
    steps: int
    fids: Mapping[str, float] = field(default_factory=dict)
    marks: tuple[float, ...] = ()
    marks_label: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)


def paper_series(ablation: Ablation, profile: Profile) -> PaperSeries | None:
    """The paper's numbers to draw beside an ablation's; None where it gives none, and on any profile but the papers' own."""
    found = re.fullmatch(r"(Table|Fig\.) (\w+), (.+)", ablation.source)
    if profile.name != "cifar10" or not found:
        return None
    kind, number, label = found.groups()
    paper = {RDD_PAPER: "rdd", RCFD_PAPER: "rcfd"}[label]
    if kind == "Table":
        return _of_table(paper_table(f"{paper}_table{number}"), label, by_classifier=ablation.name == "classifier")
    series = _of_figure(figure_values(paper).query("figure == @number"), label)
    return series if series.marks or series.levels else None


def _of_table(rows: pd.DataFrame, label: str, by_classifier: bool) -> PaperSeries:
    if by_classifier:  # one that saw ImageNet only is no setting of ours
        rows = rows[rows["classifier_data"] == "CIFAR-10"]
        names = rows["classifier"].str.lower()
    else:
        names, label = rows["loss"].str.replace("+", " + "), f"{label} ({next(filter(None, rows['classifier']))})"
    return PaperSeries(label, int(rows["steps"].iloc[0]), dict(zip(names, rows["fid"], strict=True)))


def _of_figure(rows: pd.DataFrame, label: str) -> PaperSeries:
    best = rows["quantity"].str.endswith(", best")
    marks = rows[best | rows["quantity"].str.startswith("tau better than PD")]["value"].astype(float)
    words = f"best in {label}" if best.any() else f"PD beaten between these, {label}"
    levels = {}
    for row in rows[rows["quantity"].str.startswith("FID of the")].itertuples():
        classifier = re.search(r" with \w+", row.note)
        levels[row.method + (classifier[0] if classifier else "")] = float(row.value)
    return PaperSeries(label, int(rows["steps"].iloc[0]), marks=tuple(marks), marks_label=words, levels=levels)


def ablation_figure(ablation: Ablation, table: pd.DataFrame, profile: Profile, metric: str) -> Figure:
    """What has been measured of an ablation, in its paper's layout; on the papers' own profile with the papers' numbers.

    An ablation with values on an axis is drawn along it at the fewest steps, any other row by row at all of them; pFD
    stands beside FID where it was measured, peak memory where the batch size varies. Raises UserError where nothing was
    measured.

    Args:
        ablation: one of the catalogue, or a custom one.
        table: with sweep.COLUMNS, rows of this ablation only, complete or not.
        profile: of the runs.
        metric: the FID's full name.
    """
    measured = "entropy" if ablation.measures == "entropy" else "fid"
    numbers = {name: pd.to_numeric(table[name]).astype(float) for name in ("x", "fid", "t", "entropy", *_LABELS)}
    table = table.assign(series=table["series"].astype(object).fillna(""), **numbers).dropna(subset=measured)
    if not len(table):
        raise UserError(f"nothing of ablation {ablation.name} has been measured: run rdd ablate {ablation.name} first")
    better = "lower is better"
    if measured == "entropy":
        figure = _entropies(table)
        note, better = "mean of {}", f"{table['samples'].max():g} images each; lower is surer of a class"
    elif table["x"].notna().any():
        table = table[table["steps"] == table.dropna(subset="x")["steps"].min()]
        figure = _along_axis(ablation, table, metric, paper_series(ablation, profile))
        note = "lines: mean of {}, bands: their range"
    else:
        figure = _row_by_row(table, metric, paper_series(ablation, profile))
        note = "mean ± standard deviation of {}, dots: each"
        if any(_row_of(name) != name for name in table["setting"]):
            note = "a row's markers: means of {}, an extractor each; dots: each seed; numbers: lowest to highest mean"
    _entitle(figure, ablation, table, profile, f"{note}; {better}")
    return figure


def _entitle(figure: Figure, ablation: Ablation, table: pd.DataFrame, profile: Profile, note: str) -> None:
    """A title with steps, iterations and the number of seeds in the note, and one legend below all panels, each name once."""
    counts = sorted(set(table.groupby("setting")["seed"].nunique()))
    seeds = " to ".join([*map(str, counts[:-1][:1]), counted(counts[-1], "seed")])
    over = f": {', '.join(axis.label for axis in ablation.axes)}" if not ablation.source else ""
    *most, last = sorted(table["steps"].unique(), reverse=True)
    steps = f"{', '.join(map(str, most))} and {last} steps" if most else counted(last)
    if counts == [1]:
        note = "{}; " + note.partition("; ")[2]
    halvings = zip(profile.student_steps, profile.distill.iterations, strict=True)
    trained = " / ".join(f"{number:,}" for n, number in halvings if n in (*most, last))
    longer = ", more for equal time" if table["setting"].str.contains("equal time").any() else ""
    own = any(axis.field == "distill.iterations" for axis in ablation.axes)  # varied, and in the settings' names
    words, note = f"{profile.name}, {steps}" + (f" after {trained} iterations{longer}" * (not own)), note.format(seeds)
    width = int(13 * figure.get_figwidth())
    below = [f"{words}; {note}"] if len(words + note) + 2 <= width else [words, note]
    lines = [textwrap.fill(text, width) for text in (ablation.title + over, *below)]
    figure.suptitle("\n".join(lines), fontsize=11)
    pairs = (zip(*ax.get_legend_handles_labels(), strict=True) for ax in figure.axes)
    if named := {label: handle for handle, label in itertools.chain(*pairs)}:
        columns = int(figure.get_figwidth() / (0.8 + 0.065 * max(map(len, named))))
        place = dict(loc="outside lower center", ncols=max(1, min(len(named), columns)), handlelength=3)
        figure.legend(named.values(), named.keys(), fontsize=9, **place)


def _scale(ax: Axes, which: str, values: Iterable[float], ticks: int = 6) -> None:
    """Logarithmic where the values span more than a factor of 5, so that one far off does not squash the others."""
    low, high = min(values), max(values)
    axis = getattr(ax, f"{which}axis")
    if low > 0 and high / low > 5:
        few = (1, 2, 5) if which == "x" else (1, 2, 3, 5, 7)  # labels above one another take less room
        log_axis(axis, few if high / low < 15 else (1, 3) if high / low < 1000 else (1,))
        ax.minorticks_off()
    else:
        axis.set_major_locator(MaxNLocator(ticks))


def _dress(ax: Axes, **words: str) -> None:
    ax.set(**words)
    ax.tick_params(labelsize=9)
    ax.grid(color="0.93", linewidth=0.6)
    ax.set_axisbelow(True)


def _along_axis(ablation: Ablation, table: pd.DataFrame, metric: str, paper: PaperSeries | None) -> Figure:
    """A panel for FID and one for peak memory, of the batch size, or pFD."""
    table = table.assign(peak_mib=table["peak_mib"].where(table["peak_mib"] > 0))  # 0: it was not measured
    known = table.dropna(subset="x").notna().any()
    second = "peak_mib" if ablation.name == "batch" and known["peak_mib"] else "pfd"
    labels = {"fid": metric, **({second: _LABELS[second]} if known[second] else {})}
    size = (WIDTH if len(labels) > 1 else NARROW, 4.3)
    paper = paper if paper and paper.steps in set(table["steps"]) else None
    figure, axes = plt.subplots(1, len(labels), figsize=size, layout="constrained", squeeze=False)
    for ax, (column, label) in zip(axes[0], labels.items(), strict=True):
        rows = table.dropna(subset=column)
        _lines(ax, ablation, rows.dropna(subset="x"), column)
        _beside(ax, rows[rows["x"].isna()], column)
        _scale(ax, "y", [*rows[column], *(_levels(ax, paper) if paper and column == "fid" else ())])
        _ticks(ax, sorted(rows["x"].dropna().unique()))
        words = _AXES.get(ablation.axes[0].field, f"value of {ablation.axes[0].label} (as in the profile)")
        _dress(ax, xlabel=words, ylabel="\n".join(textwrap.wrap(label, 45)))
    return figure


def _lines(ax: Axes, ablation: Ablation, rows: pd.DataFrame, column: str) -> None:
    """A line for each series: its mean, a band from the lowest to the highest seed, and the seeds as dots."""
    fixed = (f"{key.split('.')[-1]} = {value:g}" for key, value in ablation.fixed.items())
    alone = ", ".join([LABELS[ablation.method], *fixed])
    axes = ", ".join(axis.label for axis in ablation.axes[1:])
    for (name, line), style in zip(rows.groupby("series", sort=False), itertools.cycle(_LINES)):
        ax.plot(line["x"], line[column], linestyle="", marker=".", markersize=5, color=style["color"], alpha=0.7)
        plot_seeds(ax, line.groupby("x")[column], 0.15, **style, label=f"{axes}: {name}" if name else alone)


def _beside(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Settings beside the axis as horizontal lines with the range of their seeds."""
    for name, group in rows.groupby("setting", sort=False):
        color, values = STYLES[group["method"].iloc[0]]["color"], group[column]
        ax.axhspan(values.min(), values.max(), color=color, alpha=0.12, linewidth=0)
        ax.axhline(values.mean(), color=color, linestyle=BASELINES.get(name, ":"), linewidth=1.5, label=name)


def _levels(ax: Axes, paper: PaperSeries) -> Iterable[float]:
    """The paper's levels and marks, dotted; returns its FIDs."""
    for name, fid in paper.levels.items():
        style = STYLES[name.split()[0].lower()] | dict(linestyle=":", markerfacecolor="none", clip_on=False)
        ax.plot([0, 1], [fid, fid], transform=ax.get_yaxis_transform(), label=f"{name}, {paper.label}", **style)
    for place, mark in enumerate(paper.marks):
        ax.axvline(mark, color="0.4", linestyle=":", linewidth=1.3, label=None if place else paper.marks_label)
    return paper.levels.values()


def _ticks(ax: Axes, values: Sequence[float]) -> None:
    """Ticks at these values, logarithmic (linear up to the least where there is a 0) where they span more than a factor of
    20 or would crowd; labels that would touch are written on further lines, as far as three hold them."""
    positive, gaps = [value for value in values if value > 0], np.diff(values)
    if positive and (positive[-1] > 20 * positive[0] or min(gaps, default=1) < 0.08 * sum(gaps)):
        ax.set_xscale("log") if values[0] > 0 else ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    ax.margins(x=0.06)
    forward = ax.get_xaxis().get_transform().transform
    low, high = forward(np.array(ax.get_xlim()))
    ends, texts = [-1.0] * 3, []
    for value in values:
        middle, half = (forward(np.array([value]))[0] - low) / (high - low), 0.005 + 0.01 * len(f"{value:g}")
        line = next((k for k, end in enumerate(ends) if middle - half > end), None)
        texts.append("" if line is None else "\n" * line + f"{value:g}")
        if line is not None:
            ends[line] = middle + half
    ax.set_xticks(values, texts)
    ax.minorticks_off()


def _row_by_row(table: pd.DataFrame, metric: str, paper: PaperSeries | None) -> Figure:
    """A row for each setting, first on top, one that went through several extractors on one row; a panel for each score and
    number of steps."""
    table = table.assign(row=table["setting"].map(_row_of))
    names, steps = list(dict.fromkeys(table["row"])), sorted(table["steps"].unique(), reverse=True)
    pitch = 0.27 if table["setting"].nunique() == len(names) else 0.36
    labels = {"fid": metric, **({"pfd": _LABELS["pfd"]} if table["pfd"].notna().any() else {})}
    panels, lines = list(itertools.product(labels, steps)), len(labels) if len(steps) > 1 else 1
    size = (WIDTH if len(panels) > 1 else NARROW, 1.2 + lines * (0.9 + pitch * len(names)))
    grid = dict(figsize=size, layout="constrained", sharey=True, squeeze=False)
    figure, axes = plt.subplots(lines, len(panels) // lines, **grid)
    axes[0, 0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    for ax, (column, number) in zip(axes.flat, panels, strict=True):
        rows = table[table["steps"] == number].dropna(subset=column)
        _rows(ax, rows, column, names, paper if paper and (column, number) == ("fid", paper.steps) else None)
        _dress(ax, xlabel="\n".join(textwrap.wrap(labels[column], 30 if len(steps) > 1 else 60)))
        ax.set_title(counted(number) if len(steps) > 1 else "", fontsize=10)
    return figure


def _row_of(setting: str) -> str:
    """A setting's name without the extractor that it went through."""
    return re.sub(r", extractor \d+$", "", setting)


def _rows(ax: Axes, rows: pd.DataFrame, column: str, names: Sequence[str], paper: PaperSeries | None) -> None:
    """Seeds as dots, their mean as a large marker, both as numbers at the right; the first baseline as a line.

    Where the highest mean would squeeze most others, it and its like are arrows at the right end: their numbers say the rest.
    """
    baseline = next((name for name in names if name.split(",")[0] in BASELINES), None)
    published = {name: fid for name, fid in paper.fids.items() if name in names} if paper else {}
    means = rows.groupby("setting")[column].mean()
    most = np.quantile([*means, *published.values()], 0.75) if len(means) else 0.0
    end = 1.5 * most if means.max() > 3 * most else math.inf
    inside = rows[rows["setting"].map(means) <= end]
    for name, row in rows.groupby("row", sort=False):
        style, through = STYLES[row["method"].iloc[0]], list(row.groupby("setting", sort=False)[column])
        if name == baseline and row[column].mean() <= end:
            ax.axvline(row[column].mean(), color="0.5", linewidth=0.8, label=f"mean of {name}")
        for k, (_, values) in enumerate(through):
            place = names.index(name) + 0.25 * (k - (len(through) - 1) / 2)
            if values.mean() > end:
                ax.plot(0.94, place, color=style["color"], transform=ax.get_yaxis_transform(), **_ARROW)
                continue
            large = dict(marker=style["marker"], markersize=9 - 1.5 * len(through))
            ax.plot(values.mean(), place, color=style["color"], **large)
            ax.plot(values, [place] * len(values), linestyle="", marker=".", markersize=4.5, color="0.2")
        written = _written([values for _, values in through])
        ax.text(1.03, names.index(name), written, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    if means.max() > end:
        ax.plot([], [], color="0.3", label="beyond the axis: see its number", **_ARROW)
    if published:
        hollow = dict(linestyle="", marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.3, color="0.1")
        ax.plot(list(published.values()), [names.index(name) for name in published], label=paper.label, **hollow)
    if known := [*inside[column], *published.values()]:
        _scale(ax, "x", known, ticks=4)
    ax.margins(x=0.09)


def _written(through: Sequence[pd.Series]) -> str:
    """Mean ± standard deviation of the seeds, the mean alone where there is one; of several extractors the lowest and the
    highest mean."""

    def form(score: float) -> str:
        return ".1f" if score >= 100 else ".2f" if score >= 1 else ".3f"

    means, deviation = sorted(values.mean() for values in through), through[0].std()
    first, last = (f"{mean:{form(mean)}}" for mean in (means[0], means[-1]))
    if len(through) > 1:
        return f"{first} to {last}"
    return first + ("" if math.isnan(deviation) else f" ± {deviation:{form(means[0])}}")


def _entropies(table: pd.DataFrame) -> Figure:
    """A panel for each model, a curve for each number of steps, as in Fig. 2 of Sun et al. 2023."""
    steps, names = sorted(table["steps"].unique(), reverse=True), list(dict.fromkeys(table["setting"]))
    grid = dict(figsize=(max(NARROW, WIDTH * len(names) / 4), 4.1), layout="constrained", sharey=True, squeeze=False)
    figure, axes = plt.subplots(1, len(names), **grid)
    for ax, name in zip(axes[0], names, strict=True):
        for place, number in enumerate(steps):
            rows = table[(table["setting"] == name) & (table["steps"] == number)]
            if len(rows):
                style = _entropy_style(place, len(steps), 2.5)
                ax.plot(rows.groupby("t")["entropy"].mean(), label=counted(number), **style)
        ax.set_title(name, fontsize=10)
        _dress(ax, xlim=(1.1, 0), xticks=(1, 0.5, 0), xticklabels=("1", "0.5", "0"), xlabel="time t (noise at 1)")
    axes[0, 0].set_ylabel("entropy of the predicted class (nats)")
    _scale(axes[0, 0], "y", table.groupby(["setting", "steps", "t"])["entropy"].mean())
    return figure


def _entropy_style(place: int, runs: int, growth: float) -> dict:
    """Of the run in this place, most steps first, told apart in gray too: fewer steps are lighter, and their markers larger
    and hollow, so that all remain visible at t = 1."""
    line = dict(color=plt.cm.cividis(0.7 * place / max(runs - 1, 1)), linestyle=_DASHES[place % 4], linewidth=1.3)
    return dict(marker="oDs^vP*X"[place % 8], markersize=5 + growth * place, markerfacecolor="none", **line)


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
        if len(values) != steps or steps < 1:
            raise UserError(f"the run of {counted(steps)} has {len(values)} entropies: pass one for each step")
        style = _entropy_style(place, len(curves), 3)
        times = [(steps - k) / steps for k in range(steps)]
        ax.plot(times, [float(value) for value in values], label=f"{counted(steps)}: {float(values[-1]):.2f}", **style)
    most, entropies = math.log(classes), [float(value) for values in curves.values() for value in values]
    words, place = f"log {classes} = {most:.2f}: all classes equally likely", most
    if 0 < max(entropies) < most / 4:
        least = min(value for value in entropies if value > 0)
        ax.set(yscale="log", ylim=(max(least, 1e-4) / 2, 1.8 * most))
    elif 0 < max(entropies) < most / 2:  # half of the axis would be empty
        ax.set_ylim(0, 1.25 * max(entropies))
        words, place = f"beyond the axis: {words}", 1.14 * max(entropies)
    else:
        ax.set_ylim(0, 1.1 * most)
    ax.axhline(most, color="0.6", linewidth=0.8)
    beside = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points", ha="right", fontsize=8)
    ax.annotate(words, (0.99, place), (0, 2), **beside)
    ax.set(xlim=(1.05, 0), xlabel="time t of the prediction (noise at 1, image at 0)")
    ax.set(ylabel="entropy of the predicted class (nats)")
    ax.set_title(f"Classifier entropy at each sampling step\nmean of {images:,} images, the same noise", fontsize=11)
    place = dict(loc="outside right upper", fontsize=9, title_fontsize=9, labelspacing=0.8)
    figure.legend(title="entropy of the last guess", **place)
    return figure


# a sweep


def shard_of(tasks: Sequence[Task], text: str) -> list[Task]:
    """ "2/5": the second of five parts that together are all. Raises UserError where it reads otherwise."""
    words = text.split("/")
    if len(words) != 2 or not all(word.isdigit() for word in words) or not 1 <= int(words[0]) <= int(words[1]):
        raise UserError(f"--shard {text}: write it as 1/4, the first of four parts, to 4/4")
    part, parts = map(int, words)
    return list(tasks)[part - 1 :: parts]


def run_sweep(sweep: Sweep, engine: Engine, shard: str = "1/1") -> list[Outcome]:
    """Do what is missing of a sweep's runs, or of a part of them, with a line for each; the outcomes that failed.

    Tables and figures of all that has been measured by then are written at the end, also where it is told to stop.
    """
    waiting = sweep.waiting()
    runs = [run for key, run in shard_of(list(sweep.runs.items()), shard) if key in waiting]
    mark_version(sweep.base.out)
    try:
        failed = _perform(engine, sweep.ancestors(runs), "models that runs need")
        lacking = {run for outcome in failed for run in sweep.needing(outcome.task, runs)}
        failed += [Outcome(run, "what it needs could not be made", 0.0, failed=True) for run in runs if run in lacking]
        failed += _perform(engine, [run for run in runs if run not in lacking], "runs")
    finally:
        write_results(sweep)
    return failed


def _perform(engine: Engine, tasks: list[Task], what: str) -> list[Outcome]:
    failed: list[Outcome] = []
    ended, began = 0, time.monotonic()

    def report(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        left = (time.monotonic() - began) / ended * (len(tasks) - ended)
        time_left = f", about {human_time(left)} left" if left else ""
        word = "FAILED, " if outcome.failed else ""
        told = f"{outcome.task.label}: {word}{outcome.said} ({outcome.seconds:.0f} s)"
        say(f"{told}; {ended} of {len(tasks)} {what} done{time_left}")
        if outcome.failed:
            failed.append(outcome)

    if tasks:
        engine(tasks, report)
    return failed


def write_results(sweep: Sweep) -> None:
    """A table, its receipts and a figure for each ablation that has rows; one table of all where all were asked for."""
    sweep = sweep.widened()
    for ablation in sweep.ablations:
        table = sweep.table(ablation.name)
        if len(table):
            figure = ablation_figure(ablation, table, sweep.base.profile, sweep.base.metric)
            write_atomically(sweep.write(ablation.files, ablation.name).with_suffix(".png"), to_png(figure))
    if {ablation.name for ablation in sweep.ablations} == set(ABLATIONS):
        sweep.write("all")
