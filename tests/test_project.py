"""The project's own files agree with each other."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

TOP = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def test_environment_installs_the_same_extras_as_the_makefile():
    environment = yaml.safe_load((TOP / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip[0])[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"]) and len(pip) == 1
    assert f'".[{",".join(extras)}]"' in (TOP / "Makefile").read_text()
    python = next(d for d in environment["dependencies"] if str(d).startswith("python"))
    assert python == f"python{PROJECT['requires-python']}"


def names(requirements):
    return {re.split(r"[<>=~!\[ ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_every_dependency_has_a_tested_version_and_a_reason():
    wanted = names(PROJECT["dependencies"]).union(*map(names, PROJECT["optional-dependencies"].values()))
    lines = [x for x in (TOP / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert wanted <= names(lines), wanted - names(lines)
    contributing = (TOP / "CONTRIBUTING.md").read_text().lower()
    assert not [name for name in wanted if name not in contributing]


def test_citation_names_the_paper():
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert citation["references"][0]["doi"] == "10.1145/3664647.3680768"


def test_readme_links_lead_somewhere():
    text = (TOP / "README.md").read_text()
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in x]
    assert links and all((TOP / link).exists() for link in links), [x for x in links if not (TOP / x).exists()]


@pytest.mark.parametrize("notebook", sorted((TOP / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_clean_and_have_their_parameters(notebook):
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert re.findall(r"^(\w+) =", tagged[0].source, flags=re.M) == ["profile", "seed", "out"]
    assert max(len(c.source.splitlines()) for c in code) <= 25


def test_published_results_have_receipts_and_follow_from_their_seeds():
    import json

    import pandas as pd

    from rddlib.evaluation import summarise

    folder = TOP / "data/results"
    rows, receipts = pd.read_csv(folder / "digits_seeds.csv"), json.loads((folder / "digits_receipts.json").read_text())
    assert {f"{r.method}-{r.steps}-{r.seed}" for r in rows.itertuples()} == receipts.keys()
    assert {r["samples"] for r in receipts.values()} == set(rows["samples"])
    published = pd.read_csv(folder / "digits.csv")
    pd.testing.assert_frame_equal(published, summarise(rows), check_dtype=False, rtol=1e-3, atol=1e-5)
    assert (published.query("method in ['pd', 'cfd', 'rcfd', 'rdd'] and steps <= 4")["seeds"] == 3).all()


def equation_rows():
    lines = (TOP / "CONTRIBUTING.md").read_text().split("| equation | function |")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| Eq.")]


@pytest.mark.parametrize("equations, function", equation_rows(), ids=lambda x: x[:40])
def test_every_function_of_the_equation_table_exists_and_cites_its_equation(equations, function):
    import importlib

    module, name = re.match(r"`([\w.]+)\.(\w+)`", function).groups()
    documentation = getattr(importlib.import_module(module), name).__doc__
    for cited in equations.split(";"):
        number, authors = re.match(r"\s*Eq\. ([\d-]+),? (Feng|Sun|Heusel|of the supplement)", cited).groups()
        assert re.search(rf"Eq\. {number}\b", documentation) and authors in documentation, (cited, documentation)


def results_table() -> str:
    """data/results/digits.csv as the README shows it: mean ± spread over seeds."""
    import pandas as pd

    summary = pd.read_csv(TOP / "data/results/digits.csv").set_index(["method", "steps"])
    methods = ["ddim", "pd", "cfd", "rcfd", "rdd"]
    summary = summary.loc[methods]
    lines = ["| steps | | " + " | ".join(m.upper() for m in methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for steps in sorted({n for _, n in summary.index}, reverse=True):
        for score, name, digits in (("fid", "FID", 2), ("pfd", "pFD", 3)):
            cells = []
            for method in methods:
                if (method, steps) not in summary.index:
                    cells.append("")
                    continue
                row = summary.loc[(method, steps)]
                spread = "" if row["seeds"] == 1 else f" ± {row[f'{score}_spread']:.{digits}f}"
                cells.append(f"{row[f'{score}_mean']:.{digits}f}{spread}")
            lines.append(f"| {steps if name == 'FID' else ''} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_readmes_table_is_the_published_one():
    assert results_table() in (TOP / "README.md").read_text()


def test_readmes_sentence_on_other_samplers_is_the_published_one():
    import pandas as pd

    summary, text = pd.read_csv(TOP / "data/results/digits.csv"), " ".join((TOP / "README.md").read_text().split())
    for method, name in (("pndm", "PNDM"), ("dpm-solver", "DPM-Solver")):
        (row,) = summary[summary["method"] == method].itertuples()
        assert f"{name} at {row.steps} steps has FID {row.fid_mean:.2f} (pFD {row.pfd_mean:.3f})" in text


def test_readmes_example_runs(smoke_run, monkeypatch):
    """The block of Python in the README, on the smoke study instead of digits."""
    import rddlib

    code = re.search(r"```python\n(.*?)```", (TOP / "README.md").read_text(), flags=re.S)[1].replace(
        "iterations=150", "iterations=2"
    )
    study = rddlib.open_study("smoke", smoke_run[0])
    monkeypatch.setattr(rddlib, "open_study", lambda name: study)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (16, 1, 8, 8) and names["images"].abs().max() <= 1


ABLATIONS_FILE = TOP / "data/results/digits_ablations.csv"


def ablation_verdicts():
    """{ablation: its verdicts} of the published ablations, as the library judges them."""
    from rddlib.report.claims import verdicts
    from rddlib.study.ablation_results import published
    from rddlib.study.ablations import ABLATIONS

    table = published()
    return {name: verdicts(name, table[table["ablation"] == name]) for name in ABLATIONS}


def ablation_table() -> str:
    """What became of each ablation's claims, as the README shows it."""
    from rddlib.study.ablations import ABLATIONS

    lines = ["| ablation | source | claims | by FID | by pFD |", "|---|---|---|---|---|"]
    for name, found in ablation_verdicts().items():
        found = found[~found["score"].str.startswith("peak memory")]
        cells = [_tally(found[found["score"].isin(scores)]) for scores in (("FID", "entropy"), ("pFD",))]
        lines.append(f"| {name} | {ABLATIONS[name].source} | {found['claim'].nunique()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _tally(found) -> str:
    from rddlib.report.claims import VERDICTS

    counts = {said: (found["verdict"] == said).sum() for said in VERDICTS}
    return ", ".join(f"{said}: {count}" for said, count in counts.items() if count)


def test_published_ablations_are_whole_and_have_receipts():
    import json

    from rddlib.study.ablation_results import PUBLISHED_CHANGES, PUBLISHED_METRIC, published
    from rddlib.study.ablations import ABLATIONS
    from rddlib.study.profiles import load_profile
    from rddlib.study.sweep import COLUMNS

    table, profile = published(), load_profile("digits", PUBLISHED_CHANGES)
    receipts = json.loads(ABLATIONS_FILE.with_name("digits_ablations_receipts.json").read_text())
    assert list(table)[: len(COLUMNS)] == COLUMNS and set(table["record"]) == receipts.keys()
    assert {receipts[record]["metric"] for record in table.loc[table["fid"].notna(), "record"]} == {PUBLISHED_METRIC}
    for name, ablation in ABLATIONS.items():
        rows = table[table["ablation"] == name]
        assert list(dict.fromkeys(rows["setting"])) == [s.name for s in ablation.settings(profile)], name
        assert (rows.groupby("setting")["seed"].nunique() == 3).all(), name
        assert rows["fid" if ablation.measures == "scores" else "entropy"].notna().all(), name
    assert (table.loc[table["ablation"] != "entropy", ["pfd", "is"]].notna()).all(axis=None)
    commits = {receipt["git_commit"] for receipt in receipts.values()}
    assert not [commit for commit in commits if "+changes" in commit]
    assert table["steps"].isin((8, 4, 2, 1)).all()


def test_readmes_table_of_ablations_is_the_published_one():
    assert ablation_table() in (TOP / "README.md").read_text()


def ablation_fragments() -> list[str]:
    """The README's sentences with numbers from the published ablations."""
    from rddlib.study.ablation_results import published

    table = published()
    rows = table[table["fid"].notna()]
    means = rows.groupby(["ablation", "setting", "steps"])[["fid", "pfd", "peak_mib", "iterations"]].mean()
    values = rows.pivot(index="seed", columns=["ablation", "setting", "steps"], values="fid")

    def fid(ablation, setting, steps=4):
        return f"{means.loc[(ablation, setting, steps), 'fid']:.2f}"

    def pfd(ablation, setting, steps=4):
        return f"{means.loc[(ablation, setting, steps), 'pfd']:.3f}"

    def gap(ablation, better, worse, steps, digits=2):
        found = values[ablation, better, steps] - values[ablation, worse, steps]
        return f"{abs(found.mean()):.{digits}f} ± {found.std():.{digits}f}"

    def iterations(method, what="time"):
        return f"{means.loc[('budget', f'{method}, equal {what}', 1), 'iterations']:.0f}"

    def mib(form):
        return f"{means.loc[('batch', f'batch size = 128, {form}', 4), 'peak_mib']:.0f}"

    features = {tau: fid("cfd_tau", f"tau = {tau}, features") for tau in ("0.8", "0.9", "1", "1.2")}
    terms = {name: gap("losses", f"CFD + {name}", "CFD", 1) for name in ("II_P2P", "IS_P2P", "M_P2P", "IS_P2P + M_P2P")}
    released = rows[rows["ablation"] == "released"].pivot(index="seed", columns="setting", values="fid")
    shift = released.sub(released["as in the paper"], axis=0).mean()
    return [
        f"FID is {features['0.9']} at 0.9, {features['1']} at 1, {features['0.8']} at 0.8 and {features['1.2']} at 1.2, with PD at "
        f"{fid('cfd_tau', 'PD')}",
        f"by {terms['II_P2P']} and {terms['IS_P2P']} of {fid('losses', 'CFD', 1)}",
        f"at tau_IS = 0.1 pFD is {pfd('tau_is', 'tau_IS = 0.1')} instead of {pfd('tau_is', 'tau_IS = 1')}",
        f"at alpha = 100 it is {pfd('alpha', 'alpha = 100')} instead of {pfd('alpha', 'alpha = 1')}",
        f"by {terms['M_P2P']} at one step",
        f"{fid('beta', 'beta = 1')} at beta = 1",
        f"{fid('tau_m', 'tau_M = 0.05')} at tau_M = 0.05, beside {fid('tau_m', 'CFD')} for CFD",
        f"RDD as in the paper is behind CFD by {terms['IS_P2P + M_P2P']}",
        f"CFD FIDs of {fid('classifier', 'small_resnet')}, {fid('classifier', 'small_resnet, trained anew (1)')} and "
        f"{fid('classifier', 'small_resnet, trained anew (2)')}",
        f"(ResNet18) {fid('classifier', 'resnet18')}",
        f"half of the classes {fid('classifier', 'small_resnet, half the classes')}",
        f"FIDs of {fid('rcfd_losses', 'entropy + diversity')} and more",
        f"FID worse by {gap('rcfd_losses', 'CFD + entropy + diversity', 'CFD', 4, 3)}",
        f"({fid('batch', 'batch size = 16, chunked')}, {fid('batch', 'batch size = 32, chunked')}, "
        f"{fid('batch', 'batch size = 64, chunked')}; {fid('batch', 'batch size = 128, chunked')} at 128)",
        f"takes {mib('reference')} MiB in the literal form and {mib('chunked')} in the chunked one",
        f"All switches together change FID by {shift['all together']:+.2f} on average",
        f"the discrete schedule alone by {shift['discrete schedule']:+.2f}",
        f"in RDD's time PD has an FID of {fid('budget', 'PD, equal time', 1)} after {iterations('PD')} iterations, CFD "
        f"{fid('budget', 'CFD, equal time', 1)} after {iterations('CFD')}; after RDD's {iterations('RDD', 'iterations')} they have "
        f"{fid('budget', 'PD, equal iterations', 1)} and {fid('budget', 'CFD, equal iterations', 1)}, and RDD "
        f"{fid('budget', 'RDD, equal iterations', 1)}",
    ]


def test_readmes_sentences_on_ablations_are_the_published_ones():
    text = " ".join((TOP / "README.md").read_text().split())
    missing = [fragment for fragment in ablation_fragments() if fragment not in text]
    assert not missing, missing


def test_what_the_readme_says_in_words_of_the_ablations_is_in_the_rows():
    from rddlib.study.ablation_results import published

    rows = published().query("fid == fid")
    first = rows[rows["steps"] == 4].groupby(["ablation", "setting"])[["fid", "pfd"]].mean()
    tau = rows[rows["ablation"] == "cfd_tau"]
    features = tau[tau["series"] == "features"].groupby("x")["fid"].mean()
    assert features.idxmin() == 0.9  # an optimum just below 1
    fewest = rows[rows["steps"] == rows.groupby("ablation")["steps"].transform("min")]
    ahead = fewest[fewest["method"] != "pd"].groupby("ablation")["pfd"].min()
    assert (ahead > first.loc[("losses", "PD"), "pfd"]).all()  # by pFD PD is ahead of all
    for name, low, high in (("tau_is", "tau_IS = 1", "tau_IS = 0.1"), ("alpha", "alpha = 1", "alpha = 100")):
        assert first.loc[(name, high), "fid"] <= first.loc[(name, low), "fid"]  # louder, with FID no worse
    for name, own in (("queue_size", "N_q = 20000"), ("queue_draws", "V = 1024")):
        axis = first.loc[name].drop("CFD")["fid"]
        assert (axis - axis[own]).abs().max() < 0.02
    released = rows[rows["ablation"] == "released"].pivot(index="seed", columns="setting", values="fid")
    shift = released.drop(columns=["CFD", "as in the paper"]).sub(released["as in the paper"], axis=0)
    assert (shift["all together"] < 0).sum() == 2
    alone = shift.drop(columns="all together")
    assert [name for name in alone if (alone[name] < 0).all() or (alone[name] > 0).all()] == ["queue_push"]
    assert (shift[["queue_rows", "map after ReLU", "attention"]].mean() < 0).all()


def guided_table() -> str:
    """The published scores of guidance as the README shows them: mean ± spread over seeds."""
    from rddlib.study.guided_results import published

    from rddlib.report.guidance_figures import GUIDED_NAMES

    table, _ = published()
    weights = sorted(table["guidance"].unique())
    heads = ["", "steps", "sampler", *(f"FID, w = {w:g}" for w in weights), *(f"IS, w = {w:g}" for w in (0, 1))]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (method, steps, sampler), rows in table.groupby(["method", "steps", "sampler"], sort=False):
        grouped = rows.groupby("guidance")[["fid", "is"]].agg(["mean", "std"])
        cells = [f"{grouped.loc[w, ('fid', 'mean')]:.2f} ± {grouped.loc[w, ('fid', 'std')]:.2f}" for w in weights]
        cells += [f"{grouped.loc[w, ('is', 'mean')]:.2f}" for w in (0, 1)]
        lines.append("| " + " | ".join([GUIDED_NAMES[method], str(steps), sampler, *cells]) + " |")
    return "\n".join(lines)


def test_readmes_table_of_guidance_is_the_published_one():
    assert guided_table() in (TOP / "README.md").read_text()


def test_published_guidance_is_whole_and_has_receipts():
    import json

    from rddlib.study.guided_results import published

    from rddlib.study.guidance import GUIDED_COLUMNS

    table, metric = published()
    receipts = json.loads((TOP / "data/results/digits_guided_receipts.json").read_text())
    assert list(table) == GUIDED_COLUMNS and len(table) == len(receipts) and table.notna().all(axis=None)
    assert {receipt["metric"] for receipt in receipts.values()} == {metric}
    drawn = {(r["sampler"], r["steps"], r["guidance"], r["evaluations"]) for r in receipts.values()}
    teacher = {
        (s, n, w, (2 if m == "teacher" else 1) * n)
        for m, n, w, s in table.iloc[:, :4].itertuples(index=False, name=None)
    }
    assert drawn == teacher
    assert not [r["git_commit"] for r in receipts.values() if "+changes" in r["git_commit"]]


def guided_fragments() -> list[str]:
    """The README's sentences with numbers from the published scores of guidance."""
    from rddlib.study.guided_results import published

    table, _ = published()
    mean = table.groupby(["method", "sampler", "steps", "guidance"])["fid"].mean()
    arms = table.pivot_table(index=["steps", "guidance", "seed"], columns=["method", "sampler"], values="fid")

    def lower(one, other, at=None):
        pairs = arms[[one, other]].dropna()
        pairs = pairs if at is None else pairs[pairs.index.get_level_values("guidance").isin(at)]
        return f"{(pairs[one] < pairs[other]).sum()} of {len(pairs)}"

    def fid(*arm):
        return f"{mean[arm]:.2f}"

    pd, noisy, rdd, cfd = ("pd", "ddim"), ("pd", "stochastic"), ("rdd", "ddim"), ("cfd", "ddim")
    return [
        f"at w = 1 it has {fid('stage_one', 'ddim', 16, 1.0)} against the teacher's {fid('teacher', 'ddim', 16, 1.0)}",
        f"at w = 0 {fid('stage_one', 'ddim', 16, 0.0)} against {fid('teacher', 'ddim', 16, 0.0)}",
        f"and at w = 0.5 {fid('stage_one', 'ddim', 16, 0.5)} against {fid('teacher', 'ddim', 16, 0.5)}",
        f"at w = 1 PD has {fid('pd', 'ddim', 8, 1.0)}, {fid('pd', 'ddim', 4, 1.0)}, {fid('pd', 'ddim', 2, 1.0)} and "
        f"{fid('pd', 'ddim', 1, 1.0)} at 8, 4, 2 and 1 steps",
        f"has the lower FID in {lower(noisy, pd)} arms, and in {lower(noisy, pd, (0.0, 0.5))} at w up to 0.5",
        f"better in {lower(('cfd', 'stochastic'), cfd)} and {lower(('rdd', 'stochastic'), rdd)}",
        f"RDD's FID is lower than PD's in {lower(rdd, pd)} arms and CFD's in {lower(cfd, pd)}",
        f"RDD's is lower than CFD's in {lower(rdd, cfd)}",
        f"one step at w = 1: {fid('pd', 'ddim', 1, 1.0)} (PD), {fid('cfd', 'ddim', 1, 1.0)} (CFD), {fid('rdd', 'ddim', 1, 1.0)} (RDD)",
    ]


def test_what_the_readme_says_of_guidance_is_in_the_rows():
    text = " ".join((TOP / "README.md").read_text().split())
    assert not [fragment for fragment in guided_fragments() if fragment not in text]
    assert_words_on_guidance()


def assert_words_on_guidance():
    """What it says without numbers."""
    from rddlib.study.guided_results import published

    table, _ = published()
    fid, score = (
        table.pivot_table(index=["method", "sampler", "steps"], columns="guidance", values=v) for v in ("fid", "is")
    )
    assert (fid.idxmin(axis=1) <= 1).all() and (fid.idxmax(axis=1) == 4).all()  # "FID is best at w of 1 or less"
    assert (score.diff(axis=1).iloc[:, 1:] > -0.01).all(axis=None)  # "IS only rises with w", or is level
    few = table[table["guidance"].isin((0.0, 0.5)) & (table["sampler"] == "ddim")].set_index(
        ["method", "steps", "guidance", "seed"]
    )["is"]
    for method in ("cfd", "rdd"):  # "a higher IS than PD's at the same small w"
        assert (few[method] > few["pd"].reindex(few[method].index)).all()


def readme_block(language: str, containing: str) -> str:
    """The README's block of code in a language that contains these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (TOP / "README.md").read_text(), flags=re.S)
    (found,) = (block for block in blocks if containing in block)
    return found


def test_readmes_ten_lines_distil_any_network_through_any_features():
    """The two blocks on one's own model, the stand-ins first, with fewer iterations."""
    lines = readme_block("python", "as_denoiser(my_network").replace("TrainConfig(150", "TrainConfig(3")
    assert "TrainConfig(3" in lines and len([line for line in lines.splitlines() if line]) == 10
    names: dict = {}
    exec(compile(readme_block("python", "class MyNetwork") + lines, "README.md", "exec"), names)
    student, teacher = names["student"], names["my_network"]
    assert student.steps == 4 and student(torch.randn(2, 1, 8, 8), 1.0).shape == (2, 1, 8, 8)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


DIFFUSERS_FILE = TOP / "data/results/digits_diffusers.json"


def diffusers_table() -> str:
    """The pipeline, undistilled and distilled, as the README shows it."""
    records = json.loads(DIFFUSERS_FILE.read_text())
    names = {"digits-ddpm": "the pipeline, by DDIM", "pd": "PD", "rdd": "RDD"}
    lines = ["| | steps | FID | pFD | IS |", "|---|---|---|---|---|"]
    for row in (record["row"] for record in records):
        cells = [names[row["method"]], str(row["steps"]), f"{row['fid']:.2f}", f"{row['pfd']:.3f}", f"{row['is']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_readmes_table_of_a_pipeline_is_the_published_one():
    assert diffusers_table() in (TOP / "README.md").read_text()


def test_the_published_pipeline_has_receipts_of_one_commit():
    records = json.loads(DIFFUSERS_FILE.read_text())
    receipts = [record["receipt"] for record in records]
    assert (
        len(
            {
                (r["git_commit"], r["reference_sha256"], r["network_sha256"], r["samples"], r["noise_seed"])
                for r in receipts
            }
        )
        == 1
    )
    assert "changes" not in receipts[0]["git_commit"] and receipts[0]["samples"] == 5000
    assert {(r["row"]["method"], r["row"]["steps"]) for r in records} >= {("rdd", 1), ("pd", 1), ("digits-ddpm", 1)}
    assert "UNet2DModel" in receipts[0]["model"] and all(
        "v prediction" in record["receipt"]["model"] for record in records if record["row"]["method"] != "digits-ddpm"
    )


def export_table() -> str:
    """Images a second of exported students, as the README shows them."""
    lines = [
        "| profile | images at a time | teacher, 8 steps | student, Python | student, TorchScript |",
        "|---|---|---|---|---|",
    ]
    for report in json.loads((TOP / "data/results/bench_export.json").read_text()):
        for batch in dict.fromkeys(row["batch"] for row in report["rows"]):
            rows = [row for row in report["rows"] if row["batch"] == batch]
            cells = [
                f"{row['images_per_second']:.3g}" + (f" ({row['speed']:.1f}x)" if row["steps"] == 1 else "")
                for row in rows
            ]
            lines.append(f"| {report['profile']} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_readmes_table_of_exports_is_the_measured_one():
    assert export_table() in (TOP / "README.md").read_text()
    for report in json.loads((TOP / "data/results/bench_export.json").read_text()):
        assert report["difference"] < 1e-4 and report["git_commit"] and report["hardware"]


def test_nothing_strays_into_the_repository():
    """What a run writes stays out of it: tracked are the folders that CONTRIBUTING.md names and a few files beside them."""
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    folders = {name.split("/")[0] for name in listed.stdout.splitlines() if "/" in name}
    assert folders <= {".ci", "data", "examples", "notebooks", "rddlib", "tests"}
    files = {name for name in listed.stdout.splitlines() if "/" not in name}
    assert not {name for name in files if Path(name).suffix in (".pt", ".safetensors", ".npz", ".ts", ".csv")}
