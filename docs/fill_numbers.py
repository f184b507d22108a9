"""The numbers in README.md and docs/*.md, computed from data/results.

python docs/fill_numbers.py           # rewrite the tables between <!-- numbers: NAME --> and <!-- end -->
python docs/fill_numbers.py --check   # say which tables and sentences differ, and exit 1 if any does
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rddlib.methods import COMPETING, LABELS, SUMS, WINNER
from rddlib.report.claims import VERDICTS, verdicts
from rddlib.study import ablation_results, guidance
from rddlib.study.ablations import ABLATIONS

TOP = Path(__file__).resolve().parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
RESULTS = TOP / "data/results"
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n)(.*?)(<!-- end -->)", flags=re.S)


LESS = ["CFD, low tau", "CFD + PD, low tau"]  # the sum with relations without others and without relations
RDD_AS_PUBLISHED = "RDD, the paper's weights"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (heads, *body)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def _json(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _scores(profile: str) -> pd.DataFrame:
    """Every sampler's scores in every seed, as a study of the profile published them."""
    return pd.read_csv(RESULTS / f"{profile}_seeds.csv")


def _spread(values: pd.Series, digits: int = 2) -> str:
    """Mean ± standard deviation; the mean alone of one value, nothing of none."""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}" if len(values) else ""


# tables


def summary_table() -> str:
    """The teacher, and one step of every method: FID and pFD on photographs and digits."""
    studies, body = ((_scores("photos"), 1), (_scores("digits"), 2)), []
    for method, steps in (("pd", 8), *((method, 1) for method in ("ddim", *COMPETING, WINNER))):
        cells = ["teacher, 8 steps" if steps == 8 else LABELS[method]]
        for rows, digits in studies:
            found = rows[(rows["method"] == method) & (rows["steps"] == steps)]
            cells.append(f"{_spread(found['fid'], digits)} ({found['pfd'].mean():.{digits}f})")
        body.append(cells)
    return _table(["", "photographs: FID (pFD)", "digits: FID (pFD)"], body)


def digits_table(name: str = "digits") -> str:
    """Every method at every number of steps, mean ± standard deviation over seeds."""
    rows = _scores(name)
    methods, body = ("ddim", *COMPETING, WINNER), []
    for steps in sorted(rows[rows["method"].isin(methods)]["steps"].unique(), reverse=True):
        here = rows[rows["steps"] == steps]
        for head, score, digits in ((str(steps), "fid", 2), ("", "pfd", 3)):
            cells = [_spread(here[here["method"] == method][score], digits) for method in methods]
            body.append([head, {"fid": "FID", "pfd": "pFD"}[score], *cells])
    return _table(["steps", "", *(LABELS[method] for method in methods)], body)


CLAIMED = {  # of both papers, and ours: (better, worse)
    "CFD is better than PD (Sun et al. 2023)": ("cfd", "pd"),
    "RCFD is better than CFD (Sun et al. 2023)": ("rcfd", "cfd"),
    "RDD is better than CFD (Feng et al. 2024)": ("rdd", "cfd"),
    "RDD is better than PD (Feng et al. 2024)": ("rdd", "pd"),
    "CFD + IS_P2P + PD is better than PD (ours)": (WINNER, "pd"),
    "CFD + IS_P2P + PD is better than CFD (ours)": (WINNER, "cfd"),
}


def claims_table(name: str = "photos") -> str:
    """The order of methods at each number of steps: mean FID of the better minus the worse, in how many seeds it is as said."""
    rows = _scores(name)
    fid, body = rows.pivot_table(index=["steps", "seed"], columns="method", values="fid"), []
    steps = (4, 2, 1)
    for text, (better, worse) in CLAIMED.items():
        gaps = (fid[better] - fid[worse]).dropna()
        cells = [f"{gaps[n].mean():+.2f} ({(gaps[n] < 0).sum()} of {len(gaps[n])})" for n in steps]
        right = (gaps < 0).sum()
        verdict = "holds" if right == len(gaps) else "reversed" if right == 0 else f"{right} of {len(gaps)}"
        body.append([text, *cells, verdict])
    return _table(["claim, by FID", *(f"{n} step{'s' * (n > 1)}" for n in steps), ""], body)


def evidence() -> dict[str, pd.DataFrame]:
    """As `by_pair` of the published rows."""
    return ablation_results.by_pair(ablation_results.published("data/results/digits_evidence.csv"))


def _better(table: pd.DataFrame) -> pd.Series:
    """The lower of PD's and CFD's."""
    return table[["PD", "CFD"]].min(axis=1)


