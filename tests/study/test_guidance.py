import inspect
import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rddlib.study.assembly import conditional_profile, objective_numbers
from rddlib.study.guided_results import published, scores_table

from rddlib.cli import main
from rddlib.data import ImageDataset
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.sampling import two_step_target
from rddlib.distillation import objectives
from rddlib.distillation import train as recipes
from rddlib.report.guidance_figures import series_of, tradeoff_figure, weights_figure
from rddlib.report.guidance_findings import findings
from rddlib.report.views import guidance_view
from rddlib.study.guidance import GUIDED_COLUMNS, GUIDED_METHODS, GuidedStudy, guided_study
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study, open_study
from rddlib.utils.checkpoint import load_checkpoint
from rddlib.utils.errors import Interrupted, UserError


@pytest.fixture(scope="module")
def folder(smoke_run, tmp_path_factory):
    """A copy of the smoke study, notebook 08 included, to draw and write in."""
    copy = tmp_path_factory.mktemp("guided") / "smoke"
    shutil.copytree(smoke_run[0], copy)
    return copy


@pytest.fixture(scope="module")
def guided(folder):
    return guided_study(open_study("smoke", folder))


def command(*words):
    """rdd's exit status, 0 where it ends by itself."""
    try:
        main(list(words))
    except SystemExit as end:
        return end.code
    return 0


def of(tmp_path, name="smoke", **overrides):
    profile = load_profile(name, {key.replace("__", "."): value for key, value in overrides.items()})
    return GuidedStudy(conditional_profile(profile, 10), tmp_path / "none")


# artefacts


def test_the_study_scores_teacher_stage_one_and_stage_two_against_w(smoke_run, guided):
    table = pd.read_csv(smoke_run[0] / "guided.csv")
    assert list(table.columns) == GUIDED_COLUMNS and table.notna().all().all()
    arms = set(table[["method", "steps", "sampler"]].itertuples(index=False, name=None))
    deterministic = {
        ("teacher", 16),
        ("stage_one", 16),
        *(("pd", n) for n in (8, 4, 2, 1)),
        *(("rdd", n) for n in (4, 2, 1)),
    }
    stochastic = {(method, n) for method, n in deterministic if method in ("pd", "rdd") and n > 1}
    assert arms == {(*one, "ddim") for one in deterministic} | {(*one, "stochastic") for one in stochastic}
    assert len(table) == len(guided.arms()) == len(arms) * len(guided.profile.guidance.at)
    receipts = json.loads((smoke_run[0] / "guided_receipts.json").read_text())
    assert len(receipts) == len(table)
    teacher, student = (guided.receipt(method, n, 0, 2.0, "ddim") for method, n in (("teacher", 16), ("pd", 8)))
    assert (teacher["evaluations"], teacher["guidance"]) == (32, 2.0) and (
        student["evaluations"],
        student["guidance"],
    ) == (8, 2.0)
    assert "takes guidance 0 to 4" in student["model"] and "10 classes" in teacher["model"]


def test_who_takes_what(guided):
    assert guided.conditional().unconditional and not guided.conditional().guidance
    for denoiser in (guided.base(), guided.teacher(), guided.student("rdd", 1), guided.stochastic("pd", 8)):
        assert denoiser.guidance == (0.0, 4.0) and denoiser.evaluations == 1


def test_halvings_from_the_teachers_own_steps_have_no_pd_above(tmp_path):
    arms = of(tmp_path, guidance__steps="8").arms()
    assert {arm[1] for arm in arms if arm[0] == "pd"} == {4, 2, 1}
    assert {arm[1] for arm in arms if arm[0] == "teacher"} == {8}


def test_a_number_of_guidance_changes_what_depends_on_it_and_nothing_else(tmp_path):
    plain, other = of(tmp_path), of(tmp_path, guidance__weights="[0, 6]")
    assert plain.path_of("conditional") == other.path_of("conditional")
    for stage in (("base",), ("teacher", 8), ("student", "rdd", 1, 0), ("stochastic", "pd", 8, 0)):
        assert plain.path_of(*stage) != other.path_of(*stage)
    longer = of(tmp_path, guidance__stochastic="9")
    assert plain.path_of("student", "pd", 4, 0) == longer.path_of("student", "pd", 4, 0)
    assert plain.path_of("stochastic", "pd", 4, 0) != longer.path_of("stochastic", "pd", 4, 0)
    hotter = of(tmp_path, loss__alpha="7")  # another RDD, for the stochastic student too
    assert plain.path_of("stochastic", "rdd", 4, 0) != hotter.path_of("stochastic", "rdd", 4, 0)
    assert plain.path_of("stochastic", "pd", 4, 0) == hotter.path_of("stochastic", "pd", 4, 0)


