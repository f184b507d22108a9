"""Models of diffusers in and out, against diffusers' own pipelines and schedulers; nothing of their files may be run."""

import errno
import importlib.util
import itertools
import json
import math
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.diffusers_unet import LABEL_DROPOUT, DiffusersUNet
from rddlib.diffusion.model_file import build_described, describe, load_denoiser, summary
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import NO_CLASS, UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.interop import from_diffusers, load_classifier, load_model, to_diffusers
from rddlib.utils.checkpoint import save_checkpoint
from rddlib.utils.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # in diffusers
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]
needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
BOUND = 1e-4  # between our images and diffusers'; float32 alone makes 1e-5
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


@pytest.fixture(autouse=True)
def _own_modules_folder(tmp_path, monkeypatch):
    """Where diffusers copies the modules of pipelines that have some of their own."""
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers.utils import dynamic_modules_utils

        monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "hf_modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])


def shaken(module, seed=0):
    """The module with random weights everywhere, of a size that keeps what passes through near 1."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    for layer in module.modules():
        if isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d)):
            layer.weight.data += 1
    return module.eval().requires_grad_(False)


def tiny_unet(seed=0, **changes):
    from diffusers import UNet2DModel

    return shaken(UNet2DModel(**{**SMALL, **changes}), seed)


def ddim(**options):
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{"timestep_spacing": "trailing", **options})


def noise_of(count, shape=(1, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def gap(found, expected):
    """The largest difference, as a share of the largest number where that is above 1."""
    assert found.shape == expected.shape and found.isfinite().all() and expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def edit(path, **changes):
    """Change entries of a JSON file; `...` takes one out."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


def refused(call, *inputs, **options):
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- in: the same images as their own pipeline -----------------------------------------------------------------------


def table(name, size):
    """Arguments of a scheduler with that table of betas."""
    if name == "trained_betas":
        return {"trained_betas": (0.02 * torch.rand(size, generator=torch.Generator().manual_seed(1))).tolist()}
    if name == "zero SNR":
        return {"rescale_betas_zero_snr": True}
    return {"beta_schedule": name}


def theirs(unet, scheduler, steps, clip, count=3):
    """The images of DDIMPipeline, before it holds them in [0, 1]."""
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline(unet, type(scheduler).from_config(scheduler.config, clip_sample=clip))
    pipeline.set_progress_bar_config(disable=True)
    step, seen = pipeline.scheduler.step, []
    pipeline.scheduler.step = lambda *inputs, **options: seen.append(step(*inputs, **options)) or seen[-1]
    generator = torch.Generator().manual_seed(0)
    pipeline(batch_size=count, generator=generator, num_inference_steps=steps, use_clipped_model_output=True)
    assert len(seen) == steps
    return seen[-1].prev_sample.clamp(-1, 1) if clip else seen[-1].prev_sample


PREDICTED = [
    *itertools.product(
        ("epsilon", "sample", "v_prediction"), ("linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas")
    ),
    ("v_prediction", "zero SNR"),
    ("sample", "zero SNR"),
]


@needs_diffusers
@pytest.mark.parametrize("size", [1000, 50])
@pytest.mark.parametrize("prediction, betas", PREDICTED)
def test_few_steps_draw_the_images_of_their_pipeline(prediction, betas, size):
    unet = tiny_unet()
    scheduler = ddim(prediction_type=prediction, num_train_timesteps=size, **table(betas, size))
    denoiser = from_diffusers(unet, scheduler)
    assert denoiser.schedule.steps == size and not denoiser.training
    for steps, clip in itertools.product((1, 2, 4, 5, 10), (False, True)):
        if size % steps == 0:
            ours = ddim_sample(denoiser, noise_of(3), steps, clip=clip)
            assert gap(ours, theirs(unet, scheduler, steps, clip)) < BOUND, (steps, clip)


@needs_diffusers
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_last_alpha_is_one_or_that_of_the_cleanest_index(prediction):
    unet, drawn = tiny_unet(), {}
    for last in (True, False):
        scheduler = ddim(
            prediction_type=prediction, num_train_timesteps=50, beta_start=0.02, beta_end=0.1, set_alpha_to_one=last
        )
        denoiser = from_diffusers(unet, scheduler)
        assert float(denoiser.schedule.alpha(0.0)) ** 2 == pytest.approx(1.0 if last else 0.98, abs=1e-6)
        for steps, clip in itertools.product((1, 2, 5, 10), (False, True)):
            drawn[last, steps, clip] = ddim_sample(denoiser, noise_of(3), steps, clip=clip)
            assert gap(drawn[last, steps, clip], theirs(unet, scheduler, steps, clip)) < BOUND, (last, steps, clip)
    assert gap(drawn[True, 10, False], drawn[False, 10, False]) > 100 * BOUND  # or the setting would do nothing


