"""Models in and out by the command line and in studies: given teachers and extractors, imports, exports and their cards."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import BOUND, ddpm, drawn, edit, gap, loaded, noise_of, released_file, unet2d
from tiny import Bomb, gray_images, needs_diffusers, quiet, refused, same, settings

from rddlib.diffusion.model_file import describe, load_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import BetaSchedule, DiscreteCosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.interop import load_released_unet
from rddlib.study.ablations import ABLATIONS
from rddlib.study.costs import make_plan
from rddlib.study.folder import continue_study, open_study, study_profile
from rddlib.study.study import Arm, Study, guided_study
from rddlib.study.sweep import Sweep
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

TOP = Path(__file__).resolve().parents[2]
pytestmark = [needs_diffusers, *quiet]
FEW = {
    "distill.iterations": "[1,1,1]",
    "progressive.train.iterations": "1",
    "extractor.train.iterations": "1",
    "pretrained.convert.iterations": "2",
}
QUICK = settings(FEW)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder of a study whose RDD student of one step is trained, for an iteration each, and scored."""
    out = tmp_path_factory.mktemp("studied") / "run"
    continue_study("smoke", FEW | {"base.train.iterations": "2"}, out).measured(Arm("rdd", 1, 0))
    return out


def only(folder, pattern):
    (found,) = sorted(Path(folder).glob(pattern))
    return found


def distil(rdd, out, *arguments):
    """(status, what it says on stderr but that one iteration taught its extractor nothing)."""
    status, said, error = rdd("distill", "--profile", "smoke", "--out", str(out), *arguments)
    return status, "".join(line for line in error.splitlines(True) if not line.startswith("the extractor is right in"))


def test_a_published_file_becomes_a_checkpoint_that_draws_the_same(done, tmp_path):
    file, to = released_file(tmp_path / "ckpt.pt"), tmp_path / "theirs.safetensors"
    said = done("import", "released", file, "--to", to)
    assert "for 8 steps" in said and "x prediction" in said
    found, theirs = load_denoiser(to)[0], load_released_unet(file)
    assert same(found, theirs) and found.steps == 8 and found.schedule == theirs.schedule
    for source in (to, file):
        done("sample", "--checkpoint", source, "--steps", "8", "--count", "4", "--out", tmp_path / "o")
    images = [np.load(only(tmp_path / "o/samples", f"{name}*.npz"))["arr_0"] for name in ("theirs", "ckpt")]
    assert (images[0] == images[1]).all()


def test_a_published_teacher_is_distilled_and_scored_and_its_folder_knows_it(rdd, done, tmp_path):
    file, out = released_file(tmp_path / "ckpt.pt"), tmp_path / "run"
    assert distil(rdd, out, "--teacher", str(file), "--to", "4", *QUICK) == (0, "")
    status, error = distil(rdd, out, "--teacher", str(released_file(tmp_path / "other.pt", seed=1)), "--to", "4")
    assert status == 2 and "differs in pretrained.teacher" in error
    assert distil(rdd, out) == (0, "")
    base, info = load_denoiser(only(out / "checkpoints", "base-*.safetensors"))
    assert info["source"] == {"name": "ckpt.pt", "made_by": "released with RCFD and RDD"} and base.steps == 8
    assert same(base, load_released_unet(file))
    assert not list((out / "checkpoints").glob("pd-*")), "an 8-step teacher needs no halving before its students"
    student, _ = load_denoiser(only(out / "checkpoints", "rdd-1-*.safetensors"))
    assert student.steps == 1 and student.network.config.time_grid == 1024
    assert student.schedule == DiscreteCosineSchedule(1024)
    assert "FID" in done("evaluate", "--profile", "smoke", "--out", out, "--steps", "1")
    study = open_study("smoke", out)
    assert study.profile.unet == student.network.config and study.objective("pd", 4).schedule == base.schedule


def test_the_cifar10_profile_starts_from_the_authors_eight_step_model(tmp_path):
    file = released_file(tmp_path / "ckpt.pt", size=32, image_channels=3)
    profile = study_profile("cifar10", {"pretrained.teacher": str(file)})
    assert profile.base.steps == profile.progressive.teacher_steps == 8 and profile.unet.time_grid == 1024
    assert profile.distill.iterations == (20_000, 20_000, 40_000) and profile.student_steps == (4, 2, 1)