def evidence_table() -> str:
    """Every method of the evidence, mean ± standard deviation over extractors and seeds; at one step the ratio of its FID to
    the lower of PD's and CFD's, from the best pair to the worst."""
    found, body = evidence(), []
    for name in [*(LABELS[name] for name in (*COMPETING, *SUMS)), *LESS, "PD, equal time", "CFD, equal time"]:
        ratio = (found["fid"][name] / _better(found["fid"])).loc[1]
        fid, pfd = (
            found[score][name].drop_duplicates() for score in ("fid", "pfd")
        )  # PD's stand beside each extractor
        cells = [_spread(fid.loc[steps]) for steps in (4, 2, 1)]
        cells += [_spread(pfd.loc[1], 3), f"{ratio.min():.2f} to {ratio.max():.2f}"]
        body.append([name, *cells])
    heads = ["FID, 4 steps", "2", "1", "pFD, 1", "FID at 1 over the lower of PD's and CFD's"]
    return _table(["", *heads], body)


def text_table() -> str:
    """The text-guided example: at each weight FID and, in brackets, the share of images that show their prompt."""
    rows, body = pd.read_csv(RESULTS / "text_guided.csv"), []
    weights = sorted(rows["guidance"].unique())
    for (method, sampler, steps), found in rows.groupby(["method", "sampler", "steps"], sort=False):
        at = found.set_index("guidance")
        cells = [f"{at['fid'][w]:.1f} ({at['agree'][w]:.0%})" for w in weights]
        name = LABELS[method] + ", stochastic" * (sampler == "stochastic")
        body.append([name, str(steps), str(steps * (2 if method == "teacher" else 1)), *cells])
    return _table(["", "steps", "evaluations", *(f"w = {w:g}" for w in weights)], body)


def text_extractors_table() -> str:
    """The text-guided example's students without guidance, by what they were taught through."""
    rows, body = pd.read_csv(RESULTS / "text_extractors.csv", keep_default_na=False), []
    for (method, extractor), found in rows.groupby(["method", "extractor"], sort=False):
        at = found.set_index("steps")
        cells = [f"{at['fid'][n]:.1f} ({at['agree'][n]:.0%})" if n in at.index else "" for n in (32, 8, 4, 2, 1)]
        body.append([LABELS[method], extractor, *cells])
    return _table(["", "through", "32 steps", "8", "4", "2", "1"], body)


def ablations_table() -> str:
    """What became of each ablation's claims."""
    table, body = ablation_results.published(), []
    for name in table["ablation"].unique():
        ablation = ABLATIONS[name]
        found = verdicts(name, table[table["ablation"] == name])
        found = found[~found["score"].str.startswith("peak memory")]
        cells = []
        for scores in (("FID", "entropy"), ("pFD",)):
            counts = found[found["score"].isin(scores)]["verdict"].value_counts()
            cells.append(", ".join(f"{said}: {counts[said]}" for said in VERDICTS if said in counts))
        body.append([name, ablation.source, str(found["claim"].nunique()), *cells])
    return _table(["ablation", "source", "claims", "by FID", "by pFD"], body)


def photos_ablation_table(name: str) -> str:
    """An ablation at 4 steps, on photographs."""
    file = "photos_balance.csv" if name == "balance" else "photos_ablations.csv"
    rows = pd.read_csv(RESULTS / file).query("ablation == @name")
    assert rows["setting"].is_unique and set(rows["steps"]) == {4}
    body = [[name, *(f"{x:.2f}" for x in scores)] for name, *scores in rows[["setting", "fid", "pfd", "is"]].to_numpy()]
    heads = {"losses": "terms", "tau_is": "CFD + IS_P2P at", "label_free": "method", "batch": "CFD + IS_P2P"}
    heads |= {"balance": "terms beside CFD and their shares"}
    return _table([heads[name], "FID", "pFD", "IS"], body)


def guided_table(table: pd.DataFrame) -> str:
    """FID at every guidance weight, mean ± standard deviation over seeds, and IS at two."""
    weights, body = sorted(table["guidance"].unique()), []
    for (method, steps, sampler), rows in table.groupby(["method", "steps", "sampler"], sort=False):
        by_weight = {w: group for w, group in rows.groupby("guidance")}
        fids = [_spread(by_weight[w]["fid"]) for w in weights]
        body.append([LABELS[method], str(steps), sampler, *fids, *(f"{by_weight[w]['is'].mean():.2f}" for w in (0, 1))])
    heads = [*(f"FID, w = {w:g}" for w in weights), *(f"IS, w = {w:g}" for w in (0, 1))]
    return _table(["", "steps", "sampler", *heads], body)


def networks_table() -> str:
    """The networks that score and come with the package."""
    body = []
    for name in ("digits", "photos"):
        facts = json.loads((TOP / f"data/{name}_metric_network.json").read_text(encoding="utf-8"))
        right = f"{facts['test_accuracy']:.1%} of {facts['test_images']:,}".replace("%", " %")
        body.append([name, facts["trained on"], right])
    return _table(["network", "learnt from", "right on test images"], body)


