"""What the commands do, print and write: in the tiny study's folder, and started as people start them."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny import conditional_denoiser, gray_images, settings, without
from tiny_study import SHORT, TINY

from rddlib.cli.ablate import _all_trained
from rddlib.cli.images import _say_seed
from rddlib.cli.options import parse_overrides
from rddlib.data.dataset import HEADING
from rddlib.diffusion.model_file import describe
from rddlib.interop import load_model
from rddlib.study import costs
from rddlib.study.folder import continue_study, open_study, recorded_study
from rddlib.study.study import guided_study
from rddlib.utils.checkpoint import save_checkpoint


@pytest.fixture
def run(rdd, tiny):
    """run("sample --steps 2", ...) in the tiny study's folder -> stdout, of a command that must succeed."""

    def run(command, *more, warned=""):
        status, printed, errors = rdd(*command.split(), "--profile", "smoke", "--out", str(tiny.out), *more)
        assert status == 0 and warned in (None, errors), errors
        return printed

    return run


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


# started anew


def started(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.mark.ci
def test_a_process_of_its_own_does_the_same(tmp_path):
    done = started("-m", "rddlib.cli", "study", "--profile", "digts", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + done.stdout


@pytest.mark.ci
def test_a_study_without_notebooks_needs_no_extra(tmp_path):
    """Training runs where jupyter, papermill, diffusers, lpips and ipywidgets are not installed."""
    absent = ("papermill", "ipywidgets", "IPython", "diffusers", "lpips", "nbconvert", "jupyterlab")
    changes = {**TINY, **SHORT, "evaluation.baselines": "[]"}
    code = f"""
import rddlib.distillation.train, rddlib.cli, rddlib.report.notebooks, rddlib.report.pages, rddlib.report.figures
from pathlib import Path
rddlib.report.notebooks.run_study("smoke", {changes}, Path({str(tmp_path / "out")!r}), with_notebooks=False)
"""
    done = started("-c", without(absent) + code)
    assert done.returncode == 0, done.stderr
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"index.html", "results.csv", "summary.csv", "receipts.json", "grid.png", "scores.png"} <= left


COMMANDS = ("demo", "study", "plan", "train", "distill", "sample", "ablate", "diagnose", "bench", "import", "export")


@pytest.mark.parametrize("command", ["", "bench step", *COMMANDS])
def test_help_is_readable(done, command):
    printed = done(*command.split(), *(["--help"] if command else []))
    assert "Usage: rdd" in printed and max(map(len, printed.splitlines())) <= 100
    assert not re.search(r"[\w,]\.\.\.$", printed, flags=re.M)  # no command's line is cut off


# training


def test_each_stage_says_where_it_lies_and_nothing_is_trained_twice(run, tiny):
    before = files_of(tiny.out / "checkpoints")
    assert re.fullmatch(rf"{re.escape(str(tiny.stages.base.path))}: \d+ s in float32\n", run("train"))
    assert "test accuracy" in run("extractor")
    assert run("distill --to 2").count(".safetensors") == 2
    guided = run("guide")
    assert "/base-" in guided and "/guided-stage-one-" in guided
    assert "guided-pd-8-" in run("distill --guided --objective pd --from 16 --to 8")
    assert "guided-rdd-2-stochastic-" in run("distill --guided --objective rdd --to 2 --stochastic")
    assert files_of(tiny.out / "checkpoints") == before
    assert "guided-cfd-4-" in run("distill --guided --objective cfd --to 4")  # which the study did not train
    assert len(files_of(tiny.out / "checkpoints")) > len(before)


def test_a_folder_knows_its_profile_and_seed(done, refusal, tiny):
    continue_study("smoke", TINY, out := tiny.out.with_name("other"), seed=3)
    assert done("train", "--out", out) and recorded_study(out).stages.base.done
    for typed, words in (("--profile=digits", "a study of the profile smoke"), ("--seed=0", "differs in seed)")):
        assert words in refusal("train", "--out", out, typed)
    given = ("--checkpoint", tiny.stages.base.path, "--steps", "2")
    assert "80 samples" in done("evaluate", *given, "--out", out)  # as the folder was set; smoke has 200, digits 5000


def test_a_file_that_is_set_is_the_same_wherever_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"data.root": "images", "pretrained.teacher": "model", "evaluation.network": "metric.safetensors"}
    assert parse_overrides([f"{field}={file}" for field, file in files.items()]) == {
        field: str(tmp_path / file) for field, file in files.items()
    }
    names = {"evaluation.network": "extractor", "pretrained.teacher": "google/ddpm-cifar10-32", "data.root": ""}
    assert parse_overrides([f"{field}={name}" for field, name in names.items()]) == names