@needs_diffusers
def test_the_schedule_is_their_product_of_alphas():
    scheduler = ddim(beta_schedule="scaled_linear", num_train_timesteps=1000)
    schedule = from_diffusers(tiny_unet(), scheduler).schedule
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    expected = scheduler.betas.double().neg().add(1).cumprod(0)
    torch.testing.assert_close(schedule.alpha(times).square(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-5, atol=0)  # as diffusers rounds it


@needs_diffusers
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_schedulers_of_the_same_kind_give_the_same_denoiser(name):
    import diffusers

    same = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    unet = tiny_unet()
    expected = from_diffusers(unet, ddim(set_alpha_to_one=name != "PNDMScheduler", **same))
    found = from_diffusers(unet, getattr(diffusers, name)(**same))
    assert found.schedule == expected.schedule and found.prediction == expected.prediction == "v"


@needs_diffusers
@pytest.mark.parametrize("pipeline_class", ["DDIMPipeline", "DDPMPipeline"])
def test_every_form_of_one_model_is_the_same_denoiser(pipeline_class, tmp_path):
    import diffusers

    unet, scheduler = tiny_unet(), ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipeline = getattr(diffusers, pipeline_class)(unet, scheduler)
    pipeline.save_pretrained(tmp_path / "all")
    folder = tmp_path / "all"
    forms = [
        from_diffusers(unet, scheduler),
        from_diffusers(pipeline),
        from_diffusers(folder),
        from_diffusers(str(folder)),
        from_diffusers(folder / "unet", folder / "scheduler"),
        from_diffusers(str(folder / "unet"), str(folder / "scheduler")),
        from_diffusers(folder / "unet", scheduler),
        from_diffusers(unet, folder / "scheduler"),
    ]
    expected = ddim_sample(forms[0], noise_of(2), 4)
    for form in forms:
        assert torch.equal(ddim_sample(form, noise_of(2), 4), expected)
        assert form.schedule == forms[0].schedule and form.prediction == "v" and form.steps == 0
        assert not any(p.requires_grad for p in form.parameters())


@needs_diffusers
def test_what_is_given_stays_as_it_was(tmp_path):
    from diffusers import DDIMPipeline

    unet, scheduler = tiny_unet().train().requires_grad_(True), ddim()
    for denoiser in (from_diffusers(unet, scheduler), from_diffusers(DDIMPipeline(unet, scheduler))):
        denoiser.network.unet.conv_in.weight.zero_()
    assert all(module.training for module in unet.modules()) and all(p.requires_grad for p in unet.parameters())
    assert (unet.conv_in.weight != 0).all() and unet.dtype == torch.float32


@needs_diffusers
def test_a_model_in_half_precision_is_computed_in_single():
    unet = tiny_unet()
    half, whole = from_diffusers(unet.half(), ddim()), from_diffusers(unet.float(), ddim())
    assert torch.equal(ddim_sample(half, noise_of(2), 2), ddim_sample(whole, noise_of(2), 2))
    assert {p.dtype for p in half.parameters()} == {torch.float32}


@needs_diffusers
def test_a_scheduler_that_is_passed_takes_the_place_of_the_folders_own(folder):
    other = ddim(num_train_timesteps=50, prediction_type="sample")
    for source in (folder, folder / "unet"):
        found = from_diffusers(source, other)
        assert found.schedule.steps == 50 and found.prediction == "x"
    assert from_diffusers(folder).schedule.steps == 1000


# --- in: classes -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def looped(scheduler, noise, steps, predict):
    """Their scheduler's images of predict(z, index)."""
    scheduler.set_timesteps(steps)
    z = noise
    for index in scheduler.timesteps:
        z = scheduler.step(predict(z, index), index, z, use_clipped_model_output=True).prev_sample
    return z.clamp(-1, 1)


@needs_diffusers
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_classes_and_guidance_against_a_loop_over_their_scheduler(prediction):
    unet, scheduler, y = tiny_unet(num_class_embeds=4), ddim(prediction_type=prediction), torch.tensor([2, 0, 1])
    plain, guidable = from_diffusers(unet, scheduler), from_diffusers(unet, scheduler, null_class=True)
    assert (plain.num_classes, plain.unconditional) == (4, False)
    assert (guidable.num_classes, guidable.unconditional) == (3, True)
    answer = lambda z, i, y: unet(z, i, class_labels=y, return_dict=False)[0]  # noqa: E731
    last, none = torch.full_like(y, 3), torch.full_like(y, NO_CLASS)
    for steps in (1, 4):
        asked = [
            (plain, y, None, lambda z, i: answer(z, i, y)),
            (plain, last, None, lambda z, i: answer(z, i, last)),
            (guidable, y, None, lambda z, i: answer(z, i, y)),
            (guidable, none, None, lambda z, i: answer(z, i, last)),
            (guidable, y, 1.5, lambda z, i: 2.5 * answer(z, i, y) - 1.5 * answer(z, i, last)),
        ]
        for denoiser, labels, w, predict in asked:
            ours = ddim_sample(denoiser, noise_of(3), steps, y=labels, guidance=w)
            assert gap(ours, looped(scheduler, noise_of(3), steps, predict)) < BOUND


@needs_diffusers
def test_labels_are_asked_for_exactly_where_there_are_classes():
    z, y = noise_of(2), torch.tensor([0, 1])
    for null_class in (False, True):
        conditional = from_diffusers(tiny_unet(num_class_embeds=4), ddim(), null_class=null_class)
        with pytest.raises(ValueError, match="class-conditional: pass labels y"):
            conditional(z, 0.5)
    with pytest.raises(ValueError, match="cannot be guided"):
        from_diffusers(tiny_unet(num_class_embeds=4), ddim())(z, 0.5, y, 1.0)
    with pytest.raises(ValueError, match="takes no labels y"):
        from_diffusers(tiny_unet(), ddim())(z, 0.5, y)
    for classes in (None, 1):
        said = refused(from_diffusers, tiny_unet(num_class_embeds=classes), ddim(), null_class=True)
        assert "leave null_class out" in said


# --- in: times -------------------------------------------------------------------------------------------------------


def recorded_times(denoiser):
    """A list that the time of each of the network's calls is put in, and what its sinusoids are made of."""
    seen, used, unet = [], [], denoiser.network.unet
    unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    unet.time_proj.register_forward_pre_hook(lambda _, inputs: used.append(inputs[0]))
    return seen, used


@needs_diffusers
@pytest.mark.parametrize("size", [1000, 50, 7])
def test_the_network_is_asked_at_their_index(size):
    denoiser = from_diffusers(tiny_unet(), ddim(num_train_timesteps=size))
    seen, used = recorded_times(denoiser)
    indices = torch.arange(size)
    denoiser(torch.zeros(size, 1, 8, 8), (indices + 1).double() / size)
    assert torch.equal(seen[0].float(), indices.float()) and torch.equal(used[0].float(), indices.float())
    between = indices[1:] - 0.5
    denoiser(torch.zeros(size - 1, 1, 8, 8), (between.double() + 1) / size)
    torch.testing.assert_close(seen[1].double(), between.double(), rtol=0, atol=1e-9)
    denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 0.5 / size], dtype=torch.float64))
    assert seen[2].tolist() == [0, 0]  # the cleanest index, beyond which there is none


@needs_diffusers
def test_a_sampler_asks_at_the_trailing_indices():
    denoiser = from_diffusers(tiny_unet(), ddim())
    seen, _ = recorded_times(denoiser)
    ddim_sample(denoiser, noise_of(2), 4)
    scheduler = ddim()
    scheduler.set_timesteps(4)
    assert (
        [index.tolist() for index in seen]
        == [[i, i] for i in scheduler.timesteps.tolist()]
        == [[999.0] * 2, [749.0] * 2, [499.0] * 2, [249.0] * 2]
    )


