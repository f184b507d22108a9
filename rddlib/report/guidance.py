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

from rddlib.methods import LABELS, STYLES
from rddlib.report.figures import SCORE_NAMES, log_axis, plot_seeds
from rddlib.study.graph import STOCHASTIC
from rddlib.utils.text import counted

Curves = dict[tuple[str, str, int], pd.DataFrame]  # (method, sampler, steps): mean fid and is, by w
_FIRST = dict(linestyle="", marker="o", markersize=11, markerfacecolor="none")  # around the smallest weight
_ABOVE = ("teacher", "stage_one")  # drawn in every column, at the steps that stage two starts from


def series_of(table: pd.DataFrame, steps: int) -> list[tuple[str, str, pd.DataFrame]]:
    """(method, sampler, its rows) of a column: those of so many steps, and teacher and stage one at theirs."""
    shown = table[(table["steps"] == steps) | table["method"].isin(_ABOVE)]
    return [(*name, rows) for name, rows in shown.groupby(["method", "sampler"], sort=False)]


def label_of(method: str, sampler: str, steps: int) -> str:
    """As in a legend: "RDD, stochastic"; teacher and stage one with their steps."""
    own = f", {counted(steps)}" * (method in _ABOVE) + " of 2 evaluations" * (method == "teacher")
    return LABELS[method] + ", stochastic" * (sampler == STOCHASTIC) + own


def weights_figure(table: pd.DataFrame, metric: str, scores: Sequence[str] = ("fid", "is")) -> Figure:
    """Each score (a row) against w: means over seeds, and bands from the lowest to the highest.

    metric: the FID's full name.
    """
    figure, axes = _panels(table, len(scores))
    for row, score in zip(axes, scores, strict=True):
        for ax, steps in zip(row, _columns(table), strict=True):
            for method, sampler, rows in series_of(table, steps):
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
    figure, axes = _panels(table, 1)
    for ax, steps in zip(axes[0], _columns(table), strict=True):
        for method, sampler, rows in series_of(table, steps):
            curve, style = rows.groupby("guidance")[["is", "fid"]].mean(), _style(method, sampler)
            ax.plot(curve["is"], curve["fid"], **style)
            ax.plot(curve["is"].iloc[:1], curve["fid"].iloc[:1], color=style["color"], **_FIRST)
            if method == "teacher" and ax is axes[0, 0]:
                beside = dict(textcoords="offset points", xytext=(-7, 5), fontsize=7, ha="right")
                for w, place in curve.iterrows():
                    ax.annotate(f"w = {w:g}", tuple(place), **beside)
        ax.margins(x=0.25)
        ax.set_xlabel(_axis("is"))
    axes[0, 0].set_ylabel(_axis("fid"))
    log_axis(axes[0, 0].yaxis, (1, 2, 5))
    ring = Line2D([], [], color="0.3", label=f"w = {table['guidance'].min():g}", **_FIRST)
    _finish(figure, table, f"What a better IS costs in FID; FID*: {metric}", ring)
    return figure


def _style(method: str, sampler: str) -> dict:
    noisy = dict(linestyle="--", markerfacecolor="white") if sampler == STOCHASTIC else {}
    return dict(linewidth=1.4, markersize=5, **STYLES[method]) | noisy


def _columns(table: pd.DataFrame) -> list[int]:
    """Steps of stage two, most first."""
    return sorted(set(table.loc[~table["method"].isin(_ABOVE), "steps"]), reverse=True)


def _axis(score: str) -> str:
    return SCORE_NAMES[score] + "*" * (score in ("fid", "is"))


def _panels(table: pd.DataFrame, rows: int) -> tuple[Figure, np.ndarray]:
    steps = _columns(table)
    size, alike = (2.5 * len(steps), 2.3 * rows + 1.1), dict(sharex="row", sharey="row", squeeze=False)
    figure, axes = plt.subplots(rows, len(steps), figsize=size, layout="constrained", **alike)
    for ax, number in zip(axes[0], steps, strict=True):
        ax.set_title(counted(number), fontsize=10)
    return figure, axes


