"""Models of diffusers against diffusers' own pipelines and schedulers, and their folders; nothing in these may be run."""

import errno
import re
import runpy
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import BOUND, LABELLED, ddim, edit, gap, loaded, noise_of, ours, unet2d
from tiny import Bomb, needs_diffusers, quiet, refused, same
from torch import nn

from rddlib.diffusion.model_file import build_described
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.unet import NO_CLASS
from rddlib.interop import from_diffusers, load_model, to_diffusers

pytestmark = [needs_diffusers, *quiet]
INDEX, NETWORK, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def weights(folder, change):
    """Change the dict of tensors of a pipeline's folder."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# --- in: the same images as their own pipeline -----------------------------------------------------------------------


def theirs(unet, scheduler, steps, clip):
    """Three images of DDIMPipeline, before it holds them in [0, 1]."""
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline(unet, type(scheduler).from_config(scheduler.config, clip_sample=clip))
    pipeline.set_progress_bar_config(disable=True)
    step, seen = pipeline.scheduler.step, []
    pipeline.scheduler.step = lambda *inputs, **options: seen.append(step(*inputs, **options)) or seen[-1]
    generator = torch.Generator().manual_seed(0)
    pipeline(batch_size=3, generator=generator, num_inference_steps=steps, use_clipped_model_output=True)
    assert len(seen) == steps
    return seen[-1].prev_sample.clamp(-1, 1) if clip else seen[-1].prev_sample


TABLE = (0.02 * torch.rand(50, generator=torch.Generator().manual_seed(1))).tolist()
SCHEDULERS = [
    ("epsilon", 1000, {"beta_schedule": "linear"}),
    ("epsilon", 50, {"trained_betas": TABLE}),
    ("sample", 1000, {"beta_schedule": "squaredcos_cap_v2"}),
    ("sample", 50, {"rescale_betas_zero_snr": True}),
    ("v_prediction", 1000, {"rescale_betas_zero_snr": True}),
    ("v_prediction", 50, {"beta_schedule": "scaled_linear"}),
]


@pytest.mark.parametrize("last", [True, False], ids=["to one", "to the cleanest index"])
@pytest.mark.parametrize("prediction, size, betas", SCHEDULERS)
def test_few_steps_draw_the_images_of_their_pipeline(prediction, size, betas, last):
    unet = unet2d()
    scheduler = ddim(prediction_type=prediction, num_train_timesteps=size, set_alpha_to_one=last, **betas)
    denoiser = from_diffusers(unet, scheduler)
    end = 1.0 if last else 1 - float(scheduler.betas[0])
    assert float(denoiser.schedule.alpha(0.0)) ** 2 == pytest.approx(end, abs=1e-6) and not denoiser.training
    for steps in (1, 2, 5):
        for clip in (False, True):
            images = ddim_sample(denoiser, noise_of(3), steps, clip=clip)
            assert gap(images, theirs(unet, scheduler, steps, clip)) < BOUND, (steps, clip)


def test_the_schedule_is_their_product_of_alphas():
    scheduler = ddim(beta_schedule="scaled_linear", num_train_timesteps=1000)
    schedule = from_diffusers(unet2d(), scheduler).schedule
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    expected = scheduler.betas.double().neg().add(1).cumprod(0)
    torch.testing.assert_close(schedule.alpha(times).square(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-5, atol=0)  # as diffusers rounds it


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_schedulers_of_the_same_kind_give_the_same_denoiser(name):
    import diffusers

    same = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    expected = from_diffusers(unet2d(), ddim(set_alpha_to_one=name != "PNDMScheduler", **same))
    found = from_diffusers(unet2d(), getattr(diffusers, name)(**same))
    assert found.schedule == expected.schedule and found.prediction == expected.prediction == "v"


def test_a_pipeline_without_sub_folders_as_the_first_published_ones_is_read(folder, tmp_path):
    """All files beside model_index.json, the network under its first name, as diffusers still loads them."""
    expected, flat = from_diffusers(folder), tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            shutil.copy(file, flat / file.name)
    for name in ("config.json", "model_index.json"):
        (flat / name).write_text((flat / name).read_text().replace("UNet2DModel", "UNetUnconditionalModel"))
    found = from_diffusers(flat)
    assert same(found, expected) and found.schedule == expected.schedule


def test_weights_that_lie_there_as_a_variant_alone_are_read(folder):
    """Many a repository has its fp16 files only, which diffusers loads by their variant's name."""
    expected, whole = from_diffusers(folder), folder / WEIGHTS
    variant = whole.rename(whole.with_suffix(".fp16.safetensors"))
    assert same(from_diffusers(folder), expected)
    shutil.copy(variant, whole)
    weights(folder, lambda tensors: tensors.update({name: 2 * tensor for name, tensor in tensors.items()}))
    assert not same(from_diffusers(folder), expected)  # whole files go first


