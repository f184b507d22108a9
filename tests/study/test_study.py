"""A study's arms, results and images: made when asked for, found again, and the same in every process."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import refused
from tiny_study import smoke

import rddlib
from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.samplers import TRAINING_FREE
from rddlib.evaluation import read_record
from rddlib.methods import METHODS
from rddlib.study.folder import open_study, study_profile
from rddlib.study.guidance import guided_done, guided_results
from rddlib.study.profiles import load_profile
from rddlib.study.stage import MODELS
from rddlib.study.study import COLUMNS, GUIDED_COLUMNS, Arm, Cascade, Study, _told, guided_study
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError

PACKAGE = Path(rddlib.__file__).parent


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")}


# results


def test_results_have_a_row_for_each_arm_and_are_found_again(tiny):
    before = written(tiny.out)
    table = tiny.results()
    assert list(table.columns) == COLUMNS and table.notna().all().all() and set(table["samples"]) == {80}
    arms = set(table[["method", "steps"]].itertuples(index=False, name=None))
    students = {(method, steps) for method in ("pd", "rdd") for steps in (4, 2, 1)}
    assert arms == {*(("ddim", steps) for steps in (16, 8, 4, 2, 1)), ("pd", 8), ("pndm", 10), *students}
    assert len(table) == len(arms) == len(tiny.arms()) == len(list(tiny.scores.glob("*.json")))
    written_table = pd.read_csv(tiny.out / "results.csv")
    pd.testing.assert_frame_equal(written_table, table, rtol=1e-5)
    assert written(tiny.out) == before


def test_a_result_says_which_model_was_measured_and_how(tiny):
    record = tiny.measured(arm := Arm("rdd", 2, 0))
    receipt = record["receipt"]
    assert receipt["checkpoint_sha256"] == tiny.stage_of(arm).recorded()["sha256"]
    assert (receipt["samples"], receipt["steps"], receipt["noise_seed"]) == (80, 2, tiny.profile.evaluation.seed)
    assert tiny.measured(Arm("ddim", 2, 0))["receipt"]["checkpoint_sha256"] == tiny.stages.base.recorded()["sha256"]
    tiny.score_path(arm).write_text("{}")
    assert "is damaged: delete it, the next run measures it again" in refused(tiny.results)
    tiny.score_path(arm).unlink()
    again = tiny.measured(arm)["row"]
    assert again | {"seconds": 0} == record["row"] | {"seconds": 0}


@pytest.mark.parametrize(
    "field, value, same",
    [
        ("evaluation.samples", "90", False),
        ("evaluation.seed", "1", False),
        ("evaluation.protocol", "released", False),
        ("evaluation.clip", "false", False),
        ("base.train.iterations", "3", False),
        ("evaluation.batch_size", "7", True),
        ("evaluation.baselines", "[]", True),
        ("jobs", "5", True),
    ],
)
def test_a_score_follows_what_it_depends_on(tmp_path, field, value, same):
    plain, other = smoke(tmp_path), smoke(tmp_path, **{field: value})
    arm = Arm("pd", 4, 0)
    assert (plain.score_path(arm) == other.score_path(arm)) == same


def test_a_cascade_counts_what_it_trains_besides_the_shared_stages(tiny, tmp_path):
    new = Study(tiny.profile, tmp_path)
    assert Cascade(new, "rdd", 0).iterations == 3 and Cascade(new, "ddim", 0).iterations == 0
    guided = guided_study(new)
    assert Cascade(guided, "rdd", 0).iterations == 3 + 2 * 3  # the stochastic students of 4 and 2 steps
    assert Cascade(tiny, "rdd", 0).iterations == 0  # they are there
    assert Cascade(tiny, "rdd", 0).label == "RDD, seed 0"
    digits = load_profile("digits", {"run.shipped": "earlier", "methods": "[rdd, rcfd]"})
    last = {name: Cascade(Study(digits, tmp_path / "digits"), name, 0).iterations for name in ("rdd", "rcfd", "ddim")}
    assert last == {"rdd": 300, "rcfd": 600, "ddim": 0}  # students of 4 and 2 steps ship, but for RCFD's
    alone = Study(replace(digits, methods=("rdd",)), tmp_path / "digits")
    assert _told([Cascade(alone, "rdd", 0)], 2) == "students of 1 step by 1 method, 2 at a time"


def test_a_cascade_says_which_step_each_score_is_of_and_of_many_the_lowest(tiny, tmp_path, monkeypatch):
    fids = {4: 1.5, 2: 2.25, 1: 10.0}
    rows = [{"steps": steps, "guidance": w, "fid": fid + w} for w in (2.0, 0.5) for steps, fid in fids.items()]
    monkeypatch.setattr(Study, "cascade", lambda *_: rows[:3])
    assert Cascade(tiny, "rdd", 0).perform() == "FID 3.5 (4 steps), 4.25 (2), 12 (1)"
    monkeypatch.setattr(Study, "cascade", lambda *_: rows)
    new = Study(tiny.profile, tmp_path)
    guided = Cascade(guided_study(new), "rdd", 0)
    assert guided.perform() == "lowest FID 2 (4 steps, w = 0.5)"
    tasks = [Cascade(new, method, seed) for method in ("rdd", "pd", "ddim") for seed in (0, 1)]
    assert _told(tasks, 2) == "students of 4, 2, 1 steps by 2 methods with 2 seeds, 2 at a time"
    assert _told([guided], 1) == "guided students of 4, 2, 1 steps by 1 method, 1 at a time"


def test_the_arms_of_guidance_are_at_every_weight(guided, tmp_path):
    arms = {(arm.method, arm.steps, arm.sampler) for arm in guided.arms()}
    students = {*(("pd", steps) for steps in (8, 4, 2, 1)), *(("rdd", steps) for steps in (4, 2, 1))}
    deterministic = {("teacher", 16), ("stage_one", 16), *students}
    assert arms == {(*arm, "ddim") for arm in deterministic} | {(*a, "stochastic") for a in students if a[1] > 1}
    assert len(guided.arms()) == 2 * len(arms) and {arm.guidance for arm in guided.arms()} == {0.0, 2.0}
    short = guided_study(smoke(tmp_path, guidance__steps="8")).arms()  # nothing for pd to do above
    assert {arm.steps for arm in short if arm.method == "pd"} == {4, 2, 1}
    assert Arm("rdd", 1, 0).name == "rdd-1-0" and Arm("rdd", 1, 0, 2.0, "ddim").label == "rdd, 1 step, w = 2, ddim"


def test_guided_results_have_a_row_and_a_receipt_for_each_arm(smoke_run):
    study = open_study("smoke", smoke_run[0])
    table, arms = guided_results(study), guided_study(study).arms()
    assert list(table.columns) == GUIDED_COLUMNS and table.notna().all().all() and len(table) == len(arms)
    assert guided_done(study) and not guided_done(Study(load_profile("smoke", {"evaluation.seed": "9"}), study.out))
    teacher, student = (guided_study(study).measured(arm)["receipt"] for arm in (arms[1], Arm("pd", 8, 0, 2.0, "ddim")))
    assert (teacher["evaluations"], teacher["guidance"]) == (32, 2.0)
    assert (student["evaluations"], student["guidance"]) == (8, 2.0)
    assert "10 classes" in teacher["model"] and "takes guidance 0 to 4" in student["model"]


# the same study elsewhere


def test_another_process_makes_the_same_study_again(tmp_path):
    plain = Study(study_profile("smoke", {"loss.alpha": "3"}), tmp_path, 2, "ablations/scores")
    own = smoke(tmp_path, evaluation__network="extractor", seeds="[0, 1]")
    for study in (plain, guided_study(own, 1)):
        kind, arguments = study.__reduce__()
        again = kind(*arguments)
        assert (again.profile, again.seed, again.scores) == (study.profile, study.seed, study.scores)
        assert [again.score_path(arm) for arm in again.arms()] == [study.score_path(arm) for arm in study.arms()]


def test_one_network_scores_all_seeds(tmp_path):
    """Also where that is the study's own extractor, of which every seed has another."""
    study = smoke(tmp_path, evaluation__network="extractor")
    first, second = (guided_study(study, seed) for seed in (0, 1))
    assert first.judge.key == second.judge.key == study.stages.extractor.key != second.stages.extractor.key


