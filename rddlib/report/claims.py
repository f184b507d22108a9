"""What the papers claim about each ablation, as comparisons of settings, and what the seeds measured here say of it.

A claim compares pairs of settings, each pair with the same seed, which means the same images, times and noise. It holds
where every pair in every seed has the claimed sign, and is reversed where every one has the other; "on average" where not every
pair has it but the mean over pairs has, in every seed. Else the seeds disagree, and it is undecided.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from rddlib.evaluation import SCORES
from rddlib.methods import COMPETING, LABELS, WINNER
from rddlib.study.ablation_results import Measured
from rddlib.study.ablations import ABLATIONS, EXTRACTOR_SEEDS
from rddlib.utils.errors import UserError
from rddlib.utils.text import markdown_table

HOLDS, ON_AVERAGE, UNDECIDED = "holds", "holds on average", "undecided"
REVERSED_ON_AVERAGE, REVERSED = "reversed on average", "reversed"
SAME, UNMEASURED = "no difference", "not measured"
VERDICTS = (HOLDS, ON_AVERAGE, UNDECIDED, REVERSED_ON_AVERAGE, REVERSED, SAME, UNMEASURED)
NAMES = {**{name: score.label for name, score in SCORES.items()}, "peak_mib": "peak memory (MiB)"}
Pairs = Sequence[tuple[str, str]]  # of settings, the one said to be better (lower) first
# What is said of which pairs, and by whom where not by the paper: of FID, and of pFD, which the papers did not measure.
Claims = Mapping[str, Pairs]
OF_MEMORY = (  # these two are of memory instead
    "the largest batch takes more memory than the smallest",
    "the chunked form takes less memory at the largest batch (ours)",
)


def _against(names: Iterable[str], rival: str) -> Pairs:
    return [(name, rival) for name in names]


def _on_axis(settings: pd.DataFrame) -> list[str]:
    return settings["setting"][settings["x"].notna()].tolist()


def _all_below_cfd(text: str) -> Callable[[pd.DataFrame], Claims]:
    """Every setting on the axis is better than CFD, which stands beside it."""
    return lambda settings: {text: _against(_on_axis(settings), "CFD")}


def _batch(settings: pd.DataFrame) -> Claims:
    by_form = {form: rows.sort_values("x")["setting"].tolist() for form, rows in settings.groupby("series")}
    larger = [(names[-1], names[0]) for names in by_form.values()]
    forms = list(zip(by_form.get("chunked", []), by_form.get("reference", []), strict=False))
    more, less = OF_MEMORY
    return {
        "the largest batch is better than the smallest": larger,
        more: [(b, a) for a, b in larger],
        less: forms[-1:],
    }


def _queue(text: str, beyond: str = "") -> Callable[[pd.DataFrame], Claims]:
    """The profile's own number, the last but one of the axis, is better than the least (and than the largest)."""

    def claims(settings: pd.DataFrame) -> Claims:
        names = _on_axis(settings.sort_values("x"))
        own, rivals = names[-2:-1], {text: names[:1], **({beyond: names[-1:]} if beyond else {})}
        found = {said: list(zip(own, rival, strict=False)) for said, rival in rivals.items()}
        return found | _all_below_cfd("every value is better than CFD")(settings)

    return claims


def _classifier(settings: pd.DataFrame) -> Claims:
    names = [name for name in settings["setting"] if name != "PD"]
    larger = [name for name in names[1:] if "," not in name]
    return {
        "every classifier is better than PD": _against(names, "PD"),
        "a larger classifier is better": _against(larger, names[0] if names else ""),
        "one that saw half of the classes is still better than PD": _against([n for n in names if "half" in n], "PD"),
    }