def test_the_unguided_study_does_not_depend_on_guidance(tmp_path):
    stages = [("base",), ("teacher", 8), ("extractor",), ("student", "rdd", 1, 0)]
    plain, other = (
        Study(load_profile("smoke", overrides), tmp_path)
        for overrides in ({}, {"guidance.label_dropout": "0.5", "guidance.weights": "[0, 9]"})
    )
    assert [plain.path_of(*stage) for stage in stages] == [other.path_of(*stage) for stage in stages]


def test_a_base_model_that_is_the_studys_own_is_trained_once(tmp_path):
    same = {
        "unet.num_classes": "10",
        "unet.label_dropout": "0.1",
        "base.train.batch_size": "16",
        "guidance.base.batch_size": "16",
    }
    study = Study(load_profile("smoke", same), tmp_path)
    assert guided_study(study).path_of("conditional") == study.path_of("base")


def test_every_seed_trains_all_of_it_anew(folder):
    study = open_study("smoke", folder)
    first, second = (guided_study(study, seed) for seed in (0, 1))
    for stage in (("conditional",), ("base",), ("teacher", 8), ("extractor",)):
        assert first.path_of(*stage) != second.path_of(*stage)
    assert first.path_of("extractor") == study.path_of("extractor")  # the first has the study's own classifier
    assert {arm[2] for arm in second.arms()} == {1}


def test_another_process_makes_the_same_study_again(guided):
    kind, arguments = guided.__reduce__()
    again = kind(*arguments)
    assert again.arms() == guided.arms()
    assert again.score_path(*guided.arms()[3]) == guided.score_path(*guided.arms()[3])


@pytest.mark.parametrize(
    "stage, words",
    [
        (("stochastic", "pd", 1, 0), "one stochastic step is a deterministic one"),
        (("stochastic", "rdd", 8, 0), "no student has 8 steps"),
        (("student", "rdd", 8, 0), "no student has 8 steps"),
        (("teacher", 32), "no teacher has 32 steps: there are 16, 8"),
    ],
)
def test_stages_that_there_are_not(tmp_path, stage, words):
    with pytest.raises(UserError, match=words):
        of(tmp_path).path_of(*stage)


@pytest.mark.parametrize(
    "text, words",
    [
        ({"guidance.weights": "[4, 0]"}, "w_min < w_max"),
        ({"guidance.weights": "[-2, 4]"}, "-1 <= w_min"),
        ({"guidance.weights": "[0, .inf]"}, "w_min < w_max"),
        ({"guidance.at": "[1, 1]"}, "expected different ones"),
        ({"guidance.objectives": "[pd, pd]"}, "expected different ones"),
        ({"guidance.prediction": "w"}, "expected one of x, eps, v"),
        ({"guidance.prediction": "eps"}, "needs schedule discrete"),
        ({"guidance.weights": "[4]"}, "expected w_min and w_max"),
        ({"guidance.at": "[0, 5]"}, "between 0 and 4"),
        ({"guidance.label_dropout": "0"}, "label_dropout is 0"),
        ({"guidance.steps": "12"}, "guidance.steps 12 must be"),
        ({"guidance.budget": "0"}, "budget is 0"),
        ({"guidance.objectives": "[lpips]"}, "some of pd"),
        ({"unet.guidance": "[0, 4]", "unet.num_classes": "10"}, "follows from guidance.weights"),
        ({"base.prediction": "eps"}, "needs schedule discrete"),
        ({"base.weight": "snr"}, "one of truncated, x, eps, v"),
    ],
)
def test_profiles_that_cannot_be(text, words):
    with pytest.raises(UserError, match=words):
        load_profile("smoke", text)