def _finish(figure: Figure, table: pd.DataFrame, title: str, *more: Line2D) -> None:
    """Title, and one legend for all panels below them, with more lines."""
    found = table.drop_duplicates(["method", "sampler"])[["method", "sampler", "steps"]].itertuples(index=False)
    lines = [Line2D([], [], label=label_of(*one), **_style(*one[:2])) for one in found] + [*more]
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, math.ceil(len(lines) / 2)), fontsize=8)


def findings(table: pd.DataFrame) -> str:
    """Markdown: stage one against its teacher, the best weights, what fewer steps cost, and pairs that differ in one thing."""
    grouped = table.groupby(["method", "sampler", "steps"], sort=False)
    curves = {arm: rows.groupby("guidance")[["fid", "is"]].mean() for arm, rows in grouped}
    students = dict.fromkeys(method for method, *_ in curves if method in LABELS and method not in _ABOVE)
    fewer = [_fewer_steps(curves, method) for method in students]
    lines = [*_stage_one(curves), _best_weights(curves), *fewer, *_pairs(table)]
    return "\n".join(f"- {line}" for line in lines)


def _single(curves: Curves, method: str) -> pd.DataFrame:
    (curve,) = (curve for arm, curve in curves.items() if arm[0] == method)
    return curve


def _stage_one(curves: Curves) -> list[str]:
    teacher, student = _single(curves, "teacher"), _single(curves, "stage_one")
    gaps = ", ".join(f"{gap:+.2f} at w = {w:g}" for w, gap in (student["fid"] - teacher["fid"]).items())
    lines, low = [f"**Stage one against its teacher**, FID\\*: {gaps}."], teacher.index.min()
    if student.loc[low, "fid"] < teacher.loc[low, "fid"]:
        lines.append(
            f"At w = {low:g} stage one is *better* than what it imitates, so this is a miss that happens to pay: "
            f"its IS\\* there is {student.loc[low, 'is']:.2f}, the teacher's {teacher.loc[low, 'is']:.2f}."
        )
    return lines


def _best_weights(curves: Curves) -> str:
    def named(method, sampler, steps):
        return f"{LABELS[method]}{', stochastic' * (sampler == STOCHASTIC)}, {counted(steps)}"

    best = {arm: curve["fid"].idxmin() for arm, curve in curves.items()}
    by_fid = "; ".join(f"{named(*arm)}: {curves[arm].loc[w, 'fid']:.2f} at w = {w:g}" for arm, w in best.items())
    by_is = ", ".join(f"{w:g}" for w in sorted({curve["is"].idxmax() for curve in curves.values()}))
    return f"**Best weight by FID\\***: {by_fid}. By IS\\* the best are {by_is}."


def _fewer_steps(curves: Curves, method: str) -> str:
    whole = _single(curves, "stage_one")["fid"]
    ratios = {arm[1:]: (curve["fid"] / whole).mean() for arm, curve in curves.items() if arm[0] == method}
    said = "; ".join(
        f"{counted(steps)}{', stochastic' * (sampler == STOCHASTIC)} {ratio:.2f}"
        for (sampler, steps), ratio in ratios.items()
    )
    return f"**{LABELS[method]}'s students**, FID\\* as a multiple of stage one's, mean over w: {said}."


def _pairs(table: pd.DataFrame) -> list[str]:
    """Arms that differ in one thing only: the sampler, or the objective."""
    index, words = ["steps", "guidance", "seed"], []
    pairs = table.pivot_table(index=["method", *index], columns="sampler", values="fid").dropna()
    if STOCHASTIC in pairs:
        for method, lower in (pairs[STOCHASTIC] < pairs["ddim"]).groupby("method"):
            words.append(
                f"the stochastic sampler has the lower one in {lower.sum()} of {len(lower)} for {LABELS[method]}"
            )
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
    wide.columns = [f"{SCORE_NAMES[score]}*, w = {w:g}" for score, w in wide.columns]
    return wide.sort_index(axis=1).round(2).reset_index()