def test_a_teacher_and_a_classifier_of_ours_can_be_given(rdd, tmp_path, studied):
    teacher, classifier = (only(studied / "checkpoints", f"{name}-*.safetensors") for name in ("pd-8", "extractor"))
    models = ("--teacher", str(teacher), "--extractor", str(classifier))
    out, few = tmp_path / "run", ("--set", "distill.iterations=[1,1,1]")
    assert distil(rdd, out, *models, "--to", "4", *few) == (0, "")
    tensors, info = load_checkpoint(only(out / "checkpoints", "extractor-*.safetensors"))
    assert same(tensors, load_file(classifier)) and info["facts"]["pretrained"]
    assert "test_accuracy" not in info, "of somebody's classes on these data nothing is claimed"


def test_a_pipeline_is_distilled_to_one_step_and_given_back(rdd, done, tmp_path):
    """diffusers -> rdd distill -> rdd export -> diffusers."""
    out, folder = tmp_path / "run", tmp_path / "back"
    assert distil(rdd, out, "--teacher", str(ddpm(tmp_path / "hf")), *QUICK) == (0, "")
    student = only(out / "checkpoints", "rdd-1-*.safetensors")
    denoiser, _ = load_denoiser(student)
    assert denoiser.prediction == "v" and isinstance(denoiser.schedule, BetaSchedule) and denoiser.steps == 1
    done("evaluate", "--profile", "smoke", "--out", out, "--steps", "1")
    assert "README.md" in done("export", "diffusers", student, "--to", folder)
    assert gap(drawn(loaded(folder), 1), ddim_sample(denoiser, noise_of(3), 1)) < BOUND
    card, record = (folder / "README.md").read_text(), json.loads(only(out / "evaluations", "*.json").read_text())
    for words in (
        "| data | digits |",
        "hf (diffusers), which has learnt to predict v",
        "RDD student of 2 steps",
        "| sampling | DDIM, 1 step, x held in [-1, 1] |",
        f"{record['row']['fid']:.5g}",
        record["receipt"]["metric"],
    ):
        assert words in card, words


@pytest.mark.ci  # trains a DDPM of digits with diffusers, teaches it v, and distils it: minutes
def test_a_ddpm_of_digits_in_one_step_beats_its_own_one_step_by_far(done, tmp_path):
    """The README's example with fewer iterations, without PD: a real epsilon model, distilled, saved, drawn by diffusers."""
    hf, out, back = tmp_path / "digits-ddpm", tmp_path / "run", tmp_path / "digits-rdd-1"
    runpy.run_path(str(TOP / "examples/digits_ddpm.py"))["train"](hf, 600)
    fewer = {"base.steps": "8", "pretrained.convert.iterations": "400", "extractor.train.iterations": "100"}
    fewer |= {"distill.iterations": "[40,40,60]", "distill.train.learning_rate": "1e-3"}
    done("distill", "--profile", "digits", "--teacher", hf, "--out", out, *settings(fewer))
    asked = ("--steps", "1", "--samples", "1000", "--out", out)
    done("evaluate", "--checkpoint", hf, *asked)
    done("evaluate", "--method", "rdd", *asked)
    rows = [json.loads(path.read_text())["row"] for path in (out / "evaluations").glob("*.json")]
    scores = {row["method"]: row["fid"] for row in rows}
    assert scores["rdd"] < 0.5 * scores["digits-ddpm"], scores
    student = only(out / "checkpoints", "rdd-1-*.safetensors")
    done("export", "diffusers", student, "--to", back)
    assert gap(drawn(loaded(back), 1), ddim_sample(load_denoiser(student)[0], noise_of(3), 1)) < BOUND


def test_exports_of_a_study_s_student_have_its_lineage_and_scores(done, tmp_path, studied):
    student, to = only(studied / "checkpoints", "rdd-1-*.safetensors"), tmp_path / "student.ts"
    done("export", "torchscript", student, "--to", to)
    done("export", "diffusers", student, "--to", tmp_path / "p")
    assert gap(torch.jit.load(to)(noise_of(3)), ddim_sample(load_denoiser(student)[0], noise_of(3), 1)) < BOUND
    card, row = (
        to.with_suffix(".md").read_text(),
        json.loads(only(studied / "scores", "rdd-1-0-*.json").read_text())["row"],
    )
    assert "base model" in card and "PD teacher of 8 steps" in card and 'torch.jit.load("student.ts")' in card
    for text in (card, (tmp_path / "p" / "README.md").read_text()):
        assert f"{row['fid']:.5g}" in text and f"{row['pfd']:.5g}" in text