def diffusers_table() -> str:
    """The pipeline, undistilled and distilled."""
    names, rows = (
        LABELS | {"digits-ddpm": "the pipeline, by DDIM"},
        [record["row"] for record in _json("digits_diffusers")],
    )
    forms = {"fid": ".2f", "pfd": ".3f", "is": ".2f"}
    cells = [[format(row[score], form) for score, form in forms.items()] for row in rows]
    body = [[names[row["method"]], str(row["steps"]), *scores] for row, scores in zip(rows, cells, strict=True)]
    return _table(["", "steps", "FID", "pFD", "IS"], body)


def export_table() -> str:
    """Images a second of exported students, and how many times the teacher's that is."""
    body = []
    for report in _json("bench_export"):
        for batch, rows in pd.DataFrame(report["rows"]).groupby("batch"):
            speeds = [f" ({row.speed:.1f}x)" * (row.steps == 1) for row in rows.itertuples()]
            cells = [
                f"{float(f'{rate:.3g}'):,g}{speed}"
                for rate, speed in zip(rows["images_per_second"], speeds, strict=True)
            ]
            body.append([report["profile"], str(batch), *cells])
    heads = ["teacher, 8 steps", "student, Python", "student, TorchScript"]
    return _table(["profile", "images at a time", *heads], body)


def step_table() -> str:
    """Seconds of a training step and of its parts."""
    parts, body = ("teacher", "student", "extractor", "losses", "optimiser"), []
    for row in _json("bench_step")["rows"]:
        chosen = f"chosen: {row['precision']}" + ", channels_last" * row["channels_last"]
        cells = [f"{row['parts'][part]:.2f}" if row["parts"][part] >= 0.01 else "" for part in parts]
        facts = [f"{row['images_per_second']:.1f}", f"{row['of_peak']:.0%}", f"{row['ratio']:.2f}"]
        setting = chosen if row["setting"] == "auto" else row["setting"]
        body.append([row["what"], setting, f"{row['seconds']:.2f}", *cells, *facts])
    return _table(["step", "setting", "whole", *parts, "images/s", "of peak", "speed"], body)


def gpu_step_table() -> str:
    """Milliseconds of a training step on a GPU, without and with CUDA graphs."""
    names, body = {"base": "base model", "rdd": LABELS["rdd"]}, []
    for what in names:
        report = _json(f"h200_graphs_{what}")
        for row in report["rows"]:
            times = [f"{1e3 * row[name]:.0f}" for name in ("seconds", "kernels")]
            facts = [f"{row['images_per_second']:,.0f}", f"{row['of_peak']:.0%}", f"{row['ratio']:.2f}"]
            body.append([f"{names[what]}, `{report['profile']}`", row["setting"], *times, *facts])
    return _table(["step", "setting", "ms", "kernels, ms", "images/s", "of peak", "speed"], body)


def gpu_study_table() -> str:
    """How long the stages of a cut study took on a GPU."""
    rows = pd.DataFrame(_json("h200_study")["rows"])
    found = rows.assign(kind=rows.stage.where(rows.at_once == 1, "students")).replace(
        {"kind": r"pd-.*"}, "halvings", regex=True
    )
    names = {"base": "base model", "halvings": "halvings, 64 to 8 steps", "extractor": "extractor, ResNet18"}
    names["students"] = "students, four trainings at a time"
    body = []
    for kind, name in names.items():
        few = found[found.kind == kind]
        speeds = [f"{few.images_per_second.min():,.0f}", f"{few.images_per_second.max():,.0f}"]
        seconds = f"{few.seconds.sum():.0f}" + " in sum" * (kind == "students")
        body.append([name, f"{few.iterations.sum():,}", seconds, " to ".join(dict.fromkeys(speeds))])
    return _table(["stage", "iterations", "s", "images/s of one training"], body)


def losses_table() -> str:
    """Memory and time of IS_P2P in both forms."""
    found = {(row["A"], row["N"], row["dtype"]): row for row in _json("bench_losses") if row["loss"] == "is_p2p"}
    rows = [found[size] for size in sorted(found, reverse=True)]
    names = {"mib": ".0f", "s": ".3f"}
    cells = [[format(row[f"{f}_{n}"], names[n]) for n in names for f in ("reference", "chunked")] for row in rows]
    body = [[f"N = {row['N']}, A = {row['A']}", row["dtype"], *line] for row, line in zip(rows, cells, strict=True)]
    heads = ["IS_P2P, C = 1920", "", "extra memory, MiB", "", "time, s", ""]
    return _table(heads, [["size", "maps", "reference", "chunked", "reference", "chunked"], *body])