def test_eps_prediction_on_the_discrete_schedule_trains_and_draws(tmp_path):
    study = open_study("smoke", tmp_path / "plain")
    changes = {
        "base.prediction": "eps",
        "base.schedule": "discrete",
        "base.weight": "eps",
        "base.train.iterations": "3",
    }
    study = Study(load_profile("smoke", changes), study.out)
    assert study.images("ddim", 4, study.noise(4)).isfinite().all()


def test_a_stopped_stage_one_and_a_stopped_stochastic_student_go_on_to_the_same_bits(guided, tmp_path, monkeypatch):
    again = GuidedStudy(guided.profile, tmp_path / "again", guided.seed)
    again.out.joinpath("checkpoints").mkdir(parents=True)
    for made in (("conditional",), ("teacher", 8)):
        shutil.copy(guided.path_of(*made), again.path_of(*made))
    for name, stage in (("weighted_error", ("base",)), ("pd_loss", ("stochastic", "pd", 8, 0))):
        module, calls = recipes if name == "weighted_error" else objectives, []
        original = getattr(module, name)

        def stopped(*arguments, original=original, calls=calls):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(module, name, stopped)
            again.make(*stage)
        assert not again.path_of(*stage).exists() and len(calls) == 3
        again.make(*stage)
        made, expected = (load_checkpoint(study.path_of(*stage))[0] for study in (again, guided))
        assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in made)


def test_one_network_scores_all_seeds(tmp_path):
    """Also where that is the study's own extractor, of which every seed has another."""
    study = Study(load_profile("smoke", {"evaluation.network": "extractor"}), tmp_path)
    first, second = (guided_study(study, seed) for seed in (0, 1))
    assert first._network_key == second._network_key == study._network_key
    kind, arguments = second.__reduce__()
    assert kind(*arguments)._network_key == study._network_key


def test_relabelled_images_make_other_models(tmp_path, monkeypatch):
    study = Study(
        load_profile("smoke", {"data.name": "folder", "data.root": "nowhere", "unet.num_classes": "2"}), tmp_path
    )
    images, names = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), set()
    for labels in ([0, 0, 1, 1], [0, 1, 0, 1]):
        study.dataset = ImageDataset("folder", images, torch.tensor(labels), 2)
        names |= {guided_study(study).path_of("conditional"), study.path_of("extractor")}
    assert len(names) == 4


def test_relations_need_no_change(guided):
    """They see denoised images alone, and the objective is the plain study's."""
    assert objective_numbers(guided.profile, "rdd", 4) == objective_numbers(load_profile("smoke"), "rdd", 4)
    arguments = set(inspect.signature(objectives.RDD.forward).parameters)
    assert not arguments & {"y", "w"}
    z, t, y = guided.noise(8), torch.full((8,), 0.5).double(), torch.arange(8)
    x_T = two_step_target(guided.base(), z, t, 1 / 8, y, 2.0)
    x_S = guided.base()(z, t, y, 2.0).requires_grad_(True)
    objective = guided.objective("rdd", 4)
    shared = torch.Generator().manual_seed(0)
    objective(x_S, x_T, t, shared), objective.after_step(shared)
    total, terms = objective(x_S, x_T, t, shared)
    assert set(terms) == {"cfd", "is_p2p", "m_p2p"} and torch.autograd.grad(total, x_S)[0].abs().sum() > 0


def test_what_an_arm_needs_comes_ancestors_first(guided):
    assert guided.lineage("teacher", 16, 0) == [("conditional",)]
    assert guided.lineage("pd", 8, 0, 1.0, "stochastic") == [
        ("conditional",),
        ("base",),
        ("teacher", 8),
        ("stochastic", "pd", 8, 0),
    ]
    last = guided.lineage("rdd", 2, 0, 1.0, "stochastic")
    assert last[:3] == [("conditional",), ("base",), ("teacher", 8)] and last[-1] == ("stochastic", "rdd", 2, 0)
    assert all(guided.path_of(*stage).exists() for stage in last)


def test_the_fresh_noise_is_never_the_first_noise(guided):
    start = guided.noise(4, seed=1)
    seen = []
    still = as_denoiser(
        lambda z, t, y: seen.append(z.clone()) or torch.zeros_like(z), guided.conditional().schedule, 10
    )
    guided.sample(still, start, 4, 0.0, torch.zeros(4, dtype=torch.long), "stochastic")
    for z in seen[2::2]:
        correlation = torch.corrcoef(torch.stack([z.flatten(), start.flatten()]))[0, 1]
        assert abs(correlation) < 0.5


