"""What a table of scores against w says, in words: computed sentences for the notebook."""

import pandas as pd

from rddlib.report.guidance_figures import GUIDED_NAMES
from rddlib.study.graph import STOCHASTIC

Curves = dict[tuple[str, str, int], pd.DataFrame]  # (method, sampler, steps): mean fid and is, by w


def findings(table: pd.DataFrame) -> str:
    """Markdown: stage one against its teacher, the best weights, what fewer steps cost, and pairs that differ in one thing.

    table: GUIDED_COLUMNS, with the rows of teacher and stage one; means are over its seeds.
    """
    grouped = table.groupby(["method", "sampler", "steps"], sort=False)
    curves = {arm: rows.groupby("guidance")[["fid", "is"]].mean() for arm, rows in grouped}
    students = dict.fromkeys(
        arm[0] for arm in curves if arm[0] in GUIDED_NAMES and arm[0] not in ("teacher", "stage_one")
    )
    lines = [
        *_stage_one(curves),
        *_best_weights(curves),
        *(_steps(curves, method) for method in students),
        *_pairs(table),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _single(curves: Curves, method: str) -> pd.DataFrame:
    (curve,) = (curve for arm, curve in curves.items() if arm[0] == method)
    return curve


def _stage_one(curves: Curves) -> list[str]:
    teacher, student = _single(curves, "teacher"), _single(curves, "stage_one")
    gaps = ", ".join(f"{gap:+.2f} at w = {w:g}" for w, gap in (student["fid"] - teacher["fid"]).items())
    lines, low = [f"**Stage one against its teacher**, FID\\*: {gaps}."], teacher.index.min()
    if student.loc[low, "fid"] < teacher.loc[low, "fid"]:
        own, asked = student.loc[low, "is"], teacher.loc[low, "is"]
        lines.append(
            f"At w = {low:g} stage one is *better* than what it imitates, so this is a miss that happens to pay: "
            f"its IS\\* there is {own:.2f}, the teacher's {asked:.2f}."
        )
    return lines


def _best_weights(curves: Curves) -> list[str]:
    best = {arm: (curve["fid"].idxmin(), curve["fid"].min()) for arm, curve in curves.items()}
    by_fid = "; ".join(f"{_named(*arm)}: {fid:.2f} at w = {w:g}" for arm, (w, fid) in best.items())
    by_is = ", ".join(f"{w:g}" for w in sorted({curve["is"].idxmax() for curve in curves.values()}))
    return [f"**Best weight by FID\\***: {by_fid}. By IS\\* the best are {by_is}."]


def _steps(curves: Curves, method: str) -> str:
    whole = _single(curves, "stage_one")["fid"]
    ratios = {arm[1:]: (curve["fid"] / whole).mean() for arm, curve in curves.items() if arm[0] == method}
    said = "; ".join(
        f"{steps} step{'s' * (steps > 1)}{', stochastic' * (sampler == STOCHASTIC)} {ratio:.2f}"
        for (sampler, steps), ratio in ratios.items()
    )
    return f"**{GUIDED_NAMES[method]}'s students**, FID\\* as a multiple of stage one's, mean over w: {said}."


def _pairs(table: pd.DataFrame) -> list[str]:
    """Arms that differ in one thing only: the sampler, or the objective."""
    index, words = ["steps", "guidance", "seed"], []
    pairs = table.pivot_table(index=["method", *index], columns="sampler", values="fid").dropna()
    if STOCHASTIC in pairs:
        for method, lower in (pairs[STOCHASTIC] < pairs["ddim"]).groupby("method"):
            words.append(
                f"the stochastic sampler has the lower one in {lower.sum()} of {len(lower)} for {GUIDED_NAMES[method]}"
            )
    rivals = table[table["sampler"] == "ddim"].pivot_table(index=index, columns="method", values="fid")
    for method in [name for name in rivals if name not in ("teacher", "stage_one", "pd") and "pd" in rivals]:
        both = rivals[[method, "pd"]].dropna()
        words.append(
            f"{GUIDED_NAMES[method]} has a lower one than PD in {(both[method] < both['pd']).sum()} of {len(both)}"
        )
    return [f"**Pairs that differ in one thing only**, by FID\\*: {'; '.join(words)}."] if words else []


def _named(method: str, sampler: str, steps: int) -> str:
    return f"{GUIDED_NAMES[method]}{', stochastic' * (sampler == STOCHASTIC)}, {steps} step{'s' * (steps > 1)}"