def sliders_table() -> str:
    """Milliseconds between a slider's move and its picture."""
    rows = pd.DataFrame(_json("bench_sliders")["rows"]).groupby("explorer", sort=False)
    body = [
        [
            name,
            ", ".join(f"{row.control} {row.median_ms:.0f}" for row in found.itertuples()),
            f"{found['empty_ms'].mean():.0f}",
        ]
        for name, found in rows
    ]
    return _table(["explorer", "control and median, ms", "an empty figure, ms"], body)


TABLES = {
    "summary": summary_table,
    "digits": digits_table,
    "evidence": evidence_table,
    "ablations": ablations_table,
    "photos_losses": lambda: photos_ablation_table("losses"),
    "photos_label_free": lambda: photos_ablation_table("label_free"),
    "photos_batch": lambda: photos_ablation_table("batch"),
    "photos_balance": lambda: photos_ablation_table("balance"),
    "photos_tau_is": lambda: photos_ablation_table("tau_is"),
    "guidance": lambda: guided_table(guidance.published()[0]),
    "guidance_photos": lambda: guided_table(pd.read_csv(RESULTS / "photos_guided.csv")),
    "networks": networks_table,
    "pipeline": diffusers_table,
    "export": export_table,
    "gpu_step": gpu_step_table,
    "gpu_study": gpu_study_table,
    "photos": lambda: digits_table("photos"),
    "claims": claims_table,
    "text": text_table,
    "text_extractors": text_extractors_table,
    "step": step_table,
    "losses": losses_table,
    "sliders": sliders_table,
}


# sentences


def digits_sentences() -> list[str]:
    rows, noises = _scores("digits"), pd.read_csv(RESULTS / "digits_noises.csv")
    first = rows.drop_duplicates(["method", "steps"]).set_index("method")
    pairs = rows.pivot_table(index=["steps", "seed"], columns="method", values=["fid", "pfd"])
    pairs = pairs.dropna(subset=[("fid", "rdd"), ("fid", "cfd")])
    gains = {score: 1 - pairs[score, "rdd"] / pairs[score, "cfd"] for score in ("fid", "pfd")}
    assert (gains["pfd"] > 0).all() and gains["fid"].mean() < 0  # "in all", "higher on average"
    drawn = noises[noises["steps"] == 1].pivot(index="noise", columns="method", values="fid")
    assert (drawn[["cfd_pd", "cfd_is_pd"]].max(axis=1) < drawn[["pd", "cfd", "rdd"]].min(axis=1)).all()  # "in all six"
    few = pairs["fid"].query("steps > 1")
    means = rows[rows["steps"] == 1].groupby("method")["fid"].mean().map("{:.2f}".format)
    noise = {method: _spread(group["fid"]) for method, group in noises.groupby("method")}
    arm = ["method", "steps", "seed"]
    whole = pd.read_csv(RESULTS / "digits_unrounded.csv").set_index(arm)["fid"]
    rounding = (rows.set_index(arm)["fid"].reindex(whole.index) / whole - 1).abs()
    later = rounding.index.get_level_values("steps") == 1
    return [
        f"changes their FID by {rounding[~later].max():.2%} at most".replace("%", " %"),
        f"from ones trained without any rounding by {rounding[later].max():.2%} at most".replace("%", " %"),
        *(
            f"{LABELS[m]} at {first.loc[m, 'steps']} steps has FID {first.loc[m, 'fid']:.2f}"
            for m in ("pndm", "dpm-solver")
        ),
        *(f"(pFD {first.loc[m, 'pfd']:.3f})" for m in ("pndm", "dpm-solver")),
        f"ahead in {(gains['fid'] > 0).sum()} of {len(pairs)} comparisons, and its FID is "
        f"{-gains['fid'].mean():.1%} higher on average".replace("%", " %"),
        f"ahead of CFD in all {len(pairs)}, by {gains['pfd'].mean():.0%} on average".replace("%", " %"),
        f"by FID ({means['pd']} against {means['cfd']} and {means['rdd']})",
        f"has the lowest FID at one step** ({means[WINNER]})",
        f"lower than PD's, in {(few['rdd'] < few['pd']).sum()} of {len(few)} comparisons",
        f"{noise['ddim']} (DDIM, 8 steps), {noise['pd']} (PD, 1 step), {noise['cfd']} (CFD, 1), {noise['rdd']} (RDD, 1), "
        f"{noise['cfd_pd']} (CFD + PD, 1) and {noise['cfd_is_pd']} (CFD + IS_P2P + PD, 1)",
    ]