def _tau(settings: pd.DataFrame) -> Claims:
    named = settings.dropna(subset="x").astype({"x": float}).pivot(index="x", columns="series", values="setting")
    both = named.reindex(columns=["features", "predictions"])
    return {
        "aligned features are better than aligned predictions (almost always)": both.dropna().to_numpy().tolist(),
        "features are better than PD for tau from 0.9 to 1": _against(both["features"].dropna().loc[0.9:1], "PD"),
    }


def _dual(settings: pd.DataFrame) -> Claims:
    names, alone = _on_axis(settings), "a temperature on the teacher alone is better than on both sides"
    return {
        "a temperature on both sides is better than PD (over a wide range)": _against(names, "PD"),
        alone: [("CFD", name) for name in names],
    }


def _released(settings: pd.DataFrame) -> Claims:
    own = "as in the paper"
    ours = {"x not clipped": "clipping x while sampling, as the code does, is better than not (Eq. 1)"}
    rest = [name for name in settings["setting"] if name not in ("CFD", own)]
    return {ours.get(name, f"{own} is better than: {name}"): [(own, name)] for name in rest}


def _budget(settings: pd.DataFrame) -> Claims:
    rivals = [name for name in settings["setting"] if not name.startswith("RDD")]
    return {f"RDD is better than {name}": [("RDD, equal iterations", name)] for name in rivals}


def _evidence(settings: pd.DataFrame) -> Claims:
    here, best, pixels = set(settings["setting"]), LABELS[WINNER], LABELS["cfd_pd"]

    def against(one: str, other: str) -> Pairs:
        """The two through the same extractor, or through one and none."""
        pairs = [(f"{one}, extractor {k}", f"{other}, extractor {k}") for k in EXTRACTOR_SEEDS]
        return [(a, b if b in here else other) for a, b in pairs]

    rivals = [*(LABELS[name] for name in COMPETING), "PD, equal time", "CFD, equal time"]
    less = {"the pixel term": LABELS["cfd_is"], "relations": "CFD + PD, low tau", "both": "CFD, low tau"}
    return {
        **{f"{best} is better than {name}": against(best, name) for name in rivals},
        **{f"and than without {what}": against(best, name) for what, name in less.items()},
        f"{best} is better than {pixels} at its own numbers": against(best, pixels),
        **{f"{pixels} is better than {name}": against(pixels, name) for name in rivals[:2]},
    }


_II, _IS, _M, _BOTH = "CFD + II_P2P", "CFD + IS_P2P", "CFD + M_P2P", "CFD + IS_P2P + M_P2P"
_RELATIONS, _PIXELS = "CFD + IS_P2P, share 1", "CFD + PD, share 0.3"
_THROUGH = {LABELS[name]: f"{LABELS[name]}, the teacher's features" for name in ("cfd", "rdd", WINNER)}
CLAIMS: dict[str, Claims | Callable[[pd.DataFrame], Claims]] = {  # or how they follow from a row for each setting
    "losses": {
        "CFD is better than PD": [("CFD", "PD")],
        **{f"{name[6:]} beside CFD is better than CFD alone": [(name, "CFD")] for name in (_II, _IS, _M, _BOTH)},
        "relations across images (IS) are better than within (II)": [(_IS, _II)],
        "both are better than IS_P2P alone": [(_BOTH, _IS)],
        "both are better than M_P2P alone": [(_BOTH, _M)],
    },
    "batch": _batch,
    "tau_is": _all_below_cfd("every temperature is better than CFD"),
    "tau_m": _all_below_cfd("every temperature is better than CFD"),
    "queue_size": _queue("the paper's length is better than a twentieth of it", "and better than twice as long"),
    "queue_draws": _queue("drawing as many as usual is better than drawing an eighth"),
    "alpha": _all_below_cfd("every weight is better than CFD"),
    "beta": _all_below_cfd("every weight is better than CFD"),
    "rcfd_losses": {
        "without CFD both regularisers are worse than PD": [
            ("PD", name) for name in ("entropy", "diversity", "entropy + diversity")
        ],
        "beside CFD they are better than CFD alone": [("CFD + entropy + diversity", "CFD")],
    },
    "classifier": _classifier,
    "cfd_tau": _tau,
    "cfd_tau_dual": _dual,
    "released": _released,
    "budget": _budget,
    "balance": {
        "relations with a gradient as large as CFD's are better than CFD alone": [(_RELATIONS, "CFD")],
        "and better than RDD at the paper's weights": [(_RELATIONS, "RDD, the paper's weights")],
        "across images (IS) they are better than within (II)": [(_RELATIONS, "CFD + II_P2P, share 1")],
        "M_P2P is better without a head than with the paper's": [
            ("CFD + M_P2P, share 1, no head", "CFD + M_P2P, share 1, paper's head")
        ],
        "a small pixel term beside CFD is better than CFD and than PD": [(_PIXELS, "CFD"), (_PIXELS, "PD")],
        "and better than relations": [(_PIXELS, _RELATIONS)],
        "relations beside it improve it": [(f"{_RELATIONS}, PD, share 0.3", _PIXELS)],
        "a Fréchet or a kernel term beside CFD is better than CFD alone": _against(
            ("CFD + Fréchet, share 0.3", "CFD + kernel, share 0.3"), "CFD"
        ),
    },
    "evidence": _evidence,
    "label_free": {
        **{f"{own} through the teacher's features is better than PD": [(f, "PD")] for own, f in _THROUGH.items()},
        "and than through a classifier": [(free, own) for own, free in _THROUGH.items()],
    },
}