# drawing


def test_images_are_reproducible_and_move_with_w_and_class(guided):
    noise, y = guided.noise(6), torch.arange(6)
    with torch.no_grad():  # the smoke study's student has learned too little to heed either: make it
        student = guided.denoiser("pd", 4, None, 1.0, "stochastic")
        for embedding in (student.network.guidance_embedding[-1], student.network.label_embedding):
            embedding.weight.normal_(std=1.0)
    draw = lambda w, y: guided.sample(student, noise, 4, w, y, "stochastic")  # noqa: E731
    assert torch.equal(draw(1.0, y), draw(1.0, y))
    assert not torch.allclose(draw(1.0, y), draw(3.0, y)) and not torch.allclose(draw(1.0, y), draw(1.0, y.flip(0)))


def test_the_stochastic_sampler_and_the_deterministic_have_students_of_their_own(guided):
    deterministic, stochastic = (guided.denoiser("pd", 4, None, 1.0, sampler) for sampler in ("ddim", "stochastic"))
    pairs = zip(deterministic.parameters(), stochastic.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    one = [guided.model("pd", 1, 0, 1.0, sampler) for sampler in ("ddim", "stochastic")]
    assert one[0] == one[1] == ("student", "pd", 1, 0)


# figures


def toy():
    """FID w + 1 and IS 2 w for every arm, twice."""
    rows = [
        ("teacher", 16, "ddim"),
        ("stage_one", 16, "ddim"),
        ("pd", 8, "ddim"),
        ("pd", 1, "ddim"),
        ("rdd", 1, "ddim"),
        ("pd", 8, "stochastic"),
    ]
    return pd.DataFrame(
        [(m, n, w, s, seed, w + 1 + seed, 0.5, 2 * w) for m, n, s in rows for w in (0.0, 2.0) for seed in (0, 1)],
        columns=GUIDED_COLUMNS,
    )


def test_each_column_shows_its_steps_and_the_teacher():
    assert [one[:2] for one in series_of(toy(), 8)] == [
        ("teacher", "ddim"),
        ("stage_one", "ddim"),
        ("pd", "ddim"),
        ("pd", "stochastic"),
    ]
    figure = weights_figure(toy(), "FID (toy)")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["8 steps", "1 step", "", ""]
    drawn = figure.axes[0].lines[0]
    assert list(drawn.get_xdata()) == [0, 2] and list(drawn.get_ydata()) == [1.5, 3.5]  # means over the seeds
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["teacher, 16 steps of 2 evaluations", "stage one, 16 steps", "PD", "RDD", "PD, stochastic"]


def test_the_tradeoff_goes_along_w():
    figure = tradeoff_figure(toy(), "FID (toy)")
    line = figure.axes[1].lines[0]
    assert list(line.get_xdata()) == [0, 4] and list(line.get_ydata()) == [1.5, 3.5]
    assert [text.get_text() for text in figure.axes[0].texts] == ["w = 0", "w = 2"]


def test_the_table_has_means_over_seeds():
    table = scores_table(toy())
    assert (
        table.loc[0, "method"] == "teacher" and table.loc[0, "FID*, w = 2"] == 3.5 and table.loc[0, "IS*, w = 2"] == 4.0
    )


def test_findings_are_computed_from_the_rows():
    table = toy()
    table.loc[(table["method"] == "stage_one") & (table["guidance"] == 2), "fid"] += 0.5
    table.loc[table["sampler"] == "stochastic", "fid"] -= 0.25
    table.loc[table["method"] == "rdd", "fid"] *= 2
    said = findings(table)
    assert "FID\\*: +0.00 at w = 0, +0.50 at w = 2." in said and "a miss that happens to pay" not in said
    assert "PD, stochastic, 8 steps: 1.25 at w = 0" in said and "By IS\\* the best are 2." in said
    assert f"8 steps, stochastic {(1.25 / 1.5 + 3.25 / 4) / 2:.2f}" in said  # as a multiple of stage one's
    assert "lower one in 4 of 4 for PD" in said and "RDD has a lower one than PD in 0 of 4" in said
    table.loc[table["method"] == "stage_one", "fid"] -= 1
    assert "At w = 0 stage one is *better* than what it imitates" in findings(table)
    alone = findings(table[table["method"].isin(("teacher", "stage_one", "rdd"))])
    assert "Pairs" not in alone and "RDD's students" in alone


def test_published_rows_are_whole():
    table, metric = published()
    assert metric == "FID (digits metric network, 5000 samples)"
    assert list(table.columns) == GUIDED_COLUMNS and table.notna().all().all()
    assert set(table["method"]) <= set(GUIDED_METHODS) and set(table["sampler"]) == {"ddim", "stochastic"}
    counts = table.groupby(["method", "steps", "sampler", "guidance"])["seed"].agg(["nunique", "size"])
    assert (counts == 3).all().all()


def test_the_view_has_a_row_for_each_sampler_that_there_is(guided):
    view = guidance_view(guided, count=3)
    labels = lambda figure: [ax.texts[0].get_text() for ax in figure.axes]  # noqa: E731
    assert labels(view(w=2.0, steps=4, label=7)) == [
        "teacher, 2 x 16",
        "stage one, 16",
        "PD, 4",
        "PD stochastic, 4",
        "RDD, 4",
        "RDD stochastic, 4",
    ]
    assert labels(view(w=2.0, steps=8)) == ["teacher, 2 x 16", "stage one, 16", "PD, 8", "PD stochastic, 8"]
    assert "Class 7, guidance weight w = 2" in view(w=2.0, steps=1, label=7).get_suptitle()


# the command line


def test_guide_finds_what_is_there_and_says_where(folder, guided, capsys):
    made = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    assert command("guide", "--profile", "smoke", "--out", str(folder)) == 0
    printed = capsys.readouterr().out
    assert str(guided.path_of("base")) in printed and str(guided.path_of("conditional")) in printed
    assert {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()} == made


@pytest.mark.parametrize(
    "words, made",
    [
        (["--objective", "pd", "--from", "16", "--to", "8"], ("teacher", 8)),
        (["--objective", "rdd", "--to", "2"], ("student", "rdd", 2, 0)),
        (["--objective", "rdd", "--to", "2", "--stochastic"], ("stochastic", "rdd", 2, 0)),
    ],
)
def test_distill_goes_on_from_what_guide_made(folder, guided, capsys, words, made):
    assert command("distill", "--guided", *words, "--profile", "smoke", "--out", str(folder)) == 0
    assert str(guided.path_of(*made)) in capsys.readouterr().out


def test_cfd_halves_the_guided_model_too(folder, guided):
    assert not guided.path_of("student", "cfd", 4, 0).exists()
    assert (
        command("distill", "--guided", "--objective", "cfd", "--to", "4", "--profile", "smoke", "--out", str(folder))
        == 0
    )
    assert guided.student("cfd", 4).guidance == (0.0, 4.0)


def test_sample_draws_the_classes_asked_for_in_turn(folder, capsys):
    words = [
        "sample",
        "--method",
        "pd",
        "--steps",
        "2",
        "--count",
        "5",
        "--guidance",
        "2",
        "--classes",
        "3,7",
        "--profile",
        "smoke",
        "--out",
        str(folder),
    ]
    assert command(*words) == 0 and command(*words, "--sampler", "stochastic") == 0
    files = sorted((folder / "samples").glob("guided-pd-*-2steps-w2-class-3-7-5-noise0.npz"))
    assert len(files) == 2
    arrays = [np.load(file) for file in files]
    assert all(file["arr_1"].tolist() == [3, 7, 3, 7, 3] and file["arr_0"].shape == (5, 8, 8, 1) for file in arrays)
    assert not np.array_equal(arrays[0]["arr_0"], arrays[1]["arr_0"])
    assert "warning" not in capsys.readouterr().err


def test_a_checkpoint_alone_is_guided_too(folder, guided, tmp_path, capsys):
    for stage in ("conditional", "base"):
        words = ["--checkpoint", str(guided.path_of(stage)), "--steps", "2", "--count", "3", "--out", str(tmp_path)]
        assert command("sample", *words, "--guidance", "1", "--classes", "0") == 0
    assert command("sample", *words) == 2  # stage one needs a weight
    assert capsys.readouterr().err == "rdd: this model takes a guidance weight: give one of 0 to 4\n"


def test_beyond_the_trained_range_is_one_line_and_goes_on(folder, capsys):
    words = ["--method", "stage_one", "--steps", "2", "--count", "2", "--profile", "smoke", "--out", str(folder)]
    assert command("sample", *words, "--guidance", "9") == 0
    shown = capsys.readouterr()
    assert shown.err == "rdd: warning: guidance 9 is outside the range this model was trained for, 0 to 4\n"
    assert "2 images" in shown.out
    words[1] = "teacher"  # two evaluations know no range
    assert command("sample", *words, "--guidance", "9") == 0 and not capsys.readouterr().err


def test_evaluate_scores_at_a_weight(folder, capsys):
    words = [
        "evaluate",
        "--method",
        "pd",
        "--steps",
        "1",
        "--samples",
        "120",
        "--profile",
        "smoke",
        "--out",
        str(folder),
    ]
    assert command(*words, "--guidance", "2") == 0
    printed = capsys.readouterr().out
    assert "guidance" in printed and "-w2-ddim-" in printed


@pytest.mark.parametrize(
    "words, line",
    [
        (["sample", "--guidance", "1", "--classes", "3,12"], "unknown classes 12: choose from 0 to 9"),
        (
            ["sample", "--guidance", "1", "--classes", "three"],
            "--classes three: expected whole numbers, e.g. --classes 0,1,2",
        ),
        (
            ["sample", "--classes", "3"],
            "this model is unconditional and draws no chosen classes: leave the classes out",
        ),
        (
            ["sample", "--guidance", "1", "--method", "ddim"],
            "unknown --method ddim with guidance: known are teacher, stage_one, pd",
        ),
        (["sample", "--guidance", "1", "--method", "rdd", "--steps", "8"], "no student has 8 steps"),
        (["sample", "--guidance", "1", "--sampler", "heun"], "there is no sampler 'heun'"),
        (["sample", "--sampler", "stochastic"], "--sampler stochastic is for a --checkpoint or --guidance"),
        (["sample", "--guidance", "nan"], "guidance nan: expected a number"),
        (["study", "--set", "evaluation.baselines=[stochastic-16]"], "evaluation.baselines names 'stochastic'"),
        (["sample", "--method", "stochastic"], "unknown --method stochastic"),
        (["distill", "--stochastic"], "--stochastic is for guided models: add --guided"),
        (["distill", "--guided", "--stochastic"], "one stochastic step is a deterministic one"),
        (["distill", "--guided", "--from", "64"], "--from 64 --to 1: choose two of 16, 8, 4, 2, 1"),
        (["guide", "--set", "guidance.weights=[0]"], "weights is"),
        (
            ["guide", "--results", "--set", "guidance.samples=20"],
            "guidance.samples=20: 20 images cannot fill a covariance",
        ),
        (["study", "--set", "guidance.samples=20"], "guidance.samples=20: 20 images cannot fill a covariance"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, capsys, words, line):
    out = tmp_path / "new"
    assert command(*words, "--profile", "smoke", "--out", str(out)) == 2
    shown = capsys.readouterr().err
    assert line in shown and shown.count("\n") == 1 and not out.exists()


def test_guidance_on_an_unconditional_model_is_refused(folder, tmp_path, capsys):
    base = open_study("smoke", folder).path_of("base")
    assert command("sample", "--checkpoint", str(base), "--guidance", "1", "--out", str(tmp_path / "new")) == 2
    shown = capsys.readouterr().err
    assert "this model is unconditional and cannot be guided" in shown and shown.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_images_without_classes_have_nothing_to_guide_towards(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 80 * number, np.uint8)).save(photos / f"{number}.png")
    words = [
        "--set",
        "data.name=folder",
        "--set",
        f"data.root={photos}",
        "--profile",
        "smoke",
        "--out",
        str(tmp_path / "new"),
    ]
    assert command("guide", *words) == 2
    shown = capsys.readouterr().err
    assert (
        "sort them into a folder for each class" in shown and shown.count("\n") == 1 and not (tmp_path / "new").exists()
    )