def ablation_sentences() -> list[str]:
    rows = ablation_results.published().query("fid == fid")
    means = rows.groupby(["ablation", "setting", "steps"])[["fid", "pfd", "peak_mib", "iterations"]].mean()
    values = rows.pivot(index="seed", columns=["ablation", "setting", "steps"], values="fid")

    def mean(ablation, setting, steps=4, column="fid", form=".2f"):
        return format(means.loc[(ablation, setting, steps), column], form)

    def pfd(ablation, setting):
        return mean(ablation, setting, column="pfd", form=".3f")

    def gap(ablation, better, worse, steps, digits=2):
        found = values[ablation, better, steps] - values[ablation, worse, steps]
        return _spread(found * (1 if found.mean() > 0 else -1), digits)

    def budget(setting, column="fid", form=".2f"):
        return mean("budget", setting, 1, column, form)

    def iterations(setting):
        return budget(setting, "iterations", ".0f")

    def mib(form):
        return mean("batch", f"batch size = 128, {form}", column="peak_mib", form=".0f")

    tau = {tau: mean("cfd_tau", f"tau = {tau}, features") for tau in ("0.8", "0.9", "1", "1.2")}
    terms = {name: gap("losses", f"CFD + {name}", "CFD", 1) for name in ("II_P2P", "IS_P2P", "M_P2P", "IS_P2P + M_P2P")}
    anew = [mean("classifier", f"small_resnet, trained anew ({k})") for k in (1, 2)]
    batch = [mean("batch", f"batch size = {size}, chunked") for size in (16, 32, 64, 128)]
    released = rows[rows["ablation"] == "released"].pivot(index="seed", columns="setting", values="fid")
    shift = released.sub(released["as in the paper"], axis=0).mean()
    return [
        f"FID is {tau['0.9']} at 0.9, {tau['1']} at 1, {tau['0.8']} at 0.8 and {tau['1.2']} at 1.2, with PD at "
        + mean("cfd_tau", "PD"),
        f"by {terms['II_P2P']} and {terms['IS_P2P']} of {mean('losses', 'CFD', 1)}",
        f"at tau_IS = 0.1 pFD is {pfd('tau_is', 'tau_IS = 0.1')} instead of {pfd('tau_is', 'tau_IS = 1')}",
        f"at alpha = 100 it is {pfd('alpha', 'alpha = 100')} instead of {pfd('alpha', 'alpha = 1')}",
        f"by {terms['M_P2P']} at one step",
        f"{mean('beta', 'beta = 1')} at beta = 1",
        f"{mean('tau_m', 'tau_M = 0.05')} at tau_M = 0.05, beside {mean('tau_m', 'CFD')} for CFD",
        f"RDD as in the paper is behind CFD by {terms['IS_P2P + M_P2P']}",
        f"CFD FIDs of {mean('classifier', 'small_resnet')}, {anew[0]} and {anew[1]}",
        f"(ResNet18) {mean('classifier', 'resnet18')}",
        f"half of the classes {mean('classifier', 'small_resnet, half the classes')}",
        f"FIDs of {mean('rcfd_losses', 'entropy + diversity')} and more",
        f"FID worse by {gap('rcfd_losses', 'CFD + entropy + diversity', 'CFD', 4, 3)}",
        f"({batch[0]}, {batch[1]}, {batch[2]}; {batch[3]} at 128)",
        f"takes {mib('reference')} MiB in the literal form and {mib('chunked')} in the chunked one",
        f"All switches together change FID by {shift['all together']:+.2f} on average",
        f"the discrete schedule alone by {shift['discrete schedule']:+.2f}",
        f"in RDD's time PD has an FID of {budget('PD, equal time')} after {iterations('PD, equal time')} iterations, CFD "
        f"{budget('CFD, equal time')} after {iterations('CFD, equal time')}; after RDD's "
        f"{iterations('RDD, equal iterations')} they have {budget('PD, equal iterations')} and "
        f"{budget('CFD, equal iterations')}, and RDD {budget('RDD, equal iterations')}",
    ]


def balance_sentences() -> list[str]:
    rows = ablation_results.published("data/results/digits_balance.csv").query("steps == 1").set_index("setting")
    fid, pfd = ({name: f"{value:.2f}" for name, value in rows[score].items()} for score in ("fid", "pfd"))
    terms = ("PD, share 0.3", "IS_P2P, share 1", "II_P2P, share 1", "IS_P2P, share 1, PD, share 0.3")
    pixel, across, within, both = (f"CFD + {name}" for name in terms)
    return [
        f"PD has {fid['PD']}, CFD {fid['CFD']} and RDD at the paper's weights {fid[RDD_AS_PUBLISHED]}",
        f"IS_P2P at a share of 1 brings CFD to {fid[across]}, II_P2P to {fid[within]}",
        f"a pixel term at a share of 0.3 to {fid[pixel]}, and IS_P2P with the pixel term to {fid[both]}",
        f"With IS_P2P pFD falls from {pfd['CFD']} to {pfd[across]} and with the pixel term to {pfd[pixel]} (PD: {pfd['PD']})",
    ]