@needs_diffusers
def test_learned_times_are_rows_of_a_table():
    unet = tiny_unet(time_embedding_type="learned", num_train_timesteps=50)
    denoiser = from_diffusers(unet, ddim(num_train_timesteps=50))
    seen, _ = recorded_times(denoiser)
    denoiser(torch.zeros(51, 1, 8, 8), torch.arange(51).double() / 50)
    assert seen[0].dtype == torch.int64 and seen[0].tolist() == [0, *range(50)]
    ours = ddim_sample(denoiser, noise_of(3), 5, clip=False)
    assert gap(ours, theirs(unet, ddim(num_train_timesteps=50), 5, False)) < BOUND


# --- in: what is refused ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("pipeline") / "ddpm"
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(template, tmp_path):
    """A whole pipeline's folder, to be damaged."""
    return Path(shutil.copytree(template, tmp_path / "ddpm"))


def weights(folder, change):
    """Change the dict of tensors of a pipeline's folder."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


INDEX, NETWORK, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
EDITS = {  # what is changed in which file, and what is said of it
    "a vae": (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "has a vae: it draws in a latent"),
    "a text encoder": (INDEX, {"text_encoder": ["transformers", "CLIPTextModel"]}, "has a text_encoder"),
    "a text-to-image U-Net": (
        INDEX,
        {"unet": ["diffusers", "UNet2DConditionModel"]},
        "UNet2DConditionModel for its network",
    ),
    "a text-to-image U-Net within": (NETWORK, {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
    "no network": (INDEX, {"unet": ...}, "no unet"),
    "half a network": (INDEX, {"unet": ["diffusers"]}, "model_index|network"),
    "a number for a network": (INDEX, {"unet": 5}, "model_index|network"),
    "another width": (NETWORK, {"block_out_channels": [8, 32]}, "cannot be read as a UNet2DModel"),
    "unknown blocks": (NETWORK, {"down_block_types": ["os", "os"]}, "cannot be read as a UNet2DModel"),
    "a pipeline for a scheduler": (SCHEDULER, {"_class_name": "DDIMPipeline"}, "names the scheduler DDIMPipeline"),
    "a module for a scheduler": (SCHEDULER, {"_class_name": "os"}, "names the scheduler os"),
    "an unknown scheduler": (SCHEDULER, {"_class_name": "NoSuchScheduler"}, "names the scheduler NoSuchScheduler"),
    "a base class for a scheduler": (
        SCHEDULER,
        {"_class_name": "SchedulerMixin"},
        "names the scheduler SchedulerMixin",
    ),
    "a list for a scheduler": (SCHEDULER, {"_class_name": ["DDIMScheduler"]}, "names the scheduler"),
    "a nameless scheduler": (SCHEDULER, {"_class_name": ...}, "names the scheduler None"),
    "another prediction": (SCHEDULER, {"prediction_type": "flow"}, "prediction_type flow"),
    "no word for a prediction": (SCHEDULER, {"prediction_type": ["epsilon"]}, "prediction_type|scheduler"),
    "an unknown table of betas": (SCHEDULER, {"beta_schedule": "odd"}, "scheduler|betas"),
    "times in words": (SCHEDULER, {"num_train_timesteps": "many"}, "scheduler|betas"),
    "no times": (SCHEDULER, {"num_train_timesteps": 0}, "scheduler|betas"),
    "betas above 1": (SCHEDULER, {"trained_betas": [2.0, 0.1]}, "scheduler|betas"),
}
FAULTS = {  # what is done to the folder, and what is said of it
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot be read as a UNet2DModel"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), "cannot be read as a UNet2DModel"),
    "truncated weights": (lambda f: cut(f / WEIGHTS, 5000), "cannot be read as a UNet2DModel"),
    "weights short of a few bytes": (lambda f: cut(f / WEIGHTS, -8), "cannot be read as a UNet2DModel"),
    "half an index": (lambda f: cut(f / INDEX, 30), "model_index.json is missing or damaged"),
    "an index of bytes": (lambda f: (f / INDEX).write_bytes(b"\xff\xfe\x00"), "model_index.json is missing or damaged"),
    "an index that is a list": (lambda f: (f / INDEX).write_text("[]"), "model_index.json is damaged"),
    "half a network's configuration": (lambda f: cut(f / NETWORK, 30), "config.json is missing or damaged"),
    "half a scheduler": (lambda f: cut(f / SCHEDULER, 30), "scheduler_config.json is missing or damaged"),
    "no folder of the network": (lambda f: shutil.rmtree(f / "unet"), "unet/config.json is missing"),
    "no folder of the scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "no index": (lambda f: (f / INDEX).unlink(), "holds no diffusers model"),
    "an empty folder": (lambda f: [shutil.rmtree(f), f.mkdir()], "holds no diffusers model"),
    "no folder at all": (shutil.rmtree, "ddpm"),
}


@needs_diffusers
@pytest.mark.parametrize("name", EDITS)
def test_other_kinds_of_models_are_refused_in_one_line(name, folder):
    file, changes, said = EDITS[name]
    edit(folder / file, **changes)
    assert re.search(said, refused(from_diffusers, folder))


@needs_diffusers
@pytest.mark.parametrize("name", FAULTS)
def test_damaged_folders_are_refused_in_one_line(name, folder):
    damage, said = FAULTS[name]
    damage(folder)
    assert said in refused(from_diffusers, folder)


NETWORKS = {
    "with a variance": ({"out_channels": 2}, "makes 2 channels of 1: .*without a variance"),
    "not square": ({"sample_size": (8, 4)}, "has sample_size .8, 4.: set it to"),
    "of no size": ({"sample_size": None}, "has sample_size None: set it to"),
    "of variance-exploding times": ({"time_embedding_type": "fourier"}, "takes fourier times"),
    "of classes that are no labels": ({"class_embed_type": "timestep"}, "classes are of the type timestep"),
}


@needs_diffusers
@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_refused_as_objects_and_as_folders(name, tmp_path):
    from diffusers import DDIMPipeline

    changes, said = NETWORKS[name]
    unet = tiny_unet(**changes)
    pipeline = DDIMPipeline(unet, ddim())
    pipeline.save_pretrained(tmp_path / "them")
    for source in (unet, pipeline, tmp_path / "them"):
        scheduler = ddim() if source is unet else None
        assert re.search(said, refused(from_diffusers, source, scheduler))


@needs_diffusers
@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "CMStochasticIterativeScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler"],
)
def test_schedulers_of_other_diffusions_are_refused(name, folder):
    import diffusers

    scheduler = getattr(diffusers, name)()
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    for call in (lambda: from_diffusers(tiny_unet(), scheduler), lambda: from_diffusers(folder)):
        assert f"{name} is of another kind of diffusion" in refused(call)


@needs_diffusers
@pytest.mark.parametrize("name", ["KarrasVeScheduler", "DPMSolverSDEScheduler"])
def test_schedulers_that_diffusers_only_names_are_refused_or_read(name, folder):
    """Without what they need, diffusers has a stand-in under their name."""
    edit(folder / SCHEDULER, _class_name=name)
    try:
        found = from_diffusers(folder)
    except UserError as error:
        assert "\n" not in str(error) and "scheduler" in str(error)
    else:
        assert found.schedule.steps == 1000


@needs_diffusers
def test_epsilon_of_pure_noise_is_refused(folder):
    scheduler = ddim(rescale_betas_zero_snr=True)
    assert "ends in pure noise" in refused(from_diffusers, tiny_unet(), scheduler)
    edit(folder / SCHEDULER, rescale_betas_zero_snr=True)
    assert "ends in pure noise" in refused(from_diffusers, folder)


@needs_diffusers
def test_latent_pipelines_are_refused_as_objects_too():
    from diffusers import DDIMPipeline, LDMPipeline, VQModel

    latent = LDMPipeline(VQModel(block_out_channels=(32,), norm_num_groups=8), tiny_unet(), ddim())
    assert "LDMPipeline has a vqvae" in refused(from_diffusers, latent)
    for part in ("vae", "text_encoder", "transformer", "prior"):
        odd = SimpleNamespace(components={part: 1, "unet": tiny_unet()}, unet=tiny_unet(), scheduler=ddim())
        assert f"has a {part}" in refused(from_diffusers, odd)
    assert from_diffusers(DDIMPipeline(tiny_unet(), ddim())).schedule.steps == 1000


@needs_diffusers
@pytest.mark.parametrize(
    "source",
    [None, 5, object(), nn.Conv2d(1, 1, 1), SimpleNamespace(scheduler=None)],
    ids=["None", "number", "object", "other module", "no network"],
)
def test_objects_of_other_kinds_are_refused(source):
    assert "UNet2DModel" in refused(from_diffusers, source)


@needs_diffusers
def test_a_network_alone_asks_for_its_scheduler(folder):
    for source in (tiny_unet(), folder / "unet"):
        said = refused(from_diffusers, source)
        assert "does not say its betas" in said and "pass its scheduler" in said
    assert "scheduler_config.json is missing" in refused(from_diffusers, folder / "unet", folder / "absent")


def test_without_diffusers_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text("{}")
    calls = [
        lambda: from_diffusers(tmp_path),
        lambda: from_diffusers(nn.Conv2d(1, 1, 1)),
        lambda: to_diffusers(ours(EXPORTS["v"]), tmp_path / "new"),
        lambda: build_described({"diffusers": {"config": {}}}),
    ]
    for call in calls:
        assert re.search(r"needs diffusers.*: pip install 'rddlib\[baselines\]'$", refused(call))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@needs_diffusers
@pytest.mark.parametrize("count", [1, 10, 15])
def test_missing_and_foreign_tensors_are_listed_up_to_ten(count, folder):
    names = sorted(load_file(folder / WEIGHTS))[:count]
    extra = [f"extra_{k:02}" for k in range(count)]
    more = f" and {count - 10} more" if count > 10 else ""
    weights(folder, lambda tensors: [tensors.pop(name) for name in names])
    assert refused(from_diffusers, folder).endswith(f"it lacks {', '.join(names[:10])}{more}")
    weights(folder, lambda tensors: tensors.update({name: torch.zeros(1) for name in extra}))
    said = refused(from_diffusers, folder)
    assert f"it lacks {', '.join(names[:10])}{more}; it has, beyond its own, {', '.join(extra[:10])}{more}" in said


# --- in: nothing is run, nothing downloaded --------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@needs_diffusers
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_of_weights_is_not_run(zipped, folder, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    place = (folder / WEIGHTS).with_suffix(".bin")
    torch.save({**tensors, "bomb": Bomb(tmp_path / "exploded")}, place, _use_new_zipfile_serialization=zipped)
    assert "cannot be read as a UNet2DModel" in refused(from_diffusers, folder)
    assert not (tmp_path / "exploded").exists()
    torch.load(place, weights_only=False)  # and it would have exploded
    assert (tmp_path / "exploded").exists()


@needs_diffusers
def test_a_pickle_of_tensors_alone_is_read(folder, template):
    torch.save(load_file(folder / WEIGHTS), (folder / WEIGHTS).with_suffix(".bin"))
    (folder / WEIGHTS).unlink()
    found, expected = (from_diffusers(place).state_dict() for place in (folder, template))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@needs_diffusers
def test_code_of_the_folder_is_not_imported(folder, template, tmp_path):
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Own: pass\n"
    places = [folder / "own.py", folder / "unet/own.py", folder / "scheduler/own.py", folder / "unet.py"]
    for place in places:
        place.write_text(code)
    edit(folder / INDEX, _class_name=["own", "Own"], scheduler=["own", "Own"])
    edit(folder / NETWORK, auto_map={"AutoModel": "own.Own"})
    found, expected = (from_diffusers(place).state_dict() for place in (folder, template))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and not ran.exists()
    for damage in ({"unet": ["own", "Own"]}, {"_class_name": ["own", "Own"], "vae": ["own", "Own"]}):
        edit(folder / INDEX, **damage)
        refused(from_diffusers, folder)
    edit(folder / INDEX, vae=..., unet=["diffusers", "UNet2DModel"])
    for name in (["own", "Own"], "own.OwnScheduler", "OwnScheduler"):
        edit(folder / SCHEDULER, _class_name=name)
        refused(from_diffusers, folder)
    assert not ran.exists()
    runpy.run_path(str(places[0]))  # and it would have been seen
    assert ran.exists()


@needs_diffusers
def test_nothing_is_downloaded(folder, monkeypatch):
    asked = []

    def refuse(*inputs, **options):
        asked.append(inputs)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from_diffusers(folder)
    (folder / WEIGHTS).unlink()
    refused(from_diffusers, folder)
    for name in ("google/ddpm-cifar10-32", "https://example.org/google/ddpm-cifar10-32"):
        refused(from_diffusers, name)
        refused(load_model, name)
    assert asked == []


# --- out: the same images as ours ------------------------------------------------------------------------------------


class Export(NamedTuple):
    """A denoiser of ours: changes of its UNetConfig, and how it is exported."""

    config: dict
    prediction: str = "v"
    schedule: object = CosineSchedule()
    guidance: float | None = None
    steps: tuple[int, ...] = (1, 2, 4, 8)
    clip: bool = True


LINEAR = BetaSchedule(tuple(torch.linspace(1e-4, 0.005, 1024).double().tolist()))
SHORT = BetaSchedule(tuple(torch.linspace(0.01, 0.3, 50).double().tolist()), 0.99)
LABELLED = {"num_classes": 5, "label_dropout": 0.1}
GUIDED = {"num_classes": 5, "guidance": (0.0, 4.0)}
EXPORTS = {
    "v": Export({}),
    "x": Export({}, "x"),
    "colours and three levels": Export(
        {
            "image_size": 16,
            "image_channels": 3,
            "multipliers": (1, 2, 2),
            "blocks": 2,
            "attention": (16, 4),
            "groups": 4,
        },
        "x",
    ),
    "one level": Export({"multipliers": (1,), "attention": ()}),
    "uneven widths": Export({"channels": 24, "multipliers": (1, 3, 2), "attention": (8, 2), "groups": 3}),
    "no attention": Export({"attention": (), "blocks": 3}, clip=False),
    "the released grid": Export({"time_grid": 1024}, "x", DiscreteCosineSchedule(1024)),
    "the released schedule": Export({}, "v", DiscreteCosineSchedule(1024)),
    "a grid on the continuous schedule": Export({"time_grid": 1024}),
    "a short grid": Export({"time_grid": 64}, "v", DiscreteCosineSchedule(64)),
    "betas": Export({}, "v", LINEAR),
    "betas and eps": Export({}, "eps", LINEAR),
    "betas and eps, unclipped": Export({}, "eps", LINEAR, clip=False),
    "few betas": Export({"time_grid": 50}, "x", SHORT, steps=(1, 2, 5, 10), clip=False),
    "classes": Export({"num_classes": 5}),
    "one class": Export({"num_classes": 1}, "x"),
    "classes and none": Export(LABELLED, "x", clip=False),
    "guidance of 0": Export(GUIDED, guidance=0.0),
    "guidance of 0.7": Export(GUIDED, guidance=0.7),
    "guidance of 3": Export({**GUIDED, "time_grid": 1024}, "x", DiscreteCosineSchedule(1024), guidance=3.0, clip=False),
}
SMALL_UNET = {
    "image_size": 8,
    "image_channels": 1,
    "channels": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "groups": 8,
}


def ours(case, seed=0):
    return Denoiser(
        shaken(UNet(UNetConfig(**{**SMALL_UNET, **case.config})), seed), case.schedule, case.prediction
    ).eval()


def labels_of(denoiser, count=3):
    return (torch.arange(count) % denoiser.num_classes) if denoiser.num_classes else None


def shape_of(denoiser):
    c = denoiser.network.config
    return c.image_channels, c.image_size, c.image_size


def their_images(pipeline, labels, **options):
    """In [-1, 1], from the same noise as `noise_of(3, ...)`."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"batch_size": 3} if labels is None else {"class_labels": labels}
    generator = torch.Generator().manual_seed(0)
    return 2 * pipeline(**given, generator=generator, output_type="pt", **options).images - 1