def test_a_network_alone_is_read_with_the_scheduler_beside_it(folder):
    unet = folder / "unet"
    assert "put the scheduler_config.json" in refused(from_diffusers, unet)
    shutil.copy(folder / SCHEDULER, unet)
    found, expected = from_diffusers(unet), from_diffusers(folder)
    assert same(found, expected) and found.schedule == expected.schedule


@pytest.mark.parametrize(
    ("said", "prediction"),
    [
        ({}, "eps"),
        ({"predict_epsilon": False}, "x"),
        ({"predict_epsilon": True}, "eps"),
        ({"predict_epsilon": True, "prediction_type": "v_prediction"}, "v"),
    ],
)
def test_what_old_schedulers_say_of_the_prediction_counts(folder, said, prediction):
    edit(folder / "scheduler/scheduler_config.json", **said)
    assert from_diffusers(folder).prediction == prediction


def test_a_network_that_cannot_take_its_own_images_is_refused_at_the_door():
    """28 pixels do not survive three halvings and doublings."""
    levels = dict(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4
    )
    said = refused(from_diffusers, unet2d(sample_size=28, **levels), ddim())
    assert re.search(r"cannot take images of 1x28x28, .*: correct its sample_size", said)
    said = refused(from_diffusers, unet2d(sample_size=(32, 28), **levels), ddim())
    assert "cannot take images of 1x32x28, " in said


def test_the_dry_run_is_made_where_the_network_lies():
    with pytest.raises(RuntimeError, match="meta"):  # reading a value, after the network itself has run there
        from_diffusers(unet2d().to("meta"), ddim())


def test_every_form_of_one_model_is_the_same_denoiser(tmp_path):
    from diffusers import DDIMPipeline

    unet, scheduler = unet2d(), ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipeline, folder = DDIMPipeline(unet, scheduler), tmp_path / "all"
    pipeline.save_pretrained(folder)
    forms = [
        from_diffusers(unet, scheduler),
        from_diffusers(pipeline),
        from_diffusers(folder),
        from_diffusers(str(folder / "unet"), str(folder / "scheduler")),
        from_diffusers(folder / "unet", scheduler),
        from_diffusers(unet, folder / "scheduler"),
    ]
    for form in forms:
        assert same(form, forms[0])
        assert form.schedule == forms[0].schedule and form.prediction == "v" and form.steps == 0
        assert not any(p.requires_grad for p in form.parameters())
    other = from_diffusers(folder, ddim(num_train_timesteps=50, prediction_type="sample"))
    assert other.schedule.steps == 50 and other.prediction == "x"  # what is passed takes the place of the folder's own


def test_what_is_given_stays_as_it_was_and_is_computed_in_single_precision():
    from diffusers import DDIMPipeline

    unet = unet2d().half().train().requires_grad_(True)
    for denoiser in (from_diffusers(unet, ddim()), from_diffusers(DDIMPipeline(unet, ddim()))):
        assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
        denoiser.network.unet.conv_in.weight.zero_()
    assert all(module.training for module in unet.modules()) and all(p.requires_grad for p in unet.parameters())
    assert (unet.conv_in.weight != 0).any() and unet.dtype == torch.float16


# --- in: classes and times -------------------------------------------------------------------------------------------


@torch.no_grad()
def looped(scheduler, noise, steps, predict):
    """Their scheduler's images of predict(z, index)."""
    scheduler.set_timesteps(steps)
    z = noise
    for index in scheduler.timesteps:
        z = scheduler.step(predict(z, index), index, z, use_clipped_model_output=True).prev_sample
    return z.clamp(-1, 1)