def evidence_sentences() -> list[str]:
    found, best = evidence(), LABELS[WINNER]
    fid, pfd = found["fid"], found["pfd"]
    one, ours = fid.loc[1], fid[best]
    below = 1 - one[best] / one[["PD", "CFD"]].T
    ahead = {steps: (ours.loc[steps] <= _better(fid.loc[steps])).sum() for steps in (4, 2)}
    pairs, least, mean = len(one), *(f"{100 * value:.0f} %" for value in (below.min(axis=None), below.min().mean()))
    worst = {name: f"{(pfd.loc[1, best] / pfd.loc[1, name]).max():.2f}" for name in ("CFD", "PD")}
    return [
        f"at least {least} below both PD's and CFD's in all {pairs} pairs, {mean} below the lower one on average",
        f"at 4 and 2 steps at or below the lower of the two in {ahead[4]} and {ahead[2]} of {pairs}",
        f"pFD is {worst['CFD']} times CFD's and {worst['PD']} times PD's at most",
        f"{_spread(one[LABELS['cfd_is']])} without the pixel term, {_spread(one[LESS[1]])} without relations and "
        f"{_spread(one[LESS[0]])} without both",
        f"lower than without relations in {(one[best] < one[LESS[1]]).sum()} of {pairs} pairs",
        f"CFD + PD at its own numbers has {_spread(one[LABELS['cfd_pd']])}",
        f"in as much time PD has {_spread(one['PD, equal time'].drop_duplicates())} and CFD {_spread(one['CFD, equal time'])}",
    ]


def guided_sentences() -> list[str]:
    table, _ = guidance.published()
    mean = table.groupby(["method", "sampler", "steps", "guidance"])["fid"].mean()
    arms = table.pivot_table(index=["steps", "guidance", "seed"], columns=["method", "sampler"], values="fid")

    def fid(method, steps, w):
        return f"{mean[method, 'ddim', steps, w]:.2f}"

    def lower(one, other, below=9.0):
        pairs = arms[[one, other]].dropna().query("guidance <= @below")
        return f"{(pairs[one] < pairs[other]).sum()} of {len(pairs)}"

    pd_, noisy, rdd, cfd = ("pd", "ddim"), ("pd", "stochastic"), ("rdd", "ddim"), ("cfd", "ddim")
    return [
        f"at w = 1 it has {fid('stage_one', 16, 1)} against the teacher's {fid('teacher', 16, 1)}",
        *(f"at w = {w:g} {fid('stage_one', 16, w)} against {fid('teacher', 16, w)}" for w in (0.0, 0.5)),
        f"at w = 1 PD has {fid('pd', 8, 1)}, {fid('pd', 4, 1)}, {fid('pd', 2, 1)} and {fid('pd', 1, 1)} at 8, 4, 2 and 1 steps",
        f"has the lower FID in {lower(noisy, pd_)} arms, and in {lower(noisy, pd_, 0.5)} at w up to 0.5",
        f"better in {lower(('cfd', 'stochastic'), cfd)} and {lower(('rdd', 'stochastic'), rdd)}",
        f"RDD's FID is lower than PD's in {lower(rdd, pd_)} arms and CFD's in {lower(cfd, pd_)}",
        f"RDD's is lower than CFD's in {lower(rdd, cfd)}",
        f"one step at w = 1: {fid('pd', 1, 1)} (PD), {fid('cfd', 1, 1)} (CFD), {fid('rdd', 1, 1)} (RDD)",
    ]


def guided_sums_sentences() -> list[str]:
    table = pd.read_csv(RESULTS / "digits_guided_sums.csv")
    arms = table[table["sampler"] == "ddim"].pivot_table(
        index=["steps", "guidance", "seed"], columns="method", values="fid"
    )
    pairs = arms[["pd", WINNER]].dropna()
    ahead, mean = pairs[WINNER] < pairs["pd"], pairs.groupby(["steps", "guidance"]).mean()
    unguided = ahead.xs(0.0, level="guidance")
    one = [f"{mean.loc[(1, w), WINNER]:.2f} against {mean.loc[(1, w), 'pd']:.2f} at w = {w:g}" for w in (0.0, 1.0, 4.0)]
    return [
        f"the lower FID than PD in {ahead.sum()} of {len(ahead)} arms, at w = 0 in {unguided.sum()} of {len(unguided)}",
        f"at one step {one[0]}, {one[1]} and {one[2]}",
    ]