def loaded(folder):
    from diffusers import DiffusionPipeline

    own = any(folder.glob("*.py"))
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=own)


@needs_diffusers
@pytest.mark.parametrize("name", EXPORTS)
def test_a_saved_pipeline_draws_our_images(name, tmp_path):
    case = EXPORTS[name]
    denoiser, how = ours(case), {"guidance": case.guidance, "clip": case.clip}
    y = labels_of(denoiser)
    pipeline = loaded(to_diffusers(denoiser, tmp_path / "p", **how))
    assert type(pipeline).__name__ == ("DDIMPipeline" if y is None else "ClassDDIMPipeline")
    for steps in case.steps:
        images = their_images(pipeline, y, num_inference_steps=steps, use_clipped_model_output=True)
        expected = ddim_sample(denoiser, noise_of(3, shape_of(denoiser)), steps, y=y, **how).clamp(-1, 1)
        assert gap(images, expected) < BOUND, steps
        assert 0.1 < expected.std() < 0.95  # neither all grey nor all black and white


@needs_diffusers
@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_saved_comes_back(name, tmp_path):
    case = EXPORTS[name]
    denoiser = ours(case)
    has_none, w = denoiser.network.config.label_dropout > 0, case.guidance
    back = from_diffusers(to_diffusers(denoiser, tmp_path / "p", guidance=w), null_class=has_none)
    assert back.num_classes == denoiser.num_classes and back.unconditional == has_none and not back.guidance
    assert back.prediction == denoiser.prediction
    size = back.schedule.steps
    t = torch.tensor([0, 1, 2, size // 3, size - 1]).double().add(1) / size
    y = labels_of(denoiser, len(t))
    for labels in [y] if not has_none else [y, torch.full_like(y, NO_CLASS)]:
        given = [] if labels is None else [labels]
        guidance = [] if w is None else [torch.full((len(t),), w, dtype=torch.float64)]
        z = noise_of(len(t), shape_of(denoiser))
        assert gap(back.network(z, t, *given), denoiser.network(z, t, *given, *guidance)) < BOUND
    times = torch.arange(2, size + 1).double() / size  # index 0 is that of the last alpha, where it is below 1
    torch.testing.assert_close(back.schedule.alpha(times), denoiser.schedule.alpha(times), rtol=1e-4, atol=1e-9)
    assert float(back.schedule.alpha(0.0)) == pytest.approx(float(denoiser.schedule.alpha(0.0)), abs=1e-7)


@needs_diffusers
def test_a_pipeline_of_ours_says_whether_its_last_class_is_none(tmp_path):
    dropped, plain = (
        to_diffusers(ours(Export(config)), tmp_path / str(len(config))) for config in (LABELLED, {"num_classes": 5})
    )
    for place in (dropped, loaded(dropped)):
        found = from_diffusers(place)
        assert (found.num_classes, found.unconditional) == (5, True)
        asked = from_diffusers(place, null_class=False)
        assert (asked.num_classes, asked.unconditional) == (6, False)
    assert (from_diffusers(plain).num_classes, from_diffusers(plain).unconditional) == (5, False)
    edit(plain / INDEX, null_class="yes")  # no such word
    assert not from_diffusers(plain).unconditional
    again = to_diffusers(from_diffusers(dropped), tmp_path / "again")
    assert from_diffusers(again).unconditional


@needs_diffusers
@pytest.mark.parametrize("steps, name", [(3, "ScriptedPipeline"), (4, "DDIMPipeline")])
def test_steps_that_do_not_divide_the_grid_travel_as_a_script(steps, name, tmp_path):
    denoiser = ours(Export({}))
    pipeline = loaded(to_diffusers(denoiser, tmp_path / "p", steps=steps))
    options = {} if name == "ScriptedPipeline" else {"num_inference_steps": steps, "use_clipped_model_output": True}
    assert type(pipeline).__name__ == name
    assert gap(their_images(pipeline, None, **options), ddim_sample(denoiser, noise_of(3), steps)) < BOUND


@needs_diffusers
def test_their_model_through_us_is_theirs_again(tmp_path):
    scheduler = ddim(beta_schedule="scaled_linear", prediction_type="v_prediction", set_alpha_to_one=False)
    for classes in (None, 4):
        unet, folder = tiny_unet(num_class_embeds=classes), tmp_path / str(classes)
        pipeline = loaded(to_diffusers(from_diffusers(unet, scheduler), folder))
        saved, own = pipeline.unet.state_dict(), unet.state_dict()
        assert saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in own)
        torch.testing.assert_close(pipeline.scheduler.betas[1:], scheduler.betas[1:], rtol=0, atol=1e-6)
        again = from_diffusers(folder)
        denoiser, y = from_diffusers(unet, scheduler), torch.arange(3) if classes else None
        for steps in (1, 4, 10):
            expected = ddim_sample(denoiser, noise_of(3), steps, y=y)
            assert gap(ddim_sample(again, noise_of(3), steps, y=y), expected) < BOUND
            images = their_images(pipeline, y, num_inference_steps=steps, use_clipped_model_output=True)
            assert gap(images, expected) < BOUND


@needs_diffusers
@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule(1024)], ids=["cosine", "discrete"])
def test_a_network_on_another_grid_than_its_schedules_still_draws_our_images(schedule, tmp_path):
    """A UNet2DModel trained with 1000 times, under a schedule that is no table of 1000."""
    denoiser = Denoiser(DiffusersUNet(tiny_unet(), 1000), schedule, "v").eval()
    pipeline = loaded(to_diffusers(denoiser, tmp_path / "p", steps=2))
    scripted = type(pipeline).__name__ == "ScriptedPipeline"
    options = {} if scripted else {"num_inference_steps": 2, "use_clipped_model_output": True}
    assert gap(their_images(pipeline, None, **options), ddim_sample(denoiser, noise_of(3), 2)) < BOUND


