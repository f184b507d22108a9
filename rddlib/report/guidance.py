"""Scores against the guidance weight: figures, a column for each number of steps, and sentences computed from the rows.

Every table here has rddlib.study.guidance.GUIDED_COLUMNS, with the rows of teacher and stage one.
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rddlib.evaluation import SCORES
from rddlib.methods import LABELS, STYLES
from rddlib.report.figures import log_axis, plot_seeds
from rddlib.study.graph import STOCHASTIC
from rddlib.utils.text import counted

_FIRST = dict(linestyle="", marker="o", markersize=11, markerfacecolor="none")  # around the smallest weight
_ABOVE = ("teacher", "stage_one")  # drawn in every column, at the steps that stage two starts from


def weights_figure(table: pd.DataFrame, metric: str, scores: Sequence[str] = ("fid", "is")) -> Figure:
    """Each score (a row) against w: means over seeds, and bands from the lowest to the highest.

    metric: the FID's full name.
    """
    figure, axes, columns = _panels(table, len(scores))
    for row, score in zip(axes, scores, strict=True):
        for ax, arms in zip(row, columns, strict=True):
            for (method, sampler), rows in arms:
                plot_seeds(ax, rows.groupby("guidance")[score], 0.12, **_style(method, sampler))
            ax.set_xlabel("guidance weight w")
        row[0].set_ylabel(_axis(score))
        if score == "fid":
            log_axis(row[0].yaxis, (1, 2, 5))
    _finish(figure, table, f"Scores against the guidance weight; FID*: {metric}")
    return figure


def tradeoff_figure(table: pd.DataFrame, metric: str) -> Figure:
    """FID against IS, means over seeds, the weight growing along each line. Down and to the right is better.

    metric: the FID's full name.
    """
    figure, axes, columns = _panels(table, 1)
    for ax, arms in zip(axes[0], columns, strict=True):
        for (method, sampler), rows in arms:
            curve, style = rows.groupby("guidance")[["is", "fid"]].mean(), _style(method, sampler)
            ax.plot(curve["is"], curve["fid"], **style)
            ax.plot(curve["is"].iloc[:1], curve["fid"].iloc[:1], color=style["color"], **_FIRST)
            if method == "teacher":  # beside its points, where no line goes
                for w, place in curve.iterrows():
                    at = dict(xytext=(6, 4), va="bottom") if w == curve.index[0] else dict(xytext=(7, -3), va="top")
                    ax.annotate(f"w = {w:g}", place, textcoords="offset points", fontsize=7, color="0.3", **at)
        ax.margins(x=0.3)
        ax.set_xlabel(_axis("is"))
    axes[0, 0].set_ylabel(_axis("fid"))
    log_axis(axes[0, 0].yaxis, (1, 2, 5))
    ring = Line2D([], [], color="0.3", label=f"w = {table['guidance'].min():g}", **_FIRST)
    _finish(figure, table, f"What a better IS costs in FID; FID*: {metric}", ring)
    return figure


def _style(method: str, sampler: str) -> dict:
    noisy = dict(linestyle="--", markerfacecolor="white") if sampler == STOCHASTIC else {}
    return dict(linewidth=1.4, markersize=5, **STYLES[method]) | noisy


def _axis(score: str) -> str:
    return SCORES[score].label + "*" * (score in ("fid", "is"))


def _panels(table: pd.DataFrame, rows: int) -> tuple[Figure, np.ndarray, list]:
    """(figure, axes, of each column its rows by (method, sampler)): stage two's steps, most first, teacher and stage one in
    each."""
    above = table["method"].isin(_ABOVE)
    steps = sorted(set(table.loc[~above, "steps"]), reverse=True)
    size, alike = (2.5 * len(steps), 2.3 * rows + 1.1), dict(sharex="row", sharey="row", squeeze=False)
    figure, axes = plt.subplots(rows, len(steps), figsize=size, layout="constrained", **alike)
    for ax, number in zip(axes[0], steps, strict=True):
        ax.set_title(counted(number), fontsize=10)
    shown = [table[(table["steps"] == number) | above] for number in steps]
    return figure, axes, [arms.groupby(["method", "sampler"], sort=False) for arms in shown]


def _name(method: str, sampler: str) -> str:
    return LABELS[method] + ", stochastic" * (sampler == STOCHASTIC)


def _finish(figure: Figure, table: pd.DataFrame, title: str, *more: Line2D) -> None:
    """Title, and one legend for all panels below them, with more lines; teacher and stage one with their steps."""
    lines = []
    found = table.drop_duplicates(["method", "sampler"])[["method", "sampler", "steps"]]
    for method, sampler, steps in found.itertuples(index=False):
        own = f", {counted(steps)}" * (method in _ABOVE) + " of 2 evaluations" * (method == "teacher")
        lines.append(Line2D([], [], label=_name(method, sampler) + own, **_style(method, sampler)))
    lines += more
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, math.ceil(len(lines) / 2)), fontsize=8)


def findings(table: pd.DataFrame) -> str:
    """Markdown: stage one against its teacher, the best weights, what fewer steps cost, and pairs that differ in one thing."""
    grouped = table.groupby(["method", "sampler", "steps"], sort=False)
    curves = {arm: rows.groupby("guidance")[["fid", "is"]].mean() for arm, rows in grouped}  # by w
    (teacher,), (whole,) = ([curve for arm, curve in curves.items() if arm[0] == method] for method in _ABOVE)
    lines, best = _stage_one(teacher, whole), []
    for (method, sampler, steps), curve in curves.items():
        fid, w = curve["fid"].min(), curve["fid"].idxmin()
        best.append(f"{_name(method, sampler)}, {counted(steps)}: {fid:.2f} at w = {w:g}")
    by_is = ", ".join(f"{w:g}" for w in sorted({curve["is"].idxmax() for curve in curves.values()}))
    lines.append(f"**Best weight by FID\\***: {'; '.join(best)}. By IS\\* the best are {by_is}.")
    students = dict.fromkeys(method for method, *_ in curves if method not in _ABOVE)
    for student in students:
        ratios = {arm[1:]: (curve["fid"] / whole["fid"]).mean() for arm, curve in curves.items() if arm[0] == student}
        noisy = {arm: ", stochastic" * (arm[0] == STOCHASTIC) for arm in ratios}
        said = "; ".join(f"{counted(arm[1])}{noisy[arm]} {ratio:.2f}" for arm, ratio in ratios.items())
        lines.append(f"**{LABELS[student]}'s students**, FID\\* as a multiple of stage one's, mean over w: {said}.")
    return "\n".join(f"- {line}" for line in [*lines, *_pairs(table)])


def _stage_one(teacher: pd.DataFrame, student: pd.DataFrame) -> list[str]:
    gaps = ", ".join(f"{gap:+.2f} at w = {w:g}" for w, gap in (student["fid"] - teacher["fid"]).items())
    lines, low = [f"**Stage one against its teacher**, FID\\*: {gaps}."], teacher.index.min()
    if student.loc[low, "fid"] < teacher.loc[low, "fid"]:
        lines.append(
            f"At w = {low:g} stage one is *better* than what it imitates, so this is a miss that happens to pay: "
            f"its IS\\* there is {student.loc[low, 'is']:.2f}, the teacher's {teacher.loc[low, 'is']:.2f}."
        )
    return lines


def _pairs(table: pd.DataFrame) -> list[str]:
    """Arms that differ in one thing only: the sampler, or the objective."""
    index, words = ["steps", "guidance", "seed"], []
    pairs = table.pivot_table(index=["method", *index], columns="sampler", values="fid").dropna()
    if STOCHASTIC in pairs:
        for method, lower in (pairs[STOCHASTIC] < pairs["ddim"]).groupby("method"):
            ahead = f"{lower.sum()} of {len(lower)} for {LABELS[method]}"
            words.append(f"the stochastic sampler has the lower one in {ahead}")
    rivals = table[table["sampler"] == "ddim"].pivot_table(index=index, columns="method", values="fid")
    for method in [name for name in rivals if name not in (*_ABOVE, "pd") and "pd" in rivals]:
        both = rivals[[method, "pd"]].dropna()
        lower = (both[method] < both["pd"]).sum()
        words.append(f"{LABELS[method]} has a lower one than PD in {lower} of {len(both)}")
    return [f"**Pairs that differ in one thing only**, by FID\\*: {'; '.join(words)}."] if words else []


def scores_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each sampler of each model, a column for each score at each weight; means over seeds."""
    named = table.assign(method=table["method"].map(LABELS))
    wide = named.pivot_table(index=["method", "sampler", "steps"], columns="guidance", values=["fid", "is"], sort=False)
    wide.columns = [f"{SCORES[score].label}*, w = {w:g}" for score, w in wide.columns]
    return wide.sort_index(axis=1).round(2).reset_index()