def test_methods_are_chosen_by_a_setting(run, tiny):
    run("train --set methods=[cfd,pd]")
    study = open_study("smoke", tiny.out)
    assert study.profile.methods == ("cfd", "pd") and {arm.method for arm in study.arms()} == {
        "ddim",
        "pndm",
        "cfd",
        "pd",
    }


def test_a_study_ends_with_what_came_out_and_how_long_it_took(run, tiny):
    lowest, took, opened = run("study --no-notebooks").splitlines()
    assert lowest.startswith("Lowest FID with 1 seed: at 4 steps ") and took.startswith("This run took ")
    assert opened == f"Open {tiny.out / 'index.html'} in a browser."


# drawing


def test_of_several_seeds_it_says_whose_student_draws(tiny, capsys):
    for seeds, method, said in (
        ((0,), "pd", ""),
        ((3, 0, 1), "ddim", ""),
        ((3, 0, 1), "pd", "seed 3 is taken; for seed 0, 1"),
    ):
        _say_seed(tiny.varied(replace(tiny.profile, seeds=seeds), "scores"), method)
        told = capsys.readouterr().err
        assert said in told and bool(said) == bool(told)


def test_sample_draws_the_classes_asked_for_in_turn(run, tiny):
    command = "sample --method pd --steps 2 --count 5 --guidance 2 --classes 3,7"
    run(command), run(f"{command} --sampler stochastic --png")
    files = sorted((tiny.out / "samples").glob("guided-pd-*-2steps-w2-class-3-7-5-noise0.npz"))
    arrays = [np.load(file) for file in files]
    assert len(arrays) == 2 and not np.array_equal(arrays[0]["arr_0"], arrays[1]["arr_0"])
    assert all(file["arr_1"].tolist() == [3, 7, 3, 7, 3] and file["arr_0"].shape == (5, 8, 8, 1) for file in arrays)
    assert len(list((tiny.out / "samples").glob("*stochastic*/*.png"))) == 5
    picture = Image.open(files[0].with_suffix(".png"))
    assert picture.size == (2 * 72 + 8, 3 * 72 + 8 + HEADING)  # two columns with their names, digits of 64 pixels
    assert np.asarray(picture)[:HEADING].min() < 100
    assert guided_study(tiny).stages.conditional.recorded()["class_names"] == list("0123456789")


def test_a_new_folder_is_said_before_anything_is_trained_there(rdd, tmp_path):
    out, small = tmp_path / "mistyped", [f"--set={key}={text}" for key, text in TINY.items()]
    for command, said in (
        ("sample --method pd --steps 8 --count 1", "with 2 models trained first (base model, PD 16 to 8 steps)"),
        ("evaluate --method pd --steps 8", ""),  # now it is there
    ):
        status, _, errors = rdd(*command.split(), "--profile", "smoke", "--out", str(out), *small)
        assert status == 0 and errors == (
            f"{out} is new: a study of the profile smoke begins there, {said}\n" if said else ""
        )


def test_a_given_teacher_with_classes_is_guided_and_halved(done, tmp_path):
    """A conditional U-Net of pixels made elsewhere: its guidance is distilled, and its students take class and weight."""
    teacher, out = conditional_denoiser(), tmp_path / "mine"
    save_checkpoint(tmp_path / "theirs.safetensors", teacher.state_dict(), {"model": describe(teacher)})
    brought = ("base.train.iterations", "guidance.base.iterations")  # the teacher is not trained
    small = [f"--set={key}={text}" for key, text in TINY.items() if key not in brought]
    for words in (
        ["guide", "--teacher", str(tmp_path / "theirs.safetensors"), *small],
        ["distill", "--guided", "--objective", "rdd", "--to", "2"],
        ["sample", "--guidance", "2", "--classes", "3,7", "--method", "rdd", "--steps", "2", "--count", "3"],
    ):
        done(*words, "--profile", "smoke", "--out", out)
    names = ("base", "guided-stage-one", "guided-pd-8", "guided-rdd-4", "guided-rdd-2")
    found = {name: load_model(next((out / "checkpoints").glob(f"{name}-*.safetensors")))[0] for name in names}
    z, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    assert torch.equal(found["base"](z, 0.5, y), teacher(z, 0.5, y))

    def gap(x):
        return float((x - teacher(z, 0.5, y)).abs().mean())

    assert gap(teacher(z, 0.5, y, 4.0)) > 0.3
    for name in names[1:]:
        assert found[name].guidance == (0.0, 4.0) and found[name].num_classes == 10
        assert gap(found[name](z, 0.5, y, 0.0)) < 0.1  # each began as the teacher
    (log,) = (out / "checkpoints").glob("guided-stage-one-*.metrics.jsonl")
    losses = [json.loads(line)["mse"] for line in log.read_text().splitlines()]
    assert losses[0] > 0.1 > losses[-1]  # what it learns is the guided x, which the teacher's is not
    (images,) = (out / "samples").glob("guided-rdd-ddim-*-2steps-w2-class-3-7-3-*.npz")
    assert np.load(images)["arr_1"].tolist() == [3, 7, 3]