# --- out: any other network ------------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z, t):
        return self.conv(z) * t.to(z.dtype)[:, None, None, None]


def others():
    """{name: (denoiser, arguments of to_diffusers, shape)}: none of them is a UNet2DModel in disguise."""
    wide = Export({"multipliers": (2, 2)})
    off_grid = Export({"time_grid": 512})
    return {
        "own module": (as_denoiser(Own(), CosineSchedule()).eval(), {"steps": 3, "image_shape": (3, 8, 8)}, (3, 8, 8)),
        "wider than its head": (ours(wide), {"steps": 3}, (1, 8, 8)),
        "with classes": (ours(wide._replace(config={**wide.config, **LABELLED})), {"steps": 1}, (1, 8, 8)),
        "guided by two evaluations": (ours(Export(LABELLED)), {"steps": 2, "guidance": 1.5}, (1, 8, 8)),
        "taking guidance": (
            ours(wide._replace(config={**wide.config, **GUIDED})),
            {"steps": 2, "guidance": 3.0},
            (1, 8, 8),
        ),
        "a grid of another length": (ours(off_grid), {"steps": 2}, (1, 8, 8)),
        "unclipped": (ours(wide), {"steps": 2, "clip": False}, (1, 8, 8)),
    }


@needs_diffusers
@pytest.mark.parametrize("name", others())
def test_any_other_network_travels_as_a_script(name, tmp_path):
    denoiser, options, shape = others()[name]
    folder, y = to_diffusers(denoiser, tmp_path / "p", **options), labels_of(denoiser)
    pipeline = loaded(folder)
    assert type(pipeline).__name__ == "ScriptedPipeline"
    assert pipeline.config.num_inference_steps == options["steps"] and tuple(pipeline.config.image_shape) == shape
    how = {"guidance": options.get("guidance"), "clip": options.get("clip", True)}
    expected = ddim_sample(denoiser, noise_of(3, shape), options["steps"], y=y, **how)
    assert gap(their_images(pipeline, y), expected.clamp(-1, 1)) < BOUND
    with pytest.raises(ValueError, match="class_labels|no classes"):
        pipeline(class_labels=[0] if y is None else None)
    assert "no unet" in refused(from_diffusers, folder)