def test_keys_follow_the_given_model_and_the_data_not_where_they_lie(tmp_path):
    file, other = released_file(tmp_path / "a.pt"), released_file(tmp_path / "c.pt", seed=5)
    moved = tmp_path / "b.pt"
    moved.write_bytes(file.read_bytes())
    keys = []
    for path in (file, moved, other):
        study = Study(study_profile("smoke", {"pretrained.teacher": str(path)}), tmp_path / "o")
        keys.append((study.stages.base.key, study.stages.student("rdd", 1, 0).key))
    assert keys[0] == keys[1] and not set(keys[1]) & set(keys[2])
    assert study.stages.base.facts()["data"]["name"] == "digits"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["import", "released", "evil.pt"], "could run code; nothing of it was run"),
        (["import", "released", "good.pt", "--to", "there.safetensors"], "exists: choose another --to"),
        (["import", "released", "good.pt", "--to", "x.pt"], "ends in .safetensors"),
        (["import", "diffusers", "latent"], "has a vae.*can be taken"),
        (["distill", "--profile", "smoke", "--teacher", "evil.pt", "--out", "out"], "nothing of it was run"),
        (["study", "--profile", "smoke", "--set", "pretrained.teacher=good.pt", "--out", "out"], "pretrained.teacher"),
        (["distill", "--profile", "smoke", "--teacher", "good.pt", "--guided", "--out", "out"], "pretrained.teacher"),
        (["export", "diffusers", "good.pt", "--to", "latent"], "latent exists"),
        (["export", "torchscript", "stochastic.safetensors", "--to", "s.ts"], "trained for the stochastic sampler"),
        (["export", "torchscript", "good.pt", "--to", "s.md"], "the model card's name"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(refusal, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    model = load_released_unet(released_file(tmp_path / "good.pt"))
    facts = {"model": describe(model), "facts": {"stochastic": True}}
    save_checkpoint(tmp_path / "stochastic.safetensors", model.state_dict(), facts)
    torch.save({"net_model": Bomb(tmp_path / "ran")}, tmp_path / "evil.pt")
    edit(ddpm(tmp_path / "latent") / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(words, refusal(*arguments))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written, nothing is run"


def given(teacher, folder, **more):
    """The checked study of a given teacher."""
    changes = {
        "pretrained.teacher": str(teacher),
        **{name.replace("__", "."): str(value) for name, value in more.items()},
    }
    study = Study(study_profile("smoke", changes), folder / "out")
    study.check()
    return study


def test_teachers_that_do_not_fit_are_refused(tmp_path):
    def file(**options):
        return released_file(tmp_path / "ckpt.pt", **options)

    said = refused(given, file(size=16), tmp_path)
    assert "has images (1, 8, 8), wanted are (1, 16, 16) by pretrained.teacher" in said
    plain = {"data__name": "folder", "data__root": gray_images(tmp_path / "plain", 8, 20)}  # without classes
    assert "conditional on 10 classes and" in refused(given, file(num_classes=10), tmp_path, **plain)
    colour = tmp_path / "colour.safetensors"
    facts = {"kind": "extractor", "facts": {"extractor": {"name": "small_resnet"}}}
    save_checkpoint(colour, build_extractor("small_resnet", 3, 10).state_dict(), facts)
    said = refused(given, file(), tmp_path, pretrained__extractor=colour)
    assert "images of 3 channels, these have 1" in said


def test_what_cannot_have_a_given_teacher_says_so(tmp_path):
    file = released_file(tmp_path / "ckpt.pt")
    study = given(file, tmp_path)
    assert "nothing to guide" in refused(guided_study, study)
    assert "ablations vary what a given model fixes" in refused(Sweep, study, [ABLATIONS["tau_is"]], [0])


@pytest.mark.parametrize("extractor", [{}, {"extractor.name": "teacher"}])
def test_a_given_teacher_is_planned_with_its_own_network(tmp_path, extractor):
    """An epsilon teacher learns v first; what is taken as it is has no row; guidance has a base model of its own."""
    changes = {"pretrained.teacher": str(ddpm(tmp_path / "ddpm")), "methods": "[pd, rdd]", **extractor}
    plan = make_plan("smoke", changes, out=tmp_path, seconds=0.02)
    names = [row.name for row in plan.rows]
    trained = ["extractor small_resnet"] * (not extractor)
    assert names == ["predicting v", "PD, 1 halving", "PD, 3 students", *trained, "RDD, 3 students", "samples to score"]
    weights = sum(p.numel() for p in unet2d().parameters()) * 4
    assert all(weights <= row.cost.model < 1.2 * weights for row in plan.rows if "students" in row.name)
    assert [row.iterations for row in plan.rows][0] == study_profile("smoke", changes).pretrained.convert.iterations
