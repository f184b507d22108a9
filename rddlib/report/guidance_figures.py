"""Scores against the guidance weight, a column for each number of steps, and what one score costs of the other."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from rddlib.report.figures import NAMES, SCORE_NAMES, STYLES
from rddlib.study.graph import STOCHASTIC

GUIDED_NAMES = {"teacher": "teacher", "stage_one": "stage one", **NAMES}
_STYLES = {
    **STYLES,
    "teacher": dict(color="0.55", marker="s", linestyle=":"),
    "stage_one": dict(color="#56B4E9", marker="P", linestyle=":"),
}
_STOCHASTIC = dict(linestyle="--", markerfacecolor="white")
_FIRST = dict(linestyle="", marker="o", markersize=11, markerfacecolor="none")  # around the smallest weight
_ABOVE = ("teacher", "stage_one")  # drawn in every column, at the steps that stage two starts from


def series_of(table: pd.DataFrame, steps: int) -> list[tuple[str, str, pd.DataFrame]]:
    """(method, sampler, its rows) of a column: those of so many steps, and teacher and stage one at theirs."""
    shown = table[(table["steps"] == steps) | table["method"].isin(_ABOVE)]
    return [(*name, rows) for name, rows in shown.groupby(["method", "sampler"], sort=False)]


def label_of(method: str, sampler: str, steps: int) -> str:
    """As in a legend: "RDD, stochastic"; teacher and stage one with their steps."""
    if method == "teacher":
        return f"teacher, {steps} steps of 2 evaluations"
    return (
        f"stage one, {steps} steps"
        if method == "stage_one"
        else GUIDED_NAMES[method] + f", {sampler}" * (sampler == STOCHASTIC)
    )


def _style(method: str, sampler: str) -> dict:
    style = dict(linewidth=1.4, markersize=5, **_STYLES[method])
    return style | _STOCHASTIC if sampler == STOCHASTIC else style


def weights_figure(table: pd.DataFrame, metric: str, scores: Sequence[str] = ("fid", "is")) -> Figure:
    """Each score (a row) against w, a column for each number of stage two's steps; table: GUIDED_COLUMNS; metric: the FID's
    full name. Lines are means over seeds, bands go from the lowest to the highest."""
    figure, axes = _panels(table, len(scores))
    for row, score in enumerate(scores):
        for ax, steps in zip(axes[row], _columns(table), strict=True):
            for method, sampler, rows in series_of(table, steps):
                grouped = rows.groupby("guidance")[score].agg(["mean", "min", "max"])
                style = _style(method, sampler)
                ax.plot(grouped.index, grouped["mean"], **style)
                ax.fill_between(
                    grouped.index, grouped["min"], grouped["max"], color=style["color"], alpha=0.12, linewidth=0
                )
            if row == 0:
                ax.set_title(_steps(steps), fontsize=10)
            ax.set_xlabel("guidance weight w")
        axes[row, 0].set_ylabel(_axis(score))
        if score == "fid":
            _log(axes[row, 0])
    _finish(figure, table, f"Scores against the guidance weight; FID*: {metric}")
    return figure


def tradeoff_figure(table: pd.DataFrame, metric: str) -> Figure:
    """FID against IS, the weight growing along each line, a column for each number of stage two's steps; means over seeds.

    Down and to the right is better. table: GUIDED_COLUMNS; metric: the FID's full name.
    """
    figure, axes = _panels(table, 1)
    for ax, steps in zip(axes[0], _columns(table), strict=True):
        for method, sampler, rows in series_of(table, steps):
            curve = rows.groupby("guidance")[["is", "fid"]].mean()
            style = _style(method, sampler)
            ax.plot(curve["is"], curve["fid"], **style)
            ax.plot(curve["is"].iloc[:1], curve["fid"].iloc[:1], color=style["color"], **_FIRST)
            if method == "teacher" and ax is axes[0, 0]:
                for w, (x, y) in curve.iterrows():
                    ax.annotate(
                        f"w = {w:g}", (x, y), textcoords="offset points", xytext=(-7, 5), fontsize=7, ha="right"
                    )
        ax.margins(x=0.25)
        ax.set_title(_steps(steps), fontsize=10)
        ax.set_xlabel(_axis("is"))
    axes[0, 0].set_ylabel(_axis("fid"))
    _log(axes[0, 0])
    ring = Line2D([], [], color="0.3", **_FIRST), f"w = {table['guidance'].min():g}"
    _finish(figure, table, f"What a better IS costs in FID; FID*: {metric}", ring)
    return figure


def _columns(table: pd.DataFrame) -> list[int]:
    """Steps of stage two, most first."""
    return sorted(set(table.loc[~table["method"].isin(_ABOVE), "steps"]), reverse=True)


def _steps(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"


def _axis(score: str) -> str:
    return SCORE_NAMES[score] + "*" * (score in ("fid", "is"))


def _panels(table: pd.DataFrame, rows: int) -> tuple[Figure, list[list[Axes]]]:
    columns = len(_columns(table))
    return plt.subplots(
        rows,
        columns,
        figsize=(2.5 * columns, 2.3 * rows + 1.1),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )


def _log(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, table: pd.DataFrame, title: str, *more: tuple[Line2D, str]) -> None:
    """Title, and one legend for all panels below them, with more (line, label)."""
    found = table.drop_duplicates(["method", "sampler"])[["method", "sampler", "steps"]]
    lines = [Line2D([], [], **_style(method, sampler)) for method, sampler, _ in found.itertuples(index=False)]
    labels = [label_of(*one) for one in found.itertuples(index=False)]
    lines, labels = lines + [line for line, _ in more], labels + [label for _, label in more]
    figure.suptitle(title, fontsize=11)
    figure.legend(lines, labels, loc="outside lower center", ncols=min(4, math.ceil(len(labels) / 2)), fontsize=8)


def scores_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each sampler of each model, a column for each score at each weight; means over seeds."""
    named = table.assign(method=table["method"].map(GUIDED_NAMES))
    wide = named.pivot_table(index=["method", "sampler", "steps"], columns="guidance", values=["fid", "is"], sort=False)
    wide.columns = [f"{SCORE_NAMES[score]}*, w = {w:g}" for score, w in wide.columns]
    return wide.sort_index(axis=1).round(2).reset_index()