def test_a_checkpoint_alone_is_guided_too(done, refusal, guided, tmp_path):
    for stage in (guided.stages.conditional, guided.stages.base):
        words = ["--checkpoint", stage.path, "--steps", "2", "--count", "3", "--out", tmp_path / "new"]
        done("sample", *words, "--guidance", "1", "--classes", "0")
    assert refusal("sample", *words) == "rdd: this model takes a guidance weight: give one of 0 to 4\n"


def test_beyond_the_trained_range_is_one_line_and_goes_on(run):
    warning = "rdd: warning: guidance 9 is outside the range this model was trained for, 0 to 4\n"
    assert "2 images" in run("sample --method stage_one --steps 2 --count 2 --guidance 9", warned=warning)
    run("sample --method teacher --steps 2 --count 2 --guidance 9")  # two evaluations know no range


# scoring


def test_evaluate_measures_once_for_each_noise_and_protocol(run, done, tiny):
    """The second time it reads the receipts."""
    command = "evaluate --method ddim --steps 2 --samples 150 --protocol torch-fidelity,released"
    printed = run(f"{command} --noise 1,2")
    assert "FID (digits metric network, 150 samples), protocol released" in printed
    assert printed.count("receipt: ") == 4 and printed.count("spread") == 2
    first = files_of(tiny.out / "evaluations")
    records = [json.loads(path.read_text()) for path in first if path.suffix == ".json"]
    assert {record["receipt"]["noise_seed"] for record in records} == {1, 2} and len(records) == 4
    (model,) = {record["receipt"]["checkpoint_sha256"] for record in records}
    assert model == tiny.stages.base.recorded()["sha256"]
    run(f"{command} --noise 1,2"), run(f"{command} --noise 3")
    assert first.items() <= files_of(tiny.out / "evaluations").items()
    assert (
        "3 noises" in done("report", tiny.out, "--protocol", "released")
        and (tiny.out / "report/comparison.csv").exists()
    )


def test_given_images_have_the_score_of_the_model_that_drew_them(run, done, tiny, tmp_path):
    run("evaluate --method ddim --steps 2 --samples 150 --noise 1")
    run("sample --method ddim --steps 2 --count 150 --noise 1 --png")
    (drawn,), (own,) = (tiny.out / "samples").glob("*.npz"), (tiny.out / "evaluations").glob("*.json")
    for images in (drawn, drawn.with_suffix("")):
        done("evaluate", "--profile", "smoke", "--images", images, "--out", tmp_path / "given")
    scores = [json.loads(path.read_text())["row"]["fid"] for path in (tmp_path / "given/evaluations").glob("*.json")]
    assert scores == [pytest.approx(json.loads(own.read_text())["row"]["fid"], rel=1e-9)] * len(scores) and scores


def test_evaluate_takes_a_weight_a_checkpoint_and_another_sampler(run, tiny):
    printed = run("evaluate --method pd --steps 1 --samples 120 --guidance 2")
    assert "guidance" in printed and "-w2-ddim-" in printed
    printed = run("evaluate --samples 100 --sampler dpm-solver --steps 5", "--checkpoint", str(tiny.stages.base.path))
    assert "base-" in printed
    assert "extractor" in run("evaluate --steps 1 --samples 100 --metric-network extractor")


def test_a_checkpoint_is_drawn_in_the_steps_it_was_distilled_for(done, tiny, tmp_path):
    given = ("--checkpoint", tiny.stages.student("pd", 4, 0).path, "--out", tmp_path / "new")
    done("evaluate", *given, "--samples", "80"), done("sample", *given, "--count", "1")
    (record,) = (tmp_path / "new/evaluations").glob("pd-4-*-4-noise*.json")
    assert json.loads(record.read_text())["row"]["steps"] == 4
    assert len(list((tmp_path / "new/samples").glob("pd-4-*-4steps-*.npz"))) == 1