def verdicts(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Each claim about an ablation against its measured rows, compared at the fewest steps.

    Columns: claim; score; difference, mean over pairs and seeds of better minus worse, negative where the claim is right;
    spread, its standard deviation over seeds; seeds; pairs, "5 of 6", in how many the claim is right; verdict.
    Raises UserError for a table without rows.

    Args:
        name: of the ablation.
        table: its rows, with rddlib.study.sweep.COLUMNS.
    """
    if not len(table):
        raise UserError(f"nothing of the ablation {name} has been measured: run rdd ablate {name}")
    if name == "entropy":
        return pd.DataFrame(_entropy_rows(table))
    rows = table[table["steps"] == table["steps"].min()]
    claims, found = CLAIMS.get(name, {}), []
    for text, pairs in (claims(rows.drop_duplicates("setting")) if callable(claims) else claims).items():
        by_score = ["fid", *["pfd"] * bool(rows["pfd"].notna().any())]
        for score in ["peak_mib"] if text in OF_MEMORY else by_score:
            values = rows.pivot_table(index="seed", columns="setting", values=score)
            known = [pair for pair in pairs if set(pair) <= set(values.columns)]
            differences = pd.DataFrame({(a, b): values[a] - values[b] for a, b in known}).dropna()
            found.append({"claim": text, "score": NAMES[score], **_told(differences)})
    return pd.DataFrame(found, columns=["claim", "score", "difference", "spread", "seeds", "pairs", "verdict"])


def _told(differences: pd.DataFrame) -> dict:
    """What verdict's differences say, as columns of verdicts."""
    if differences.empty:
        return {"verdict": UNMEASURED}
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
    last = table[table["t"] == 1 / table["steps"]]
    last = last.pivot_table(index=["setting", "seed"], columns="steps", values="entropy")
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
    scores, body = list(found["score"].unique()), []
    for claim, rows in found.groupby("claim", sort=False):
        cells = {row.score: _cell(row) for row in rows.itertuples()}
        body.append([claim, *(cells.get(score, "") for score in scores)])
    return markdown_table(["claim", *(f"by {score}" for score in scores)], body)


def _cell(row) -> str:
    if row.verdict == UNMEASURED:
        return UNMEASURED
    spread = f" ± {row.spread:.2g}" if row.seeds > 1 else ""
    return f"**{row.verdict}**: {row.difference:+.3g}{spread} ({row.pairs})"