@needs_diffusers
def test_guiding_their_model_by_two_evaluations_travels_as_a_script(tmp_path):
    scheduler = ddim(prediction_type="v_prediction")
    denoiser = from_diffusers(tiny_unet(num_class_embeds=4), scheduler, null_class=True)
    pipeline, y = loaded(to_diffusers(denoiser, tmp_path / "p", steps=2, guidance=1.0)), torch.arange(3)
    assert gap(their_images(pipeline, y), ddim_sample(denoiser, noise_of(3), 2, y=y, guidance=1.0)) < BOUND


# --- out: where there is no rddlib -----------------------------------------------------------------------------------

ALONE = """
import sys
sys.modules["rddlib"] = None
import numpy, torch
from diffusers import DiffusionPipeline
for name in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=name != "plain")
    for steps in (2,) if name == "scripted" else (1, 2, 4, 8):
        given = {"batch_size": 3} if name == "plain" else {"class_labels": [0, 1, 2]}
        given |= {} if name == "scripted" else {"num_inference_steps": steps, "use_clipped_model_output": True}
        images = pipeline(**given, generator=torch.Generator().manual_seed(0), output_type="np").images
        numpy.save(f"{name}-{steps}.npy", 2 * images.transpose(0, 3, 1, 2) - 1)
"""


