"""Models in and out through the command line: a given teacher and extractor, imports, exports, cards and what is refused."""

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.model_file import describe, load_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.interop import load_model, load_released_unet
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study, continue_study, open_study, study_profile
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

TOP = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
QUICK = (
    "--set",
    "distill.iterations=[1,1,1]",
    "--set",
    "progressive.train.iterations=1",
    "--set",
    "extractor.train.iterations=1",
    "--set",
    "pretrained.convert.iterations=2",
)


def pipeline(folder, prediction="epsilon", seed=0, **changes):
    """The folder of an untrained DDPMPipeline for digits."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(**{**SMALL, **changes})
    DDPMPipeline(unet, DDPMScheduler(prediction_type=prediction)).save_pretrained(folder)
    return folder


def released_file(path, steps=8, size=8, image_channels=1, num_classes=0, seed=0):
    """A U-Net's file as published, of random weights, made from ours by the inverse of the names."""
    from rddlib.interop.released import UNET_NAMES, _released_names

    torch.manual_seed(seed)
    config = UNetConfig(size, image_channels, 32, (1, 2), 1, (size // 2,), num_classes=num_classes, time_grid=1024)
    tensors = {}
    for name, tensor in UNet(config).state_dict().items():
        names = _released_names(name, UNET_NAMES)
        value = tensor if name == "time_table" else tensor + 0.05 * torch.randn_like(tensor)
        tensors.update(zip(names, value.chunk(len(names)), strict=True))
    torch.save(
        {
            "net_model": tensors,
            "x_T": torch.randn(2, image_channels, size, size),
            "T": steps,
            "time_scale": 1024 // steps,
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder of a study whose RDD student of one step is trained, for an iteration each, and scored."""
    out = tmp_path_factory.mktemp("studied") / "run"
    changes = dict(text.split("=", 1) for text in QUICK[1::2]) | {"base.train.iterations": "2"}
    study = continue_study("smoke", changes, out)
    study.score("rdd", 1, 0)
    return out


def only(folder, pattern):
    (found,) = sorted(Path(folder).glob(pattern))
    return found


def test_a_published_file_becomes_a_checkpoint_that_draws_the_same(rdd, tmp_path):
    file, to = released_file(tmp_path / "ckpt.pt"), tmp_path / "theirs.safetensors"
    status, said, _ = rdd("import", "released", str(file), "--to", str(to))
    assert status == 0 and "for 8 steps" in said and "x prediction" in said
    ours, theirs = load_denoiser(to)[0], load_released_unet(file)
    noise = torch.randn(4, 1, 8, 8)
    assert torch.equal(ddim_sample(ours, noise, 8), ddim_sample(theirs, noise, 8)) and ours.steps == 8
    assert ours.schedule == theirs.schedule == DiscreteCosineSchedule(1024)
    for source in (to, file):
        status, said, _ = rdd(
            "sample", "--checkpoint", str(source), "--steps", "8", "--count", "4", "--out", str(tmp_path / "o")
        )
        assert status == 0
    with (
        np.load(only(tmp_path / "o/samples", "theirs*.npz")) as a,
        np.load(only(tmp_path / "o/samples", "ckpt*.npz")) as b,
    ):
        assert (a["arr_0"] == b["arr_0"]).all()


def test_a_published_teacher_is_distilled_and_scored(rdd, tmp_path):
    file, out = released_file(tmp_path / "ckpt.pt"), tmp_path / "run"
    status, said, error = rdd("distill", "--profile", "smoke", "--teacher", str(file), "--out", str(out), *QUICK)
    assert status == 0, error
    base, info = load_denoiser(only(out / "checkpoints", "base-*.safetensors"))
    assert info["source"] == {"name": "ckpt.pt", "made_by": "released with RCFD and RDD"} and base.steps == 8
    assert not list((out / "checkpoints").glob("pd-*")), "an 8-step teacher needs no halving before its students"
    student, info = load_denoiser(only(out / "checkpoints", "rdd-1-*.safetensors"))
    assert (
        student.steps == 1
        and student.network.config.time_grid == 1024
        and student.schedule == DiscreteCosineSchedule(1024)
    )
    teacher = {name: tensor for name, tensor in load_released_unet(file).state_dict().items()}
    assert all(torch.equal(teacher[name], tensor) for name, tensor in base.state_dict().items())
    status, said, error = rdd("evaluate", "--profile", "smoke", "--out", str(out), "--steps", "1")
    assert status == 0 and "FID" in said, error
    study = open_study("smoke", out)
    assert study.profile.unet == student.network.config and study.objective("pd", 4).schedule == base.schedule


def test_the_cifar10_profile_starts_from_the_authors_eight_step_model(tmp_path):
    file = released_file(tmp_path / "ckpt.pt", size=32, image_channels=3)
    profile = study_profile("cifar10", {"pretrained.teacher": str(file)})
    assert profile.base.steps == profile.progressive.teacher_steps == 8 and profile.distill.iterations == (
        20_000,
        20_000,
        40_000,
    )
    assert profile.unet.time_grid == 1024 and profile.student_steps == (4, 2, 1)


def test_a_given_classifier_is_looked_through(rdd, tmp_path, studied):
    classifier = only(studied / "checkpoints", "extractor-*.safetensors")
    out = tmp_path / "run"
    status, said, error = rdd(
        "distill",
        "--profile",
        "smoke",
        "--teacher",
        str(released_file(tmp_path / "c.pt")),
        "--extractor",
        str(classifier),
        "--out",
        str(out),
        "--to",
        "4",
        "--set",
        "distill.iterations=[1,1,1]",
    )
    assert status == 0, error
    tensors, info = load_checkpoint(only(out / "checkpoints", "extractor-*.safetensors"))
    given = load_file(classifier)
    assert all(torch.equal(given[name], tensor) for name, tensor in tensors.items()) and info["facts"]["pretrained"]
    assert "test_accuracy" not in info, "of somebody's classes on these data nothing is claimed"


def test_a_pipeline_is_distilled_to_one_step_and_given_back(rdd, tmp_path):
    """diffusers -> rdd distill -> rdd export -> diffusers alone."""
    out, folder = tmp_path / "run", tmp_path / "back"
    status, _, error = rdd(
        "distill", "--profile", "smoke", "--teacher", str(pipeline(tmp_path / "hf")), "--out", str(out), *QUICK
    )
    assert status == 0, error
    student = only(out / "checkpoints", "rdd-1-*.safetensors")
    denoiser, _ = load_denoiser(student)
    assert denoiser.prediction == "v" and isinstance(denoiser.schedule, BetaSchedule) and denoiser.steps == 1
    assert rdd("evaluate", "--profile", "smoke", "--out", str(out), "--steps", "1")[0] == 0
    status, said, error = rdd("export", "diffusers", str(student), "--to", str(folder))
    assert status == 0 and "README.md" in said, error
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert np.abs(_drawn_by_diffusers_alone(folder, tmp_path) - _as_saved(ddim_sample(denoiser, noise, 1))).max() < 1e-4
    card = (folder / "README.md").read_text()
    record = json.loads(only(out / "evaluations", "*.json").read_text())
    for words in (
        "| data | digits |",
        "hf (diffusers), which has learnt to predict v",
        "RDD student of 2 steps",
        "## Licence",
        "| sampling | DDIM, 1 step, x held in [-1, 1] |",
        f"{record['row']['fid']:.5g}",
        record["receipt"]["metric"],
    ):
        assert words in card, words


def _as_saved(images):
    return (images / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def _drawn_by_diffusers_alone(folder, tmp_path, steps=1):
    """Four images [4, H, W, C] in [0, 1] from noise of seed 3, in a process that cannot import rddlib."""
    code = f"""
import sys; sys.modules["rddlib"] = None
import numpy, torch
from diffusers import DDIMPipeline
pipeline = DDIMPipeline.from_pretrained({str(folder)!r})
images = pipeline(batch_size=4, generator=torch.Generator().manual_seed(3), num_inference_steps={steps},
                  use_clipped_model_output=True, output_type="np").images
numpy.save({str(tmp_path / "images.npy")!r}, images)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    return np.load(tmp_path / "images.npy")


@pytest.mark.slow  # trains a DDPM of digits with diffusers, teaches it v, and distils it: minutes
def test_a_ddpm_of_digits_in_one_step_beats_its_own_one_step_by_far(rdd, tmp_path):
    """The README's example with a third of its iterations: a real epsilon model, distilled, saved, drawn by diffusers alone."""
    hf, out, back = tmp_path / "digits-ddpm", tmp_path / "run", tmp_path / "digits-rdd-1"
    subprocess.run(
        [sys.executable, str(TOP / "examples/digits_ddpm.py"), str(hf), "600"], check=True, capture_output=True
    )
    fewer = (
        "pretrained.convert.iterations=400",
        "progressive.train.iterations=30",
        "distill.iterations=[60,60,100]",
        "extractor.train.iterations=200",
    )
    fewer = [word for setting in fewer for word in ("--set", setting)]
    status, _, error = rdd("distill", "--profile", "digits", "--teacher", str(hf), "--out", str(out), *fewer)
    assert status == 0, error
    asked = ("--steps", "1", "--samples", "1000", "--out", str(out))
    assert rdd("evaluate", "--checkpoint", str(hf), *asked)[0] == rdd("evaluate", "--method", "rdd", *asked)[0] == 0
    scores = {
        record["row"]["method"]: record["row"]["fid"]
        for record in (json.loads(path.read_text()) for path in (out / "evaluations").glob("*.json"))
    }
    assert scores["rdd"] < 0.5 * scores["digits-ddpm"], scores
    student = only(out / "checkpoints", "rdd-1-*.safetensors")
    assert rdd("export", "diffusers", str(student), "--to", str(back))[0] == 0
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = _as_saved(ddim_sample(load_denoiser(student)[0], noise, 1))
    assert np.abs(_drawn_by_diffusers_alone(back, tmp_path) - ours).max() < 1e-4


def test_torchscript_lies_beside_its_card(rdd, tmp_path, studied):
    student, to = only(studied / "checkpoints", "rdd-1-*.safetensors"), tmp_path / "student.ts"
    status, said, error = rdd("export", "torchscript", str(student), "--to", str(to))
    assert status == 0, error
    noise = torch.randn(3, 1, 8, 8)
    assert (torch.jit.load(to)(noise) - ddim_sample(load_denoiser(student)[0], noise, 1)).abs().max() < 1e-4
    card = to.with_suffix(".md").read_text()
    assert "base model" in card and "PD teacher of 8 steps" in card and 'torch.jit.load("student.ts")' in card
    before = to.read_bytes()
    status, _, error = rdd("export", "torchscript", str(student), "--to", str(to))
    assert status == 2 and "exists" in error and to.read_bytes() == before


def test_scores_of_the_study_are_in_the_card(rdd, tmp_path, studied):
    student = only(studied / "checkpoints", "rdd-1-*.safetensors")
    assert rdd("export", "diffusers", str(student), "--to", str(tmp_path / "p"))[0] == 0
    row = json.loads(only(studied / "scores", "rdd-1-0-*.json").read_text())["row"]
    card = (tmp_path / "p" / "README.md").read_text()
    assert f"{row['fid']:.5g}" in card and f"{row['pfd']:.5g}" in card


def test_a_killed_distillation_of_a_given_teacher_goes_on_to_the_same_bits(rdd, tmp_path):
    teacher = str(pipeline(tmp_path / "hf", "v_prediction"))
    arguments = ("distill", "--profile", "smoke", "--teacher", teacher, "--to", "4", *QUICK)
    for name in ("a", "b"):
        assert rdd(*arguments, "--out", str(tmp_path / name))[0] == 0
    assert rdd("distill", "--profile", "smoke", "--to", "2", "--out", str(tmp_path / "a"))[0] == 0, (
        "the folder knows its teacher"
    )
    one, other = (load_file(only(tmp_path / name / "checkpoints", "rdd-4-*.safetensors")) for name in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["EVIL"]),))


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Files to refuse, by name."""
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    torch.save({"net_model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "noise.pt").write_bytes(os.urandom(5000))
    good = torch.load(released_file(tmp_path / "good.pt"), weights_only=True)
    for name in list(good["net_model"])[:15]:
        if not name.startswith(("head", "time")):
            good["net_model"].pop(name)
    torch.save({**good, "net_model": good["net_model"] | {"extra.weight": torch.zeros(1)}}, tmp_path / "holes.pt")
    torch.save({name: value for name, value in good.items() if name != "x_T"}, tmp_path / "sizeless.pt")
    released_file(tmp_path / "classes.pt", num_classes=10)
    released_file(tmp_path / "four.pt", steps=4)
    released_file(tmp_path / "one.pt", steps=1)
    released_file(tmp_path / "large.pt", size=16)
    extractor = build_extractor("small_resnet", 3, 10)
    save_checkpoint(
        tmp_path / "colour.safetensors",
        extractor.state_dict(),
        {"kind": "extractor", "facts": {"extractor": {"name": "small_resnet"}}},
    )
    model = load_released_unet(tmp_path / "good.pt")
    described = describe(model)
    save_checkpoint(
        tmp_path / "stochastic.safetensors", model.state_dict(), {"model": described, "facts": {"stochastic": True}}
    )
    newer = described | {"unet": described["unet"] | {"heads": 8}}
    save_checkpoint(tmp_path / "newer.safetensors", model.state_dict(), {"model": newer})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "newer.safetensors").read_bytes()[:-100])
    latent = tmp_path / "latent"
    latent.mkdir()
    (latent / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "vae": ["diffusers", "AutoencoderKL"],
                "unet": ["diffusers", "UNet2DConditionModel"],
            }
        )
    )
    pipeline(tmp_path / "large", sample_size=16)
    pipeline(tmp_path / "colour", in_channels=3, out_channels=3)
    return tmp_path


def folder_of_images(path):
    """Gray 8x8 images without classes."""
    from PIL import Image

    path.mkdir()
    for k in range(8):
        Image.fromarray(np.full((8, 8), 20 * k, dtype=np.uint8)).save(path / f"{k}.png")
    return path


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["import", "released", "evil.pt"], "could run code; nothing of it was run"),
        (["import", "released", "plain.pt"], "could run code; nothing of it was run"),
        (["import", "released", "noise.pt"], "damaged or no torch file"),
        (["import", "released", "nowhere.pt"], "no file at"),
        (
            ["import", "released", "holes.pt"],
            r"holds other tensors.*lacks downblocks.0.block1.0.weight, .*extra.weight",
        ),
        (["import", "released", "sizeless.pt"], "--image-size"),
        (["import", "released", "good.pt", "--to", "x.pt"], "ends in .safetensors"),
        (["import", "released", "good.pt", "--to", "there.safetensors"], "exists: choose another --to"),
        (["import", "diffusers", "latent"], "has a vae.*only pixel-space models"),
        (["import", "diffusers", "good.pt"], "holds no diffusers model"),
        (["distill", "--profile", "smoke", "--teacher", "evil.pt"], "nothing of it was run"),
        (["distill", "--profile", "smoke", "--teacher", "latent"], "only pixel-space models"),
        (["distill", "--profile", "smoke", "--teacher", "nowhere"], "no model at"),
        (
            ["distill", "--profile", "smoke", "--teacher", "large.pt"],
            r"has images \(1, 8, 8\), wanted are \(1, 16, 16\) by pretrained.teacher",
        ),
        (["distill", "--profile", "smoke", "--teacher", "large"], r"wanted are \(1, 16, 16\) by pretrained.teacher"),
        (["distill", "--profile", "smoke", "--teacher", "colour"], r"wanted are \(3, 8, 8\) by pretrained.teacher"),
        (["distill", "--profile", "smoke", "--teacher", "four.pt"], "4-step model: set progressive.teacher_steps=4"),
        (["distill", "--profile", "smoke", "--teacher", "one.pt"], "1-step model: there is nothing left to halve"),
        (
            [
                "distill",
                "--profile",
                "smoke",
                "--teacher",
                "classes.pt",
                "--set",
                "data.name=folder",
                "--set",
                "data.root=plain",
            ],
            "conditional on 10 classes.*no labels",
        ),
        (
            ["distill", "--profile", "smoke", "--teacher", "good.pt", "--extractor", "good.pt"],
            "has no model, a dict of tensors",
        ),
        (["distill", "--profile", "smoke", "--teacher", "good.pt", "--guided"], "pretrained.teacher"),
        (["guide", "--profile", "smoke", "--set", "pretrained.teacher=good.pt"], "pretrained.teacher"),
        (["study", "--profile", "smoke", "--set", "pretrained.teacher=good.pt"], "pretrained.teacher"),
        (["plan", "--profile", "smoke", "--set", "pretrained.teacher=good.pt"], "pretrained.teacher"),
        (["export", "diffusers", "good.pt", "--to", "latent"], "latent exists"),
        (["export", "diffusers", "good.pt", "--to", "new", "--guidance", "2"], "cannot be guided"),
        (
            ["distill", "--profile", "smoke", "--teacher", "good.pt", "--set", "unet.channels=32"],
            "changes nothing, since pretrained.teacher",
        ),
        (
            ["distill", "--profile", "smoke", "--teacher", "good.pt", "--set", "base.schedule=discrete"],
            "changes nothing",
        ),
        (
            ["distill", "--profile", "smoke", "--teacher", "good.pt", "--extractor", "colour.safetensors"],
            "images of 3 channels, these have 1",
        ),
        (
            ["distill", "--profile", "smoke", "--teacher", "cut.safetensors"],
            "cut.safetensors is damaged.*: get or make it again",
        ),
        (
            ["distill", "--profile", "smoke", "--teacher", "colour/unet/diffusion_pytorch_model.safetensors"],
            "name its pipeline's folder",
        ),
        (["distill", "--profile", "smoke", "--teacher", "newer.safetensors"], "unknown to this version"),
        (
            ["ablate", "tau_is", "--profile", "smoke", "--set", "pretrained.teacher=good.pt"],
            "ablations vary what a given model fixes",
        ),
        (["export", "torchscript", "stochastic.safetensors", "--to", "s.ts"], "trained for the stochastic sampler"),
        (["export", "torchscript", "good.pt", "--to", "s.md"], "the model card's name"),
        (["export", "torchscript", "nowhere.pt"], "no model at"),
        (["export", "torchscript", "good.pt", "--steps", "1000"], "1 to 64"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(rdd, bad, monkeypatch, arguments, words):
    monkeypatch.chdir(bad)
    folder_of_images(bad / "plain")
    (bad / "there.safetensors").write_bytes(b"mine")
    before = sorted(bad.rglob("*"))
    if arguments[0] in ("distill", "guide", "study", "plan", "ablate"):
        arguments = [*arguments, "--out", str(bad / "out")]
    status, said, error = rdd(*arguments)
    assert status == 2 and re.search(words, error), error
    assert error.startswith("rdd: ") and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(bad.rglob("*")) == before and not (bad / "ran").exists(), "nothing is written, nothing is run"


def test_another_teacher_needs_another_folder(rdd, tmp_path):
    first, second = (str(released_file(tmp_path / f"{k}.pt", seed=k)) for k in (1, 2))
    out = str(tmp_path / "run")
    assert rdd("distill", "--profile", "smoke", "--teacher", first, "--to", "4", "--out", out, *QUICK)[0] == 0
    status, _, error = rdd("distill", "--profile", "smoke", "--teacher", second, "--to", "4", "--out", out)
    assert status == 2 and "differs in pretrained.teacher" in error


def test_keys_follow_the_given_model_and_the_data_not_where_they_lie(tmp_path):
    file = released_file(tmp_path / "a.pt")
    moved = tmp_path / "b.pt"
    moved.write_bytes(file.read_bytes())
    other = released_file(tmp_path / "c.pt", seed=5)
    keys = []
    for path in (file, moved, other):
        study = Study(study_profile("smoke", {"pretrained.teacher": str(path)}), tmp_path / "o")
        keys.append((study._base_facts()["pretrained"], study._student_facts("pd", 4, 0)["numbers"]))
    assert keys[0] == keys[1] != keys[2]
    assert study._base_facts()["data"]["name"] == "digits"


def test_a_model_of_ours_can_be_given_too(tmp_path, studied, rdd):
    base = only(studied / "checkpoints", "pd-8-*.safetensors")
    status, _, error = rdd(
        "distill", "--profile", "smoke", "--teacher", str(base), "--to", "4", "--out", str(tmp_path / "o"), *QUICK
    )
    assert status == 0, error
    denoiser, info = load_model(base)
    assert denoiser.steps == 8 and denoiser.schedule == CosineSchedule()
    assert load_profile("smoke").unet == denoiser.network.config and isinstance(denoiser, Denoiser)