# methods


def test_every_sampler_of_the_base_model_is_in_the_table(tmp_path):
    assert set(TRAINING_FREE) < set(METHODS)
    for name in TRAINING_FREE:
        smoke(tmp_path).check_arm(name, 12)


def test_other_channels_are_other_images(tmp_path):
    study, gray = smoke(tmp_path), load_profile("smoke")
    assert study.varied(gray, "x").dataset is study.dataset
    coloured = study.varied(load_profile("smoke", {"unet.image_channels": "3"}), "x")
    assert "images (1, 8, 8), wanted are (3, 8, 8)" in refused(lambda: coloured.dataset)


def test_the_methods_that_compete_are_the_profile_s(tmp_path):
    arms = smoke(tmp_path, methods="[rdd]", seeds="[0, 3]", evaluation__baselines="[]").arms()
    assert [(arm.method, arm.steps, arm.seed) for arm in arms if arm.method not in ("ddim", "pd")] == [
        ("rdd", steps, seed) for seed in (0, 3) for steps in (4, 2, 1)
    ]
    assert [arm for arm in arms if arm.method == "pd"] == [Arm("pd", 8, 0)]  # the teacher


NEW_OBJECTIVE = '''

class Both(Objective):
    """The sum of PD and CFD."""

    weights = {"pd": 1.0, "cfd": 1.0}

    def __init__(self, schedule: Schedule, extractor: FeatureExtractor, temperature: float):
        super().__init__()
        self.pd, self.cfd = PD(schedule), CFD(extractor, temperature=temperature)

    def terms(self, *images_times_and_generator):
        return self.pd.terms(*images_times_and_generator) | self.cfd.terms(*images_times_and_generator)
'''
NEW_METHOD = """
_ROWS += (
    Method(
        "both", "PD + CFD", _line("black", "*", "-"), objectives.Both,
        lambda loss, temperature, steps: {"temperature": temperature}, looks=True, cost=6,
    ),
)
METHODS = {"""