def guided_photos_sentences() -> list[str]:
    table = pd.read_csv(RESULTS / "photos_guided.csv").set_index(["method", "steps", "sampler", "guidance"])["fid"]

    def fids(w: float, *arms: tuple) -> str:
        *most, last = (f"{table[*arm, 'ddim', w]:.1f}" for arm in arms)
        return f"{', '.join(most)} and {last}"

    def lower(one: tuple, other: tuple) -> str:
        pairs = pd.DataFrame({"one": table.xs(one, level=(0, 2)), "other": table.xs(other, level=(0, 2))}).dropna()
        return f"{(pairs['one'] < pairs['other']).sum()} of {len(pairs)}"

    pd_ = "pd", "ddim"
    return [
        f"{fids(0.5, ('stage_one', 16), ('teacher', 16))} at w = 0.5",
        f"{fids(1.0, ('stage_one', 16), ('teacher', 16))} at w = 1",
        f"At w = 0.5 PD has {fids(0.5, *(('pd', n) for n in (8, 4, 2, 1)))} at 8, 4, 2 and 1 steps",
        f"has the lower FID in {lower(('pd', 'stochastic'), pd_)} arms",
        f"RDD's FID is lower than PD's in {lower(('rdd', 'ddim'), pd_)} arms",
    ]


def share_sentences() -> list[str]:
    said = []
    for report in _json("bench_shares"):
        took = {(row["what"], row["setting"]): row["seconds"] for row in report["rows"]}
        pairs = (("cfd_is", "fixed_is"), ("cfd_is_pd", "fixed_all"))
        ratios = [
            seconds / took[fixed, mode] for (what, mode), seconds in took.items() for one, fixed in pairs if what == one
        ]
        said.append(f"{min(ratios):.2f} to {max(ratios):.2f} times ({report['profile']})")
    return [" and ".join(said)]


def instructions_sentences() -> list[str]:
    portable, native = ({row["what"]: row["seconds"] for row in one["rows"]} for one in _json("bench_instructions"))
    times = [portable[method] / native[method] for method in portable]
    return [f"{min(times):.2f} to {max(times):.2f} times as long"]


def photos_sentences() -> list[str]:
    rows, students = _scores("photos"), [*COMPETING, WINNER]
    fid, pfd = (rows.pivot_table(index="method", columns="steps", values=score) for score in ("fid", "pfd"))
    for _, alike in rows[rows["method"].isin(students)].groupby("seed"):
        best = alike.set_index("method").groupby("steps")["fid"].idxmin()
        assert (best[4], best[2]) == ("rcfd", WINNER)  # "with both seeds"
    one = {name: _spread(group["fid"], 1) for name, group in rows.query("steps == 1").groupby("method")}
    noises = pd.read_csv(RESULTS / "photos_noises.csv").pivot_table(index="noise", columns="method", values="fid")
    drawn = {method: _spread(noises[method], 1) for method in noises}
    return [
        f"{one['rcfd']} (RCFD), {one[WINNER]} (CFD + IS_P2P + PD) and {one['cfd']} (CFD); RDD has {one['rdd']} and PD "
        f"{one['pd']}",
        f"a pFD of {pfd[1][WINNER]:.1f}, where PD has {pfd[1]['pd']:.1f}, RCFD {pfd[1]['rcfd']:.1f}, CFD {pfd[1]['cfd']:.1f} "
        f"and RDD {pfd[1]['rdd']:.1f}",
        f"{drawn[WINNER]} (CFD + IS_P2P + PD), {drawn['cfd']} (CFD), {drawn['rdd']} (RDD) and {drawn['pd']} (PD)",
        f"lower than CFD's in {(noises[WINNER] < noises['cfd']).sum()} of {len(noises)}, and than PD's in "
        f"{(noises[WINNER] < noises['pd']).sum()}",
        f"DDIM has {fid[8]['ddim']:.0f} at 8 steps",
        f"{fid[12]['dpm-solver']:.1f} at 12 steps",
    ]


def text_sentences() -> list[str]:
    rows = pd.read_csv(RESULTS / "text_guided.csv")
    both = rows.pivot_table(index=["method", "steps", "guidance"], columns="sampler", values="fid").dropna()
    noisy = both["stochastic"] < both["ddim"]
    assert (noisy[noisy].index.get_level_values("guidance") >= 2).all()  # "all at w of 2 or 4"
    fid, agree = (
        rows.query("sampler == 'ddim'").pivot_table(index=["method", "steps"], columns="guidance", values=name)
        for name in ("fid", "agree")
    )
    one = fid.xs(1, level="steps")
    assert (one.idxmin() == "pd").all() and (agree.loc["teacher", 32].loc[1:] == 1).all()
    assert fid.loc["teacher", 32].is_monotonic_increasing  # "FID only grows with w"
    pd_, teacher = (["pd", 1], ["teacher", 32])
    return [
        f"an FID of {fid.loc[*pd_][0]:.1f} and an agreement of {agree.loc[*pd_][0]:.0%}, where the teacher has "
        f"{fid.loc[*teacher][0]:.1f} and {agree.loc[*teacher][0]:.0%}".replace("%", " %"),
        f"far behind ({one.loc['cfd'][0]:.1f})",
        f"lower FID in {noisy.sum()} of {len(noisy)} comparisons",
    ]


