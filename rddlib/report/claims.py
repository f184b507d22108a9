"""What the papers claim about each ablation, as comparisons of settings, and what the seeds measured here say of it.

A claim compares pairs of settings, each pair with the same seed, which means the same images, times and noise. It holds
where every pair in every seed has the claimed sign, and is reversed where every one has the other; "on average" where not every
pair has it but the mean over pairs has, in every seed. Else the seeds disagree, and it is undecided.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rddlib.report.figures import SCORE_NAMES
from rddlib.study.ablation_results import Measured
from rddlib.study.ablations import ABLATIONS
from rddlib.utils.errors import UserError

HOLDS, ON_AVERAGE, UNDECIDED = "holds", "holds on average", "undecided"
REVERSED_ON_AVERAGE, REVERSED = "reversed on average", "reversed"
SAME, UNMEASURED = "no difference", "not measured"
VERDICTS = (HOLDS, ON_AVERAGE, UNDECIDED, REVERSED_ON_AVERAGE, REVERSED, SAME, UNMEASURED)


NAMES = {**SCORE_NAMES, "peak_mib": "peak memory (MiB)"}


@dataclass(frozen=True)
class Claim:
    """text: what is claimed, by whom; pairs: of settings, the one said to be better (lower) first; score: by which it is
    said, a column of the table; both: whether pFD, which the papers did not measure, is looked at beside FID."""

    text: str
    pairs: tuple[tuple[str, str], ...]
    score: str = "fid"
    both: bool = True


def _all_below(text: str, rival: str) -> Callable[[pd.DataFrame], list[Claim]]:
    """Every setting on the axis is better than one beside it."""
    return lambda settings: [Claim(text, tuple((name, rival) for name in settings["setting"][settings["x"].notna()]))]


def _losses(settings: pd.DataFrame) -> list[Claim]:
    terms = ("II_P2P", "IS_P2P", "M_P2P", "IS_P2P + M_P2P")
    each = [Claim(f"{term} beside CFD is better than CFD alone", ((f"CFD + {term}", "CFD"),)) for term in terms]
    return [
        Claim("CFD is better than PD", (("CFD", "PD"),)),
        *each,
        Claim("relations across images (IS) are better than within (II)", (("CFD + IS_P2P", "CFD + II_P2P"),)),
        *(
            Claim(f"both are better than {term} alone", (("CFD + IS_P2P + M_P2P", f"CFD + {term}"),))
            for term in terms[1:3]
        ),
    ]


def _batch(settings: pd.DataFrame) -> list[Claim]:
    by_form = {form: rows.sort_values("x")["setting"].tolist() for form, rows in settings.groupby("series")}
    larger = tuple((names[-1], names[0]) for names in by_form.values())
    chunked = tuple(zip(by_form.get("chunked", []), by_form.get("reference", []), strict=False))
    return [
        Claim("the largest batch is better than the smallest", larger),
        Claim(
            "the largest batch takes more memory than the smallest", tuple((b, a) for a, b in larger), "peak_mib", False
        ),
        Claim("the chunked form takes less memory at the largest batch (ours)", chunked[-1:], "peak_mib", False),
    ]


def _queue(text: str, beyond: str = "") -> Callable[[pd.DataFrame], list[Claim]]:
    """The profile's own number, the last but one of the axis, is better than the least (and than the largest)."""

    def claims(settings: pd.DataFrame) -> list[Claim]:
        names = settings[settings["x"].notna()].sort_values("x")["setting"].tolist()
        return [
            Claim(text, tuple(zip(names[-2:-1], names[:1], strict=False))),
            *([Claim(beyond, tuple(zip(names[-2:-1], names[-1:], strict=False)))] if beyond else []),
            *_all_below("every value is better than CFD", "CFD")(settings),
        ]

    return claims


def _rcfd_losses(settings: pd.DataFrame) -> list[Claim]:
    alone = ("entropy", "diversity", "entropy + diversity")
    return [
        Claim("without CFD both regularisers are worse than PD", tuple(("PD", name) for name in alone)),
        Claim("beside CFD they are better than CFD alone", (("CFD + entropy + diversity", "CFD"),)),
    ]