@needs_diffusers
def test_saved_pipelines_need_no_rddlib(tmp_path):
    cases = {
        "plain": (ours(EXPORTS["v"]), {}),
        "labelled": (ours(EXPORTS["guidance of 3"]), {"guidance": 3.0}),
        "scripted": (ours(Export(LABELLED)), {"guidance": 1.5}),
    }
    for name, (denoiser, options) in cases.items():
        to_diffusers(denoiser, tmp_path / name, steps=2, **options)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ALONE, *cases]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in sorted(tmp_path.glob("*.npy")):
        name, steps = path.stem.split("-")
        denoiser, options = cases[name]
        expected = ddim_sample(denoiser, noise_of(3), int(steps), y=labels_of(denoiser), **options)
        assert gap(torch.from_numpy(np.load(path)), expected) < BOUND, path.stem
    assert len(list(tmp_path.glob("*.npy"))) == 9


# --- out: the folder -------------------------------------------------------------------------------------------------

FOLDERS = {
    "plain": (ours, Export({}), {}, {"model_index.json", "unet", "scheduler", "README.md"}),
    "labelled": (
        ours,
        Export(LABELLED),
        {},
        {"model_index.json", "unet", "scheduler", "README.md", "class_pipeline.py"},
    ),
    "scripted": (
        ours,
        Export({"multipliers": (2, 2)}),
        {"steps": 2},
        {"model_index.json", "sampler.ts", "README.md", "scripted_pipeline.py"},
    ),
}


@needs_diffusers
@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_holds_a_card_and_no_pickles(name, tmp_path):
    make, case, options, expected = FOLDERS[name]
    folder = to_diffusers(make(case), tmp_path / "new" / "p", **options)
    assert folder == tmp_path / "new" / "p" and {path.name for path in folder.iterdir()} == expected
    assert [path.name for path in folder.parent.iterdir()] == ["p"]
    assert {path.suffix for path in folder.rglob("*.*")} <= {".json", ".safetensors", ".md", ".py", ".ts"}
    assert (folder / WEIGHTS).exists() == ("unet" in expected)
    front, _, rest = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    assert "library_name: diffusers" in front.splitlines() and "license:" in front and rest.startswith("# p\n")
    for path in folder.glob("*.py"):
        assert "rddlib" not in path.read_text()