@pytest.fixture
def edited(tmp_path):
    """A checkout in which somebody has added a method, in two files: run(code, *arguments) in a process that uses it."""
    top = tmp_path / "checkout"
    package = shutil.copytree(PACKAGE, top / "rddlib", ignore=shutil.ignore_patterns("__pycache__"))
    for shipped in ("data", "notebooks", "pyproject.toml"):
        (top / shipped).symlink_to(PACKAGE.parent / shipped)
    objectives, methods = package / "distillation/objectives.py", package / "methods.py"
    objectives.write_text(objectives.read_text() + NEW_OBJECTIVE)
    before, after = methods.read_text().split("\nMETHODS = {")
    methods.write_text(f"{before}\nfrom rddlib.distillation import objectives\n{NEW_METHOD}{after}")

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(top)}
        done = subprocess.run([sys.executable, *words], cwd=top, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.ci
def test_a_method_of_one_s_own_is_two_files(edited, tiny_folder, tmp_path):
    """Commands know it at once; the study trains it, scores it and shows it in figures and report."""
    out = shutil.copytree(tiny_folder, tmp_path / "study")
    settings = ["--set", "methods=[pd,both]", "--profile", "smoke", "--out", str(out)]
    assert "both-4-" in edited("-m", "rddlib.cli", "distill", "--objective", "both", "--to", "4", *settings)
    code = f"""from rddlib.report.pages import write_report
from rddlib.study.folder import open_study
study = open_study("smoke", {str(out)!r})
study.results(), write_report(study, [])"""
    edited("-c", code)
    table = pd.read_csv(out / "results.csv")
    rows = table[table["method"] == "both"]
    assert set(rows["steps"]) == {4, 2, 1} and rows.notna().all().all() and "rdd" not in set(table["method"])
    assert "<td>PD + CFD</td>" in (out / "index.html").read_text()


# scores that come with the package


@pytest.mark.parametrize(
    ("weights", "wanted", "text", "fid"),
    [
        ("", "start", None, 42.0),
        ("", "none", None, None),  # none is asked for
        ("others", "start", None, None),  # of the same numbers, but trained elsewhere
        ("", "start", "{", None),  # damaged
    ],
)
def test_a_score_of_the_package_is_taken_for_the_very_weights(
    tiny, tmp_path, monkeypatch, capfd, weights, wanted, text, fid
):
    arm, profile = Arm("ddim", 1, 0), replace(tiny.profile, run=replace(tiny.profile.run, shipped=wanted))
    study = tiny.varied(profile, f"scores-{tmp_path.name}")
    box = tmp_path / "data/models/scores" / study.score_path(arm).name
    receipt = {"weights_sha256": weights or study.drawn(arm).provenance["weights_sha256"]}
    row = {"method": "ddim", "steps": 1, "seed": 0, "fid": 42.0}
    write_atomically(box, text or json.dumps({"row": row, "receipt": receipt}))
    monkeypatch.setattr("rddlib.utils.installation.PACKAGE", tmp_path / "rddlib")
    monkeypatch.setattr(study, "arms", lambda: [arm])
    study.train_all()
    found, said = study.measured(arm), capfd.readouterr().err
    own = tiny.measured(arm)["row"]["fid"]
    assert found["row"]["fid"] == (fid or pytest.approx(own)) and own != 42
    assert ("scores that come with rddlib" in said) == (wanted != "none")
    assert ("is damaged, so it is measured" in said) == bool(text)


def _digits(tmp_path) -> Study:
    profile = load_profile("digits")
    return Study(replace(profile, run=replace(profile.run, shipped="all")), tmp_path)


def test_scores_that_ship_are_those_of_the_models_that_ship(tmp_path):
    """As of models: a changed number gives a score another key."""
    study = _digits(tmp_path)
    files = {study.score_path(arm).name: arm for arm in study.arms() if study.stage_of(arm).ships}
    assert {file.name for file in (PACKAGE.parent / MODELS / "scores").iterdir()} == set(files) and len(files) == 20
    for name, arm in files.items():
        scored = read_record(PACKAGE.parent / MODELS / "scores" / name)["receipt"]
        assert scored["weights_sha256"] == study.drawn(arm).provenance["weights_sha256"]


@pytest.mark.ci
@pytest.mark.parametrize("arm", [Arm("ddim", 2, 0), Arm("rdd", 1, 0)], ids=lambda arm: arm.method)
def test_scores_that_ship_are_measured_again(tmp_path, arm):
    """To the last digits where PyTorch uses the same instructions; on any machine to 1e-3."""
    study = _digits(tmp_path)
    stored, found = study.measured(arm)["row"], study._measure(arm)["row"]
    assert [found[score] for score in ("fid", "pfd", "is")] == pytest.approx(
        [stored[s] for s in ("fid", "pfd", "is")], rel=1e-3
    )


@pytest.mark.ci
def test_the_last_halving_from_what_ships_gives_the_published_row(tmp_path):
    found = Study(load_profile("digits", {"run.shipped": "earlier"}), tmp_path).measured(Arm("pd", 1, 0))["row"]
    published = pd.read_csv(PACKAGE.parent / "data/results/digits_seeds.csv").query("method == 'pd' and steps == 1")
    scores = ["fid", "pfd", "is"]
    assert [found[s] for s in scores] == pytest.approx(list(published.query("seed == 0").iloc[0][scores]), rel=1e-3)


# images


def test_images_are_the_same_for_the_same_noise_and_the_methods_share_it(tiny):
    noise = tiny.noise(3)
    assert torch.equal(noise, tiny.noise(3)) and not torch.equal(noise, tiny.noise(3, seed=1))
    one, again = tiny.images("rdd", 1, noise), tiny.images("rdd", 1, noise)
    assert torch.equal(one, again) and one.shape == (3, 1, 8, 8) and one.abs().max() <= 1
    assert torch.equal(tiny.images("pndm", 10, noise), tiny.images("pndm", 10, noise))


def test_guided_images_move_with_w_and_class(guided):
    noise, y = guided.noise(6), torch.arange(6)
    student = guided.denoiser("pd", 4, None, "stochastic")
    with torch.no_grad():  # it has learned too little to heed either: make it
        for embedding in (student.network.guidance_embedding[-1], student.network.label_embedding):
            embedding.weight.normal_(std=1.0)

    def draw(w, y):
        return guided.sample(student, noise, 4, w, y, "stochastic")

    assert torch.equal(draw(1.0, y), draw(1.0, y))
    assert not torch.allclose(draw(1.0, y), draw(3.0, y)) and not torch.allclose(draw(1.0, y), draw(1.0, y.flip(0)))
    assert guided.guided_images("rdd", 1, noise, 2.0, y).shape == (6, 1, 8, 8)


def test_the_fresh_noise_is_never_the_first_noise(guided):
    start, seen = guided.noise(4, seed=1), []
    schedule = guided.conditional().schedule
    still = as_denoiser(lambda z, t, y: seen.append(z.clone()) or torch.zeros_like(z), schedule, 10)
    guided.sample(still, start, 4, 0.0, torch.zeros(4, dtype=torch.long), "stochastic")
    for z in seen[2::2]:
        correlation = torch.corrcoef(torch.stack([z.flatten(), start.flatten()]))[0, 1]
        assert abs(correlation) < 0.5


# what does not fit


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"extractor.classes": "[10]"}, "extractor.classes has 10, digits has classes 0 to 9"),
        ({"evaluation.protocol": "clean"}, "unknown protocol 'clean'"),
        ({"evaluation.baselines": "[gan-3]"}, "unknown evaluation.baselines 'gan'.*leave it out with --set"),
        ({"evaluation.baselines": "[pndm-3]"}, "pndm got 3 steps: choose at least 4.*leave it out with --set"),
        ({"evaluation.network": "extractor", "evaluation.samples": "20"}, "the score needs more than"),
        ({"evaluation.metrics": "[fid, is, kit]"}, "unknown metrics kit"),
        ({"extractor.name": "teacher", "methods": "[pd_stages]"}, "^pd_stages: stages are a trained classifier's"),
        ({"extractor.name": "teacher", "sums": "x = pd + stages", "methods": "[x]"}, "^x: stages are a trained"),
    ],
)
def test_numbers_that_do_not_fit_the_images_or_the_score(tmp_path, changes, words):
    study = smoke(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        study.check(), study.check_scoring()
    assert not list(tmp_path.iterdir())


def test_too_few_images_to_score_against_are_said_before_anything_is_trained(tmp_path):
    few = load_dataset("digits", "test")
    study = smoke(tmp_path, evaluation__network="extractor", evaluation__samples="97")
    vars(study)["dataset"] = replace(few, images=few.images[:96], labels=few.labels[:96])  # small_resnet: 96 features
    assert "96 images cannot fill a covariance of 96 features" in refused(study.check_scoring)


@pytest.mark.parametrize(
    "ask, words",
    [
        (("gan", 1), "unknown --method 'gan': known are ddim, diffusers-ddim, pndm"),
        (("rdd", 3), "no student has 3 steps"),
    ],
)
def test_arms_that_there_are_not(tmp_path, ask, words):
    study = smoke(tmp_path)
    assert re.search(words, refused(study.check_arm, *ask))
    with pytest.raises(UserError, match="unknown --method 'ddim'.*known are teacher, stage_one, pd"):
        guided_study(study).check_arm("ddim", 1)
    with pytest.raises(UserError, match="unknown classes 12: choose from 0 to 9"):
        guided_study(study).check_arm("rdd", 1, sampler="ddim", classes=(3, 12))


def test_a_term_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    def demanding(*terms, **options):
        raise ValueError("my_term needs a map of 9x9: take another extractor")

    monkeypatch.setattr("rddlib.methods.Sum", demanding)
    with pytest.raises(UserError, match=r"^ours: my_term needs a map of 9x9: take another extractor$"):
        smoke(tmp_path, sums='["ours = cfd + pd(share=0.3)"]', methods="[pd, ours]").check()
    assert not list(tmp_path.iterdir())