def _classifier(settings: pd.DataFrame) -> list[Claim]:
    names = [name for name in settings["setting"] if name != "PD"]
    own = names[0] if names else ""
    strong = [name for name in names[1:] if "," not in name]
    return [
        Claim("every classifier is better than PD", tuple((name, "PD") for name in names)),
        Claim("a larger classifier is better", tuple((name, own) for name in strong)),
        Claim(
            "one that saw half of the classes is still better than PD", tuple((n, "PD") for n in names if "half" in n)
        ),
    ]


def _tau(settings: pd.DataFrame) -> list[Claim]:
    axis = settings[settings["x"].notna()]
    by_series = {series: dict(zip(rows["x"], rows["setting"], strict=True)) for series, rows in axis.groupby("series")}
    features, predictions = by_series.get("features", {}), by_series.get("predictions", {})
    both = tuple((features[tau], predictions[tau]) for tau in features if tau in predictions)
    mild = tuple((features[tau], "PD") for tau in features if 0.9 <= tau <= 1)
    return [
        Claim("aligned features are better than aligned predictions (almost always)", both),
        Claim("features are better than PD for tau from 0.9 to 1", mild),
    ]


def _dual(settings: pd.DataFrame) -> list[Claim]:
    names = settings["setting"][settings["x"].notna()].tolist()
    return [
        Claim(
            "a temperature on both sides is better than PD (over a wide range)", tuple((name, "PD") for name in names)
        ),
        Claim(
            "a temperature on the teacher alone is better than on both sides", tuple(("CFD", name) for name in names)
        ),
    ]


def _released(settings: pd.DataFrame) -> list[Claim]:
    rest = [name for name in settings["setting"] if name not in ("CFD", "as in the paper")]
    ours = {"x not clipped": "clipping x while sampling, as the code does, is better than not (Eq. 1)"}
    return [
        Claim(ours.get(name, f"as in the paper is better than: {name}"), (("as in the paper", name),)) for name in rest
    ]


def _budget(settings: pd.DataFrame) -> list[Claim]:
    rdd = "RDD, equal iterations"
    return [
        Claim(f"RDD is better than {name}", ((rdd, name),))
        for name in settings["setting"]
        if not name.startswith("RDD")
    ]


CLAIMS: dict[str, Callable[[pd.DataFrame], list[Claim]]] = {
    "losses": _losses,
    "batch": _batch,
    "tau_is": _all_below("every temperature is better than CFD", "CFD"),
    "tau_m": _all_below("every temperature is better than CFD", "CFD"),
    "queue_size": _queue("the paper's length is better than a twentieth of it", "and better than twice as long"),
    "queue_draws": _queue("drawing as many as usual is better than drawing an eighth"),
    "alpha": _all_below("every weight is better than CFD", "CFD"),
    "beta": _all_below("every weight is better than CFD", "CFD"),
    "rcfd_losses": _rcfd_losses,
    "classifier": _classifier,
    "cfd_tau": _tau,
    "cfd_tau_dual": _dual,
    "released": _released,
    "budget": _budget,
}