def test_classes_and_guidance_against_a_loop_over_their_scheduler():
    unet, scheduler, y = unet2d(num_class_embeds=4), ddim(), torch.tensor([2, 0, 1])
    plain, guidable = from_diffusers(unet, scheduler), from_diffusers(unet, scheduler, null_class=True)
    assert (plain.num_classes, plain.unconditional) == (4, False)
    assert (guidable.num_classes, guidable.unconditional) == (3, True)
    answer = lambda z, i, y: unet(z, i, class_labels=y, return_dict=False)[0]  # noqa: E731
    last, none = torch.full_like(y, 3), torch.full_like(y, NO_CLASS)
    asked = [
        (plain, y, None, lambda z, i: answer(z, i, y)),
        (plain, last, None, lambda z, i: answer(z, i, last)),
        (guidable, y, None, lambda z, i: answer(z, i, y)),
        (guidable, none, None, lambda z, i: answer(z, i, last)),
        (guidable, y, 1.5, lambda z, i: 2.5 * answer(z, i, y) - 1.5 * answer(z, i, last)),
    ]
    for denoiser, labels, w, predict in asked:
        images = ddim_sample(denoiser, noise_of(3), 4, y=labels, guidance=w)
        assert gap(images, looped(scheduler, noise_of(3), 4, predict)) < BOUND


def test_labels_are_asked_for_exactly_where_there_are_classes():
    z, y, conditional = noise_of(2), torch.tensor([0, 1]), from_diffusers(unet2d(num_class_embeds=4), ddim())
    with pytest.raises(ValueError, match="class-conditional: pass labels y"):
        conditional(z, 0.5)
    with pytest.raises(ValueError, match="cannot be guided"):
        conditional(z, 0.5, y, 1.0)
    with pytest.raises(ValueError, match="takes no labels y"):
        from_diffusers(unet2d(), ddim())(z, 0.5, y)


def recorded_times(denoiser):
    """A list that the time of each of the network's calls is put in."""
    seen = []
    denoiser.network.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    return seen


def test_the_network_is_asked_at_their_index():
    size = 50
    denoiser = from_diffusers(unet2d(), ddim(num_train_timesteps=size))
    seen, indices = recorded_times(denoiser), torch.arange(size)
    denoiser(torch.zeros(size, 1, 8, 8), (indices + 1).double() / size)
    assert torch.equal(seen[0].float(), indices.float())
    denoiser(torch.zeros(size - 1, 1, 8, 8), (indices[1:] + 0.5).double() / size)
    torch.testing.assert_close(seen[1].double(), indices[1:] - 0.5, rtol=0, atol=1e-9, check_dtype=False)
    denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 0.5 / size], dtype=torch.float64))
    assert seen[2].tolist() == [0, 0]  # the cleanest index, beyond which there is none


def test_learned_times_are_rows_of_a_table():
    unet = unet2d(time_embedding_type="learned", num_train_timesteps=50)
    denoiser = from_diffusers(unet, ddim(num_train_timesteps=50))
    seen = recorded_times(denoiser)
    denoiser(torch.zeros(51, 1, 8, 8), torch.arange(51).double() / 50)
    assert seen[0].dtype == torch.int64 and seen[0].tolist() == [0, *range(50)]
    assert "knows 50 times, its scheduler has 1000" in refused(from_diffusers, unet, ddim())


# --- in: what is refused ---------------------------------------------------------------------------------------------


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def changed(file, **changes):
    return lambda folder: edit(folder / file, **changes)