def test_in_a_folder_of_photographs_a_checkpoint_is_scored_on_those(done, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    photos = {"data.name": "folder", "data.root": str(gray_images(tmp_path / "photos", 70, 3)), "methods": "[pd]"}
    continue_study("smoke", TINY | photos, out := tmp_path / "new")
    done("evaluate", "--checkpoint", tiny.stages.base.path, "--out", out)
    (record,) = (out / "evaluations").glob("*.json")
    assert json.loads(record.read_text())["receipt"]["reference"] == "images of folder photos, 70 images"


# sweeps


def test_a_dry_run_says_the_plan_and_leaves_nothing(done, tmp_path, monkeypatch):
    kinds = ("base", "halving", "extractor", "pd", "cfd", "rcfd", "rdd", "sampling")
    monkeypatch.setattr(costs, "measured_costs", lambda *_: dict.fromkeys(kinds, 1.0))
    out = tmp_path / "study"
    printed = done("ablate", "losses", "budget", "--profile", "smoke", "--dry-run", "--out", out)
    heads, losses, budget, total, *_ = printed.splitlines()
    assert " ".join(heads.split()) == "ablation paper settings runs done to do iterations time"
    assert " ".join(losses.split()).startswith("losses Table 3, Feng et al. 2024 6 18 0 ")
    assert " ".join(budget.split()).startswith("budget ours 5 9 0 0 ")  # all cost alike: equal time is equal iterations
    assert total.startswith("total") and not out.exists()


def test_ablate_leaves_a_table_and_a_figure_and_says_what_failed(run, rdd, tiny, monkeypatch):
    printed = run("ablate custom --axis loss.alpha=1,2 --seeds 1", warned=None)
    (table,) = (tiny.out / "ablations").glob("custom-*.csv")
    assert f"Tables and figures: {table.name} and .png" in printed and table.with_suffix(".png").exists()
    assert list(pd.read_csv(table)["x"]) == [1.0, 2.0]
    monkeypatch.setattr("rddlib.study.study.evaluate", lambda *_, **__: 1 / 0)
    again = "ablate custom --axis loss.alpha=1,3 --seeds 1 --profile smoke --out"
    status, _, errors = rdd(*again.split(), str(tiny.out))
    assert status == 1 and "alpha = 3, seed 0 failed: ZeroDivisionError" in errors
    assert errors.endswith("rdd: 1 failed, the others are done; the same command tries them again\n")


def test_an_ablation_trains_its_students_whatever_the_folder_takes(tiny):
    for shipped, wanted in (("all", "start"), ("earlier", "start"), ("start", "start"), ("none", "none")):
        study = tiny.varied(replace(tiny.profile, run=replace(tiny.profile.run, shipped=shipped)), "scores")
        trained = _all_trained(study)
        assert trained.profile.run.shipped == wanted and trained.scores == study.scores == tiny.out / "scores"


def test_the_list_of_ablations_asks_for_nothing(done):
    assert done("ablate", "--list").startswith("losses: ")


def test_a_refused_study_leaves_the_folder_s_record(refusal, tiny):
    record = tiny.out / "study.json"
    before = record.read_text()
    path = tiny.stages.base.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shipped": "a file"}))
    assert "models that came with rddlib" in refusal("study", "--no-notebooks", "--from-scratch", "--out", tiny.out)
    with FileLock(tiny.out / ".running"):
        asked = ("study", "--no-notebooks", "--out", tiny.out, "--set", "methods=[pd]", "--update")
        assert "another process is running the study" in refusal(*asked)
    assert record.read_text() == before


def test_pd_alone_needs_neither_labels_nor_an_extractor(done, tmp_path):
    few = TINY | SHORT | {"methods": "[pd]", "guidance.objectives": "[pd]", "evaluation.baselines": "[]"}
    own = {"data.name": "folder", "data.root": gray_images(tmp_path / "mine", 80, 3), "evaluation.network": "digits"}
    done("study", "--profile", "smoke", "--no-notebooks", "--out", tmp_path / "run", *settings(few | own))
    assert not list((tmp_path / "run/checkpoints").glob("extractor-*"))
    assert list((tmp_path / "run").glob("scores/pd-1-0-*.json"))


def test_all_that_was_measured_is_in_the_tables_and_the_page(done, tmp_path):
    few = TINY | SHORT | {"methods": "[pd]", "unet.num_classes": "10", "evaluation.metrics": "[fid, is, agree, pr]"}
    few |= {"evaluation.baselines": "[]"}
    done("study", "--profile", "smoke", "--no-notebooks", "--out", tmp_path / "run", *settings(few))
    page = (tmp_path / "run/index.html").read_text()
    assert "<th>agreement*</th>" in page and "Higher is better for IS, precision, recall, agreement." in page
    for name, column in (("results", "recall"), ("summary", "agree_mean")):
        assert column in (tmp_path / f"run/{name}.csv").read_text().splitlines()[0].split(",")
    assert "agreement" in done("report", tmp_path / "run")