def verdicts(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Each claim about an ablation against its measured rows: claim, score, difference, spread, seeds, pairs, verdict.

    table: of that ablation, with rddlib.study.sweep.COLUMNS; compared at the fewest steps. difference: mean over pairs and
    seeds of better minus worse, negative where the claim is right; spread: its standard deviation over seeds; pairs: "5 of
    6", in how many the claim is right. Raises UserError for a table without rows.
    """
    if not len(table):
        raise UserError(f"nothing of the ablation {name} has been measured: run rdd ablate {name}")
    if name == "entropy":
        return pd.DataFrame(_entropy_rows(table))
    rows = table[table["steps"] == table["steps"].min()]
    claims = CLAIMS.get(name, lambda settings: [])(rows.drop_duplicates("setting"))
    found = [_judged(claim, score, rows) for claim in claims for score in _scores(claim, rows)]
    return pd.DataFrame(found, columns=["claim", "score", "difference", "spread", "seeds", "pairs", "verdict"])


def _scores(claim: Claim, rows: pd.DataFrame) -> list[str]:
    return [claim.score, *["pfd"] * bool(claim.both and rows["pfd"].notna().any())]


def _judged(claim: Claim, score: str, rows: pd.DataFrame) -> dict:
    values = rows.pivot_table(index="seed", columns="setting", values=score)
    known = [pair for pair in claim.pairs if set(pair) <= set(values.columns)]
    head = {"claim": claim.text, "score": NAMES[score]}
    differences = pd.DataFrame({pair: values[pair[0]] - values[pair[1]] for pair in known}).dropna()
    if differences.empty:
        return head | {"verdict": UNMEASURED}
    return head | _told(differences)


def _told(differences: pd.DataFrame) -> dict:
    """Of differences, a row a seed and a column a pair, negative where a claim is right."""
    by_seed, right = differences.mean(axis=1), int((differences < 0).sum().sum())
    return {
        "difference": by_seed.mean(),
        "spread": by_seed.std(),
        "seeds": len(by_seed),
        "pairs": f"{right} of {differences.size}",
        "verdict": verdict(differences),
    }


def verdict(differences: pd.DataFrame) -> str:
    """Of differences, a row a seed and a column a pair, negative where a claim is right."""
    if differences.empty:
        return UNMEASURED
    if (differences < 0).all(axis=None):
        return HOLDS
    if (differences > 0).all(axis=None):
        return REVERSED
    if (differences == 0).all(axis=None):
        return SAME
    means = differences.mean(axis=1)
    return ON_AVERAGE if (means < 0).all() else REVERSED_ON_AVERAGE if (means > 0).all() else UNDECIDED


def _entropy_rows(table: pd.DataFrame) -> list[dict]:
    """Whether the last prediction's entropy rises as steps fall, for each setting."""
    last = table[table["t"] == 1 / table["steps"]].pivot_table(
        index=["setting", "seed"], columns="steps", values="entropy"
    )
    rows = []
    for setting in table["setting"].unique():
        values = last.loc[setting].dropna(axis=1).drop_duplicates()  # the teacher is one, whatever the seed
        fewer_and_more = itertools.pairwise(sorted(values.columns))
        differences = pd.DataFrame({(a, b): values[b] - values[a] for a, b in fewer_and_more})
        head = {"claim": f"{setting}: fewer steps, larger entropy of the image", "score": "entropy"}
        rows.append(head | _told(differences))
    return rows


def told(name: str, measured: Measured) -> str:
    """An ablation in Markdown: what the paper claims, and what was measured of it: for each claim the verdict, the mean
    difference of better minus worse with its spread over seeds, and how many pairs are as claimed."""
    ablation = ABLATIONS[name]
    head = f"**{ablation.title}** ({ablation.source}). *Claimed:* {ablation.claim}"
    return f"{head}\n\n{as_markdown(verdicts(name, measured.table))}"


def as_markdown(found: pd.DataFrame) -> str:
    """Verdicts as a table in Markdown: a line a claim, a column a score."""
    scores = list(found["score"].unique())
    lines = ["| claim | " + " | ".join(f"by {score}" for score in scores) + " |", "|---" * (len(scores) + 1) + "|"]
    for claim, rows in found.groupby("claim", sort=False):
        cells = {row.score: _cell(row) for row in rows.itertuples()}
        lines.append(f"| {claim} | " + " | ".join(cells.get(score, "") for score in scores) + " |")
    return "\n".join(lines)


def _cell(row) -> str:
    if row.verdict == UNMEASURED:
        return UNMEASURED
    spread = f" ± {row.spread:.2g}" if row.seeds > 1 else ""
    return f"**{row.verdict}**: {row.difference:+.3g}{spread} ({row.pairs})"
