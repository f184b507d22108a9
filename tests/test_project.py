"""The project's own files agree with each other."""

import json
import re
import runpy
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml

from rddlib.evaluation import summarise
from rddlib.methods import METHODS, SUMS, WINNER, LossConfig, own_methods
from rddlib.study import ablation_results, guidance
from rddlib.study.ablations import ABLATIONS, EXTRACTOR_SEEDS
from rddlib.study.profiles import load_profile
from rddlib.study.study import GUIDED_COLUMNS, Study
from rddlib.study.sweep import COLUMNS

TOP = Path(__file__).resolve().parents[1]
PAGES = {path: path.read_text() for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
RESULTS = TOP / "data/results"
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def test_environment_installs_the_same_extras_as_the_makefile():
    environment = yaml.safe_load((TOP / "environment.yml").read_text())
    (own,) = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    extras = re.fullmatch(r"-e \.\[(.*)\]", own)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"]) and "pytorch-cpu" in environment["dependencies"]
    assert f'".[{",".join(extras)}]"' in (TOP / "Makefile").read_text()
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert python == f"python={PROJECT['requires-python'].removeprefix('>=')}"  # repo2docker reads "=" alone
    assert not (TOP / "Dockerfile").exists()  # it would keep Binder from reading environment.yml


def names(requirements):
    return {re.split(r"[<>=~!\[ ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_every_dependency_has_a_tested_version_and_a_reason():
    wanted = names(PROJECT["dependencies"]).union(*map(names, PROJECT["optional-dependencies"].values()))
    lines = [x for x in (TOP / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert wanted - {"rddlib"} <= names(lines), wanted - names(lines)
    contributing = (TOP / "CONTRIBUTING.md").read_text().lower()
    assert not [name for name in wanted if name not in contributing]


def test_citation_names_the_paper():
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert citation["references"][0]["doi"] == "10.1145/3664647.3680768"


def test_the_readme_is_short_and_leads_to_every_page():
    page, *others = PAGES
    assert len(PAGES[page].splitlines()) <= 150
    assert not [other.name for other in others if f"]({other.relative_to(TOP)})" not in PAGES[page]]


def test_the_readme_names_every_notebook():
    for notebook in (TOP / "notebooks").glob("*.ipynb"):
        heading = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0]
        number, name = re.fullmatch(r"# (\d\d) · (.+)", heading).groups()
        assert f"| [{number}](notebooks/{notebook.name}) {name} |" in PAGES[TOP / "README.md"]


def receipts_of(name):
    found = json.loads((RESULTS / f"{name}_receipts.json").read_text())
    assert not [receipt for receipt in found.values() if "+changes" in receipt["git_commit"]]
    return found


def check_arms(table, receipts):
    """What was drawn is what a guided table's arms ask for: the teacher's guidance takes two evaluations a step."""
    drawn = {(r["sampler"], r["steps"], r["guidance"], r["evaluations"]) for r in receipts.values()}
    arms = table[["method", "steps", "guidance", "sampler"]].itertuples(index=False, name=None)
    assert drawn == {(s, n, w, (2 if m == "teacher" else 1) * n) for m, n, w, s in arms}


def test_published_results_have_receipts_and_follow_from_their_seeds():
    rows, receipts = pd.read_csv(RESULTS / "digits_seeds.csv"), receipts_of("digits")
    assert {f"{r.method}-{r.steps}-{r.seed}" for r in rows.itertuples()} == receipts.keys()
    assert {r["samples"] for r in receipts.values()} == set(rows["samples"])
    published = pd.read_csv(RESULTS / "digits.csv")
    pd.testing.assert_frame_equal(published, summarise(rows), check_dtype=False, rtol=1e-3, atol=1e-5)
    assert (published.query("method in ['pd', 'cfd', 'rcfd', 'rdd', 'cfd_is_pd'] and steps <= 4")["seeds"] == 3).all()


@pytest.mark.parametrize("source", ablation_results.PUBLISHED)
def test_published_ablations_are_whole_and_have_receipts(source):
    table, profile = ablation_results.published(source), load_profile("digits", ablation_results.PUBLISHED[source])
    receipts = receipts_of(Path(source).stem)
    assert list(table)[: len(COLUMNS)] == COLUMNS and set(table["record"]) == receipts.keys()
    scored = {receipts[record]["metric"] for record in table.loc[table["fid"].notna(), "record"]}
    assert scored == {ablation_results.PUBLISHED_METRIC}
    for name, rows in table.groupby("ablation"):
        assert list(dict.fromkeys(rows["setting"])) == [s.name for s in ABLATIONS[name].settings(profile)], name
        assert (rows.groupby("setting")["seed"].nunique() == (1 if name == "balance" else 3)).all(), name
        assert rows["fid" if ABLATIONS[name].measures == "scores" else "entropy"].notna().all(), name
    assert (table.loc[table["ablation"] != "entropy", ["pfd", "is"]].notna()).all(axis=None)


def test_the_search_has_receipts_and_no_seed_or_extractor_of_the_evidence():
    table, receipts = ablation_results.search(), receipts_of("digits_search")
    assert set(table["record"]) == receipts.keys() and table.notna().all(axis=None)
    assert not set(table["extractor"]) & set(EXTRACTOR_SEEDS) and set(table["seed"]) == {100}
    numbers = lambda method: [method.arguments(LossConfig(), 1.0, steps) for steps in (4, 2, 1)]  # noqa: E731
    tried = [own_methods((f"x = {terms}",))["x"] for terms in table["terms"].unique()]
    assert all(numbers(METHODS[name]) in map(numbers, tried) for name in SUMS)


def test_every_ablation_has_published_rows():
    published = {
        name for source in ablation_results.PUBLISHED for name in ablation_results.published(source)["ablation"]
    }
    assert published == set(ABLATIONS)


def test_published_guidance_is_whole_and_has_receipts():
    (table, metric), receipts = guidance.published(), receipts_of("digits_guided")
    assert list(table) == GUIDED_COLUMNS and len(table) == len(receipts) and table.notna().all(axis=None)
    assert {receipt["metric"] for receipt in receipts.values()} == {metric}
    seeds = table.groupby(["method", "steps", "sampler", "guidance"])["seed"].agg(["nunique", "size"])
    assert (seeds == 3).all(axis=None)
    check_arms(table, receipts)


def test_the_text_guided_example_has_receipts_of_one_network():
    rows, receipts = pd.read_csv(RESULTS / "text_guided.csv"), receipts_of("text_guided")
    assert len(rows) == len(receipts) and rows["agree"].between(0, 1).all()
    assert len({(receipt["network_sha256"], receipt["samples"]) for receipt in receipts.values()}) == 1
    check_arms(rows, receipts)


def test_the_published_pipeline_has_receipts_of_one_commit():
    records = json.loads((RESULTS / "digits_diffusers.json").read_text())
    receipts = [record["receipt"] for record in records]
    alike = ("git_commit", "reference_sha256", "network_sha256", "samples", "noise_seed")
    assert len({tuple(receipt[name] for name in alike) for receipt in receipts}) == 1
    assert "changes" not in receipts[0]["git_commit"] and receipts[0]["samples"] == 5000
    assert {(r["row"]["method"], r["row"]["steps"]) for r in records} >= {("rdd", 1), ("pd", 1), ("digits-ddpm", 1)}
    assert "UNet2DModel" in receipts[0]["model"]
    assert all("v prediction" in r["receipt"]["model"] for r in records if r["row"]["method"] != "digits-ddpm")


def test_published_exports_draw_the_same_images():
    for report in json.loads((RESULTS / "bench_export.json").read_text()):
        assert report["difference"] < 1e-4 and report["git_commit"] and report["hardware"]


def equation_rows():
    lines = (TOP / "CONTRIBUTING.md").read_text().split("| equation | function |")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| Eq.")]


@pytest.mark.parametrize("equations, function", equation_rows(), ids=lambda x: x[:40])
def test_every_function_of_the_equation_table_exists_and_cites_its_equation(equations, function):
    module, name = re.match(r"`([\w.]+)\.(\w+)`", function).groups()
    documentation = getattr(import_module(module), name).__doc__
    for cited in equations.split(";"):
        number, authors = re.match(r"\s*Eq\. ([\d-]+),? (Feng|Sun|Heusel|of the supplement)", cited).groups()
        assert re.search(rf"Eq\. {number}\b", documentation) and authors in documentation, (cited, documentation)


def test_the_pages_numbers_are_the_published_ones():
    """And the check sees a wrong one, in a table as in a sentence, and a table that stands twice."""
    numbers = runpy.run_path(str(TOP / "docs/fill_numbers.py"))
    assert numbers["differences"](TEXT) == []
    wrong = TEXT.replace("| 3.83 ± 0.21 (", "| 3.82 ± 0.21 (", 1).replace("FID is 1.63 at 0.9", "FID is 1.62 at 0.9")
    table, sentence = numbers["differences"](wrong)
    assert "table summary" in table and "FID is 1.63 at 0.9" in sentence
    assert numbers["rewritten"](wrong) == wrong.replace("| 3.82 ± 0.21 (", "| 3.83 ± 0.21 (")
    twice = next(re.finditer(r"<!-- numbers: (\w+) -->.*?<!-- end -->", TEXT, flags=re.S))
    (table,) = numbers["differences"](TEXT + twice[0])
    assert f"table {twice[1]}" in table


def test_the_example_with_a_study_runs(smoke_run, monkeypatch):
    """The pages' block of Python on a study's models, of the smoke study instead of digits."""
    import rddlib

    code = block("python", "open_study").replace("iterations=150", "iterations=2")
    study = rddlib.open_study("smoke", smoke_run[0])
    monkeypatch.setattr(rddlib, "open_study", lambda name: study)
    names: dict = {}
    exec(compile(code, "docs", "exec"), names)
    assert names["images"].shape == (16, 1, 8, 8) and names["images"].abs().max() <= 1


def test_what_the_pages_say_in_words_of_the_ablations_is_in_the_rows():
    rows = ablation_results.published().query("fid == fid")
    first = rows[rows["steps"] == 4].groupby(["ablation", "setting"])[["fid", "pfd"]].mean()
    tau = rows[rows["ablation"] == "cfd_tau"]
    features = tau[tau["series"] == "features"].groupby("x")["fid"].mean()
    assert features.idxmin() == 0.9  # an optimum just below 1
    fewest = rows[rows["steps"] == rows.groupby("ablation")["steps"].transform("min")]
    ahead = fewest[fewest["method"] != "pd"].groupby("ablation")["pfd"].min()
    assert (ahead > first.loc[("losses", "PD"), "pfd"]).all()  # by pFD PD is ahead of all
    for name, low, high in (("tau_is", "tau_IS = 1", "tau_IS = 0.1"), ("alpha", "alpha = 1", "alpha = 100")):
        assert first.loc[(name, high), "fid"] <= first.loc[(name, low), "fid"]  # more weight, with FID no worse
    for name, own in (("queue_size", "N_q = 20000"), ("queue_draws", "V = 1024")):
        axis = first.loc[name].drop("CFD")["fid"]
        assert (axis - axis[own]).abs().max() < 0.02
    released = rows[rows["ablation"] == "released"].pivot(index="seed", columns="setting", values="fid")
    shift = released.drop(columns=["CFD", "as in the paper"]).sub(released["as in the paper"], axis=0)
    assert (shift["all together"] < 0).sum() == 2
    alone = shift.drop(columns="all together")
    assert [name for name in alone if (alone[name] < 0).all() or (alone[name] > 0).all()] == ["queue_push"]
    assert (shift[["queue_rows", "map after ReLU", "attention"]].mean() < 0).all()


def test_what_the_pages_say_in_words_of_guidance_is_in_the_rows():
    table, _ = guidance.published()
    arms = ["method", "sampler", "steps"]
    fid, score = (table.pivot_table(index=arms, columns="guidance", values=name) for name in ("fid", "is"))
    assert (fid.idxmin(axis=1) <= 1).all() and (fid.idxmax(axis=1) == 4).all()  # "FID is best at w of 1 or less"
    assert (score.diff(axis=1).iloc[:, 1:] > -0.01).all(axis=None)  # "IS only rises with w", or is level
    few = table[table["guidance"].isin((0.0, 0.5)) & (table["sampler"] == "ddim")]
    few = few.set_index(["method", "steps", "guidance", "seed"])["is"]
    for method in ("cfd", "rdd"):  # "a higher IS than PD's at the same small w"
        assert (few[method] > few["pd"].reindex(few[method].index)).all()


def block(language: str, containing: str) -> str:
    """The pages' block of code in a language that contains these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)
    (found,) = (code for code in blocks if containing in code)
    return found


@pytest.mark.parametrize("model", ["study.teacher()", "as_denoiser(MyNetwork()"])
def test_the_pages_lines_distil_a_study_s_model_and_any_other(tmp_path, model):
    """README's and those on one's own networks, as they stand but for a folder and fewer iterations."""
    changes = {"iterations=150": "iterations=3", 'open_study("digits")': f'open_study("digits", {str(tmp_path)!r})'}
    lines = block("python", f"teacher = {model}")
    assert "iterations=150" in lines
    for old, new in changes.items():
        lines = lines.replace(old, new)
    names: dict = {}
    exec(compile(lines, "README.md", "exec"), names)
    student, teacher, images = (names[name] for name in ("student", "teacher", "images"))
    assert student.steps == 4 and images.shape == (16, 1, 8, 8) and images.abs().max() <= 1
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_nothing_strays_into_the_repository():
    """What a run writes stays out of it: tracked are the folders that CONTRIBUTING.md names and a few files beside them."""
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    folders = {name.split("/")[0] for name in listed.stdout.splitlines() if "/" in name}
    assert folders <= {".ci", ".github", "benchmarks", "data", "docs", "examples", "notebooks", "rddlib", "tests"}
    files = {name for name in listed.stdout.splitlines() if "/" not in name}
    assert not {name for name in files if Path(name).suffix in (".pt", ".safetensors", ".npz", ".ts", ".csv")}


def test_models_that_ship_are_stages_of_the_profiles_as_they_are(tmp_path):
    """A changed number or version gives a stage another key: then the model that ships is of no use, and is packed anew."""
    graph = Study(load_profile("digits"), tmp_path).stages
    students = [graph.student(name, steps, 0) for name in ("pd", "cfd", "rdd", WINNER) for steps in (4, 2, 1)]
    stages = [graph.base, graph.teacher(), graph.extractor, *students]
    files = {file.name: file.stat().st_size for file in (TOP / "data/models").glob("*.safetensors")}
    keys = (
        "base-580f033b1098",
        "pd-8-d3ecbc702dd3",
        "extractor-90cb808de5f1",
        "pd-1-d71d4c001d76",
        "cfd_is_pd-1-d0d73ee8270a",
    )  # they hold the sha256 of images not here
    photos = {f"{name}.safetensors" for name in keys}
    assert files.keys() - photos == {f"{stage.name}-{stage.key}.safetensors" for stage in stages}
    assert sum(files.values()) < 25e6