@needs_diffusers
@pytest.mark.parametrize("name", FOLDERS)
def test_the_lines_of_the_card_draw_images(name, tmp_path, monkeypatch):
    make, case, options, _ = FOLDERS[name]
    denoiser = make(case)
    text = (to_diffusers(denoiser, tmp_path / "student", **options) / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(lines, found)
    assert [image.size for image in found["images"]] == [(8, 8)] * 4


@needs_diffusers
def test_the_card_is_ours_to_write(tmp_path):
    said = []
    folder = to_diffusers(
        ours(EXPORTS["v"]), tmp_path / "p", steps=2, card=lambda usage: said.append(usage) or "# Mine\n"
    )
    assert (folder / "README.md").read_text().endswith("---\n# Mine\n")
    assert "num_inference_steps=2" in said[0] and 'from_pretrained("p")' in said[0]
    distilled = ours(EXPORTS["v"])
    distilled.steps = 4
    assert "num_inference_steps=4" in (to_diffusers(distilled, tmp_path / "q") / "README.md").read_text()


@needs_diffusers
def test_saving_changes_nothing_of_the_denoiser(tmp_path):
    theirs = from_diffusers(tiny_unet(), ddim())
    for denoiser, options in (
        (ours(Export({"dropout": 0.5})).double().train(), {}),
        (theirs, {}),
        (ours(Export({"multipliers": (2, 2)})).train(), {"steps": 1}),
    ):
        before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        flags = [module.training for module in denoiser.modules()]
        to_diffusers(denoiser, tmp_path / str(len(list(tmp_path.iterdir()))), **options)
        after = denoiser.state_dict()
        assert all(
            torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before
        )
        assert [module.training for module in denoiser.modules()] == flags


@needs_diffusers
def test_an_empty_folder_is_taken_and_a_full_one_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (to_diffusers(ours(EXPORTS["v"]), tmp_path / "empty") / "model_index.json").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file", "empty"):
        assert f"{name} is not empty: choose another one" in refused(to_diffusers, ours(EXPORTS["v"]), tmp_path / name)
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert "cannot write" in refused(to_diffusers, ours(EXPORTS["v"]), tmp_path / "file/p")


class Branching(nn.Module):
    def forward(self, z, t):
        return z if len(z) > 2 else -z


own = lambda: as_denoiser(Own(), CosineSchedule())  # noqa: E731
FAILURES = {
    "no steps for a script": (own, {"image_shape": (3, 8, 8)}, "steps is 0"),
    "too many steps for a script": (own, {"image_shape": (3, 8, 8), "steps": 65}, "steps is 65"),
    "no shape for a script": (own, {"steps": 2}, "pass image_shape"),
    "no trace": (lambda: as_denoiser(Branching(), CosineSchedule()), {"image_shape": (1, 8, 8), "steps": 2}, "traced"),
    "guidance without classes": (
        lambda: ours(Export({})),
        {"guidance": 1.0},
        "unconditional .*; or leave guidance out",
    ),
    "guidance without dropout": (lambda: ours(Export({"num_classes": 5})), {"guidance": 1.0}, "no NO_CLASS; or leave"),
    "no guidance where it is taken": (lambda: ours(Export(GUIDED)), {}, "pass guidance, 0 to 4"),
    "guidance that is no number": (lambda: ours(Export(GUIDED)), {"guidance": math.nan}, "expected a number"),
}


@needs_diffusers
@pytest.mark.parametrize("name", FAILURES)
def test_a_refused_export_leaves_nothing_behind(name, tmp_path):
    make, options, said = FAILURES[name]
    assert re.search(said, refused(to_diffusers, make(), tmp_path / "p", **options))
    assert list(tmp_path.iterdir()) == []


@needs_diffusers
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    from diffusers import DDIMPipeline

    whole = DDIMPipeline.save_pretrained

    def half(self, folder, **options):
        whole(self, folder, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DDIMPipeline, "save_pretrained", half)
    said = refused(to_diffusers, ours(EXPORTS["v"]), tmp_path / "p")
    assert "cannot write" in said and "No space left on device" in said and list(tmp_path.iterdir()) == []


# --- on file ---------------------------------------------------------------------------------------------------------


@needs_diffusers
@pytest.mark.parametrize("classes, null_class", [(None, False), (4, False), (4, True)])
def test_their_model_in_a_checkpoint_of_ours_is_itself_bit_for_bit(classes, null_class, tmp_path):
    scheduler = ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", set_alpha_to_one=False)
    denoiser = from_diffusers(tiny_unet(num_class_embeds=classes), scheduler, null_class=null_class)
    denoiser.steps = 4
    described = json.loads(json.dumps(describe(denoiser)))  # lists for tuples
    save_checkpoint(tmp_path / "m.safetensors", denoiser.state_dict(), {"kind": "pretrained", "model": described})
    found, info = load_denoiser(tmp_path / "m.safetensors")
    assert found.schedule == denoiser.schedule and found.schedule.betas == denoiser.schedule.betas
    assert (found.steps, found.prediction, found.num_classes) == (4, "v", denoiser.num_classes)
    assert found.unconditional == null_class and found.network.config == denoiser.network.config
    before, after = denoiser.state_dict(), found.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    y = labels_of(denoiser)
    assert torch.equal(ddim_sample(found, noise_of(3), 4, y=y), ddim_sample(denoiser, noise_of(3), 4, y=y))
    assert json.loads(json.dumps(describe(found))) == described and info["kind"] == "pretrained" and not found.training
    assert load_model(tmp_path / "m.safetensors")[1] == info


@needs_diffusers
def test_a_described_model_is_built_with_fresh_weights():
    denoiser = from_diffusers(tiny_unet(num_class_embeds=4), ddim(num_train_timesteps=50), null_class=True)
    built = build_described(describe(denoiser))
    assert built.network.facts == denoiser.network.facts and built.schedule == denoiser.schedule
    assert {name: p.shape for name, p in built.state_dict().items()} == {
        name: p.shape for name, p in denoiser.state_dict().items()
    }
    assert built.network.config.label_dropout == LABEL_DROPOUT and built.network.grid == 50
    assert summary(denoiser).startswith("UNet2DModel of diffusers, ") and "3 classes" in summary(denoiser)
    assert describe(as_denoiser(Own(), CosineSchedule())) == {}


@needs_diffusers
def test_a_checkpoint_with_other_tensors_than_it_describes_is_refused(tmp_path):
    denoiser = from_diffusers(tiny_unet(), ddim())
    tensors = denoiser.state_dict()
    tensors.pop("network.unet.conv_in.bias")
    save_checkpoint(tmp_path / "m.safetensors", tensors, {"model": describe(denoiser)})
    assert "holds other tensors" in refused(load_denoiser, tmp_path / "m.safetensors")


@needs_diffusers
def test_a_given_folder_is_known_by_its_content(folder, template, tmp_path):
    (denoiser, info), (_, same) = load_model(folder), load_model(str(template))
    assert info["kind"] == "pretrained" and info["source"] == {"name": "ddpm", "made_by": "diffusers"}
    assert info["model"] == describe(denoiser) and re.fullmatch("[0-9a-f]{64}", info["sha256"])
    assert same["sha256"] == info["sha256"]
    folder.rename(tmp_path / "moved")
    assert load_model(tmp_path / "moved")[1]["sha256"] == info["sha256"]
    edit(tmp_path / "moved/scheduler/scheduler_config.json", beta_end=0.03)
    other = load_model(tmp_path / "moved")[1]["sha256"]
    weights(tmp_path / "moved", lambda tensors: tensors["conv_in.bias"].add_(1e-3))
    assert len({info["sha256"], other, load_model(tmp_path / "moved")[1]["sha256"]}) == 3


@needs_diffusers
def test_a_part_of_a_folder_is_refused_with_the_whole(folder):
    assert "name its pipeline's folder" in refused(load_model, folder / WEIGHTS)
    assert "is a folder" in refused(load_classifier, folder)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    denoiser = ours(EXPORTS["v"])
    for damage in (
        {"unet": {"width": 3}},
        {"unet": None},
        {"schedule": "linear"},
        {"prediction": "score"},
        {"unet": ...},
    ):
        model = {name: value for name, value in {**describe(denoiser), **damage}.items() if value is not ...}
        save_checkpoint(tmp_path / "m.safetensors", denoiser.state_dict(), {"model": model})
        assert "unknown to this version" in refused(load_denoiser, tmp_path / "m.safetensors")


def test_no_model_and_no_model_file(tmp_path):
    assert "no model at" in refused(load_model, tmp_path / "absent")
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, tmp_path / "m.pt")
    assert "could run code; nothing of it was run" in refused(load_model, tmp_path / "m.pt")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "m.safetensors").write_bytes(bytes(range(256)))
    for name in ("noise.bin", "m.safetensors"):
        assert "is damaged" in refused(load_model, tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("map_at", ["conv", "relu"])
def test_an_extractor_s_checkpoint_is_read(map_at, tmp_path):
    made = shaken(build_extractor("small_resnet", 3, 7, map_at))
    facts = {"extractor": {"name": "small_resnet"}}
    checksum = save_checkpoint(tmp_path / "e.safetensors", made.state_dict(), {"kind": "extractor", "facts": facts})
    found, info = load_classifier(tmp_path / "e.safetensors", map_at)
    assert info == {"name": "small_resnet", "sha256": checksum} and not found.training
    assert not any(p.requires_grad for p in found.parameters()) and found.map_at == map_at
    images = noise_of(2, (3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(found(images), made(images), strict=True))


def test_what_is_no_extractor_is_refused(tmp_path):
    denoiser = ours(EXPORTS["v"])
    save_checkpoint(tmp_path / "d.safetensors", denoiser.state_dict(), {"kind": "base", "model": describe(denoiser)})
    assert "holds no extractor but base" in refused(load_classifier, tmp_path / "d.safetensors")
    torch.save({"model": Bomb(tmp_path / "exploded")}, tmp_path / "c.pt")
    assert "could run code" in refused(load_classifier, tmp_path / "c.pt")
    assert not (tmp_path / "exploded").exists()
    for name in ("absent.pt", "absent.safetensors"):
        assert "absent" in refused(load_classifier, tmp_path / name)
    save_checkpoint(
        tmp_path / "e.safetensors", build_extractor("small_resnet", 1, 10).state_dict(), {"kind": "extractor"}
    )
    assert "holds no denoiser but extractor" in refused(load_model, tmp_path / "e.safetensors")