def text_extractors_sentences() -> list[str]:
    rows = pd.read_csv(RESULTS / "text_extractors.csv", keep_default_na=False).query("method != 'ddim' and steps < 8")
    fid = rows.pivot_table(index=["method", "extractor"], columns="steps", values="fid")
    others = fid.drop("pd")
    assert (others > fid.loc["pd", ""]).all(axis=None)  # "PD alone is better than all of them"
    receipts = _json("text_extractors_receipts")
    right = {name: record["test_accuracy"] for name, record in receipts.items() if "test_accuracy" in record}
    one, both, pd_ = fid.loc["cfd"][1], fid.loc["cfd_is_pd"][1], fid.loc["pd", ""][1]
    latents, teacher = both["a classifier of latents"], both["the teacher's features"]
    return [
        f"names {right['a classifier of latents']:.0%} of captions that it has not seen, the one of images "
        f"{right['a classifier of images']:.0%}.".replace("%", " %"),
        f"CFD's FID at one step is {one.min():.1f} to {one.max():.1f}",
        f"the sum's {latents:.1f} through a classifier of latents, {teacher:.1f} through the teacher's features and PD's "
        f"{pd_:.1f}",
    ]


def label_free_sentences() -> list[str]:
    rows = ablation_results.published("data/results/digits_label_free.csv")
    fid = {name: _spread(group["fid"]) for name, group in rows.groupby("setting")}
    free = [fid[f"{LABELS[name]}, the teacher's features"] for name in ("cfd", "rdd", WINNER)]
    return [
        f"{free[0]} (CFD), {free[1]} (RDD) and {free[2]} (CFD + IS_P2P + PD), where PD has {fid['PD']}",
        f"through the classifier {fid['CFD']}, {fid['RDD']} and {fid[LABELS[WINNER]]}",
    ]


def pipeline_sentences() -> list[str]:
    rows = [record["row"] for record in _json("digits_diffusers")]
    fid = {(row["method"], row["steps"]): f"{row['fid']:.2f}" for row in rows}
    own = [fid["digits-ddpm", steps] for steps in (8, 1)]
    return [f"{fid['rdd', 1]} (RDD) and {fid['pd', 1]} (PD) against {own[0]} and {own[1]}"]


def protocol_sentences() -> list[str]:
    rows = {record["receipt"]["protocol"]: record["row"] for record in _json("cifar10_jpeg_copy_evaluation")}
    theirs, released = rows["torch-fidelity"], rows["released"]
    return [
        f"an FID of {theirs['fid']:.3f}",
        f"{theirs['is']:.2f} under `torch-fidelity` and {released['is']:.2f} under `released`",
    ]


SENTENCES = (
    digits_sentences,
    ablation_sentences,
    balance_sentences,
    evidence_sentences,
    guided_sentences,
    guided_sums_sentences,
    guided_photos_sentences,
    label_free_sentences,
    instructions_sentences,
    photos_sentences,
    pipeline_sentences,
    protocol_sentences,
    share_sentences,
    text_sentences,
    text_extractors_sentences,
)


def sentences() -> list[str]:
    """Pieces of the pages' sentences, with their numbers as they follow from the results."""
    return [piece for pieces in SENTENCES for piece in pieces()]


def rewritten(text: str) -> str:
    """A page with every table computed anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text)


def differences(text: str) -> list[str]:
    """What all pages together say otherwise than the results, one line each; every table stands in one place."""
    shown = [(name, table.strip()) for _, name, table, _ in BLOCK.findall(text)]
    found = [
        f"table {name} is not what data/results says, or not there once"
        for name, table in TABLES.items()
        if [said for other, said in shown if other == name] != [table()]
    ]
    words = " ".join(text.split())
    return found + [f"not in the text: {sentence}" for sentence in sentences() if sentence not in words]


def main() -> int:
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    if "--check" not in sys.argv[1:]:
        pages = {page: rewritten(text) for page, text in pages.items()}
        for page, text in pages.items():
            page.write_text(text, encoding="utf-8")
    found = differences("\n".join(pages.values()))
    print("\n".join(found or ["README.md and docs say what data/results says"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