DAMAGES = {  # what is done to the folder, and what is said of it
    "a vae": (
        changed(INDEX, vae=["diffusers", "AutoencoderKL"]),
        "has a vae and is no latent pipeline of a known kind",
    ),
    "another network in the index": (
        changed(INDEX, unet=["diffusers", "UNet2DConditionModel"]),
        "UNet2DConditionModel for its network",
    ),
    "another network in its folder": (changed(NETWORK, _class_name="Other"), "holds a Other"),
    "no network": (changed(INDEX, unet=...), "no unet"),
    "a number for a network": (changed(INDEX, unet=5), "has 5 for its network"),
    "another width": (changed(NETWORK, block_out_channels=[8, 32]), "cannot be read as a UNet2DModel"),
    "truncated weights": (lambda f: cut(f / WEIGHTS, 5000), "cannot be read as a UNet2DModel"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot be read as a UNet2DModel"),
    "a pipeline for a scheduler": (changed(SCHEDULER, _class_name="DDIMPipeline"), "names the scheduler DDIMP"),
    "an unknown scheduler": (changed(SCHEDULER, _class_name="NoScheduler"), "names the scheduler NoScheduler"),
    "a list for a scheduler": (changed(SCHEDULER, _class_name=["DDIMScheduler"]), "names the scheduler"),
    "another diffusion": (
        changed(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        "of another kind of diffusion",
    ),
    "another prediction": (changed(SCHEDULER, prediction_type="flow"), "prediction_type flow"),
    "a list for a prediction": (changed(SCHEDULER, prediction_type=["epsilon"]), "prediction_type"),
    "epsilon of pure noise": (changed(SCHEDULER, rescale_betas_zero_snr=True), "ends in pure noise"),
    "a model of few steps": (changed(SCHEDULER, _class_name="LCMScheduler"), "LCMScheduler is for models .* few steps"),
    "betas that are none": (changed(SCHEDULER, _class_name="IPNDMScheduler"), "no alphas that follow from its betas"),
    "alphas that are shifted": (
        changed(SCHEDULER, _class_name="CogVideoXDDIMScheduler"),
        "no alphas that follow from its betas",
    ),
    "an unknown table of betas": (changed(SCHEDULER, beta_schedule="odd"), "cannot be read as a DDPMScheduler"),
    "betas above 1": (changed(SCHEDULER, trained_betas=[2.0, 0.1]), "is no schedule of a diffusion"),
    "half an index": (lambda f: cut(f / INDEX, 30), "model_index.json is missing or damaged"),
    "an index of bytes": (lambda f: (f / INDEX).write_bytes(b"\xff\xfe\x00"), "model_index.json is missing or damaged"),
    "an index that is a list": (lambda f: (f / INDEX).write_text("[]"), "model_index.json is damaged"),
    "no folder of the scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "no index": (lambda f: (f / INDEX).unlink(), "holds no diffusers model"),
    "no folder": (shutil.rmtree, "holds no diffusers model"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_folders_of_other_models_and_damaged_ones_are_refused(name, folder):
    damage, said = DAMAGES[name]
    damage(folder)
    assert re.search(said, refused(from_diffusers, folder))


@pytest.mark.parametrize(
    "changes, left",
    [
        ({"thresholding": True}, "thresholding"),
        ({"clip_sample_range": 3.0}, "clip_sample_range 3.0"),
        ({"clip_sample_range": 3.0, "clip_sample": False}, ""),
    ],
)
def test_what_a_scheduler_does_beside_its_betas_is_left_out_in_a_line(changes, left, folder, capsys):
    edit(folder / SCHEDULER, **changes)
    from_diffusers(folder)
    said = capsys.readouterr().err
    assert f"DDPMScheduler: {left} left out" in said if left else "left out" not in said


def test_a_checkpoint_of_a_training_script_is_refused_with_the_networks_in_it(folder, tmp_path):
    checkpoint = tmp_path / "checkpoint-500"
    for name in ("unet", "unet_ema"):
        shutil.copytree(folder / "unet", checkpoint / name)
    (checkpoint / "vae").mkdir()
    (checkpoint / "vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (checkpoint / "optimizer.bin").write_bytes(b"")
    assert refused(from_diffusers, checkpoint).endswith(f": name {checkpoint}/unet_ema or {checkpoint}/unet")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"out_channels": 2}, "makes 2 channels of 1: .*without a variance"),
        ({"sample_size": (8, 4, 2)}, "has sample_size .8, 4, 2.: set it to"),
        ({"sample_size": (8, 0)}, "has sample_size .8, 0.: set it to"),
        ({"sample_size": None}, "has sample_size None: set it to"),
        ({"time_embedding_type": "fourier"}, "takes fourier times"),
        ({"class_embed_type": "timestep"}, "classes are of the type timestep"),
    ],
)
def test_networks_that_are_no_denoisers_are_refused(changes, said):
    assert re.search(said, refused(from_diffusers, unet2d(**changes), ddim()))


@pytest.mark.parametrize("name", ["KarrasVeScheduler", "DPMSolverSDEScheduler"])
def test_schedulers_that_diffusers_only_names_are_refused_or_read(name, folder):
    """Without what they need, diffusers has a stand-in under their name."""
    edit(folder / SCHEDULER, _class_name=name)
    try:
        found = from_diffusers(folder)
    except Exception:
        assert "scheduler" in refused(from_diffusers, folder)
    else:
        assert found.schedule.steps == 1000


def test_objects_of_other_kinds_are_refused(folder):
    for source in (None, nn.Conv2d(1, 1, 1), SimpleNamespace(scheduler=None)):
        assert "expected a UNet2DModel" in refused(from_diffusers, source)
    for source in (unet2d(), folder / "unet"):
        assert "does not say its betas: name its pipeline" in refused(from_diffusers, source)
    for classes in (None, 1):
        unet = unet2d(num_class_embeds=classes)
        assert "leave null_class out" in refused(from_diffusers, unet, ddim(), null_class=True)


def test_missing_and_foreign_tensors_are_listed_up_to_ten(folder):
    names, extra = sorted(load_file(folder / WEIGHTS))[:12], [f"extra_{k:02}" for k in range(3)]
    weights(folder, lambda tensors: [tensors.pop(name) for name in names])
    lacking = f"it lacks {', '.join(names[:10])} and 2 more"
    assert refused(from_diffusers, folder).endswith(lacking)
    weights(folder, lambda tensors: tensors.update({name: torch.zeros(1) for name in extra}))
    assert refused(from_diffusers, folder).endswith(f"{lacking}; it has, beyond its own, {', '.join(extra)}")


def test_without_diffusers_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text("{}")
    calls = [
        lambda: from_diffusers(tmp_path),
        lambda: from_diffusers(nn.Conv2d(1, 1, 1)),
        lambda: to_diffusers(ours(), tmp_path / "new"),
        lambda: build_described({"diffusers": {"config": {}}}),
    ]
    for call in calls:
        assert re.search(r"needs diffusers.*: pip install 'rddlib\[baselines\]'$", refused(call))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# --- in: nothing is run, nothing downloaded --------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_of_weights_is_not_run(zipped, folder, tmp_path):
    expected = from_diffusers(folder)
    tensors, place = load_file(folder / WEIGHTS), (folder / WEIGHTS).with_suffix(".bin")
    (folder / WEIGHTS).unlink()
    bomb = {**tensors, "bomb": Bomb(tmp_path / "exploded")}
    torch.save(bomb, place, _use_new_zipfile_serialization=zipped)
    assert "cannot be read as a UNet2DModel" in refused(from_diffusers, folder)
    assert not (tmp_path / "exploded").exists()
    torch.load(place, weights_only=False)  # and it would have exploded
    assert (tmp_path / "exploded").exists()
    torch.save(tensors, place, _use_new_zipfile_serialization=zipped)
    assert same(from_diffusers(folder), expected)  # one of tensors alone is read


def test_code_of_the_folder_is_not_imported(folder, tmp_path):
    expected, ran = from_diffusers(folder), tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Own: pass\n"
    places = [folder / "own.py", folder / "unet/own.py", folder / "scheduler/own.py", folder / "unet.py"]
    for place in places:
        place.write_text(code)
    edit(folder / INDEX, _class_name=["own", "Own"], scheduler=["own", "Own"])
    edit(folder / NETWORK, auto_map={"AutoModel": "own.Own"})
    assert same(from_diffusers(folder), expected)
    edit(folder / INDEX, unet=["own", "Own"])
    refused(from_diffusers, folder)
    edit(folder / INDEX, unet=["diffusers", "UNet2DModel"])
    for name in (["own", "Own"], "own.OwnScheduler", "OwnScheduler"):
        edit(folder / SCHEDULER, _class_name=name)
        refused(from_diffusers, folder)
    assert not ran.exists()
    runpy.run_path(str(places[0]))  # and it would have been seen
    assert ran.exists()


def test_nothing_is_downloaded(folder, monkeypatch):
    asked = []

    def refuse(*inputs, **options):
        asked.append(inputs)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (folder / WEIGHTS).unlink()
    refused(from_diffusers, folder)
    for name in ("google/ddpm-cifar10-32", "https://example.org/google/ddpm-cifar10-32"):
        refused(from_diffusers, name)
        refused(load_model, name)
    assert asked == []


# --- out: the folder; its images are in test_round_trips -------------------------------------------------------------


def test_a_pipeline_of_ours_says_whether_its_last_class_is_none(tmp_path):
    dropped, plain = (
        to_diffusers(ours(**config), tmp_path / str(len(config))) for config in (LABELLED, {"num_classes": 5})
    )
    for place in (dropped, loaded(dropped)):
        found, asked = from_diffusers(place), from_diffusers(place, null_class=False)
        assert (found.num_classes, found.unconditional) == (5, True)
        assert (asked.num_classes, asked.unconditional) == (6, False)
    edit(plain / INDEX, null_class="yes")  # no such word
    assert not from_diffusers(plain).unconditional


@pytest.mark.parametrize("classes", [None, 4])
def test_their_model_through_us_is_theirs_again(classes, tmp_path):
    unet, scheduler = unet2d(num_class_embeds=classes), ddim(prediction_type="v_prediction", set_alpha_to_one=False)
    again = from_diffusers(to_diffusers(from_diffusers(unet, scheduler), tmp_path / "p"))
    assert same(again.network.unet, unet) and again.prediction == "v"
    torch.testing.assert_close(torch.tensor(again.schedule.betas)[1:], scheduler.betas[1:], rtol=0, atol=1e-6)


FOLDERS = {
    "plain": ({}, {}, {"unet", "scheduler"}),
    "labelled": (LABELLED, {}, {"unet", "scheduler", "class_pipeline.py"}),
    "scripted": ({"multipliers": (2, 2)}, {"steps": 2}, {"sampler.ts", "scripted_pipeline.py"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_holds_no_pickles_and_a_card_whose_lines_draw(name, tmp_path, monkeypatch):
    config, options, parts = FOLDERS[name]
    folder = to_diffusers(ours(**config), tmp_path / "new" / "p", **options)
    assert folder == tmp_path / "new" / "p" and [path.name for path in folder.parent.iterdir()] == ["p"]
    assert {path.name for path in folder.iterdir()} == {INDEX, "README.md", *parts}
    assert {path.suffix for path in folder.rglob("*.*")} <= {".json", ".safetensors", ".md", ".py", ".ts"}
    assert not any("rddlib" in path.read_text() for path in folder.glob("*.py"))
    front, _, rest = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    assert "library_name: diffusers" in front.splitlines() and "license:" in front and rest.startswith("# p\n")
    (lines,) = re.findall(r"```python\n(.*?)\n```", rest, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    found = {}
    exec(lines, found)
    assert [image.size for image in found["images"]] == [(8, 8)] * 4


def test_the_card_is_ours_to_write(tmp_path):
    said, denoiser = [], ours()
    denoiser.steps = 4
    folder = to_diffusers(denoiser, tmp_path / "p", steps=2, card=lambda usage: said.append(usage) or "# Mine\n")
    assert (folder / "README.md").read_text().endswith("---\n# Mine\n")
    assert "num_inference_steps=2" in said[0] and 'from_pretrained("p")' in said[0]
    assert "num_inference_steps=4" in (to_diffusers(denoiser, tmp_path / "q") / "README.md").read_text()


def test_an_empty_folder_is_taken_and_a_full_one_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (to_diffusers(ours(), tmp_path / "empty") / INDEX).exists()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in ("empty", "file"):
        assert f"{name} is not empty: choose another one" in refused(to_diffusers, ours(), tmp_path / name)
    assert "cannot write" in refused(to_diffusers, ours(), tmp_path / "file/p")
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", [OSError, SafetensorError])  # who notices: the system, or the library that writes
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, kind):
    from diffusers import DDIMPipeline

    whole = DDIMPipeline.save_pretrained

    def half(self, folder, **options):
        whole(self, folder, **options)
        raise kind(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DDIMPipeline, "save_pretrained", half)
    said = refused(to_diffusers, ours(), tmp_path / "p")
    assert "cannot write" in said and "No space left on device" in said and list(tmp_path.iterdir()) == []
