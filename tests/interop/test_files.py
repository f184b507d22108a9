"""Any file that a model may come in: known by its content, refused in a line where it is something else or damaged."""

import json
import re

import pytest
import torch
from small_models import ddim, edit, noise_of, ours, own, shaken, unet2d
from tiny import Bomb, needs_diffusers, quiet, refused

from rddlib.diffusion.model_file import build_described, describe, load_denoiser, summary
from rddlib.distillation.extractor import build_extractor
from rddlib.interop import from_diffusers, load_classifier, load_model
from rddlib.utils.checkpoint import save_checkpoint

pytestmark = quiet


@needs_diffusers
def test_a_given_folder_is_known_by_its_content(folder, tmp_path):
    denoiser, info = load_model(folder)
    assert info["kind"] == "pretrained" and info["source"] == {"name": "ddpm", "made_by": "diffusers"}
    assert info["model"] == describe(denoiser) and re.fullmatch("[0-9a-f]{64}", info["sha256"])
    moved = folder.rename(tmp_path / "moved")
    assert load_model(str(moved))[1]["sha256"] == info["sha256"]
    edit(moved / "scheduler/scheduler_config.json", beta_end=0.03)
    assert load_model(moved)[1]["sha256"] != info["sha256"]


@needs_diffusers
def test_a_part_of_a_folder_is_refused_with_the_whole(folder):
    assert "name its pipeline's folder" in refused(load_model, folder / "unet/diffusion_pytorch_model.safetensors")
    assert "is a folder" in refused(load_classifier, folder)


@needs_diffusers
def test_a_described_model_is_built_with_fresh_weights():
    denoiser = from_diffusers(unet2d(num_class_embeds=4), ddim(num_train_timesteps=50), null_class=True)
    built = build_described(json.loads(json.dumps(describe(denoiser))))
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (built, denoiser)]
    assert shapes[0] == shapes[1] and built.schedule == denoiser.schedule and built.network.grid == 50
    assert built.network.config == denoiser.network.config and built.unconditional
    assert summary(denoiser).startswith("UNet2DModel of diffusers, ") and "3 classes" in summary(denoiser)
    assert describe(own()) == {}


def test_a_checkpoint_of_another_version_or_with_other_tensors_is_refused(tmp_path):
    denoiser, path = ours(), tmp_path / "m.safetensors"
    for damage in ({"unet": {"width": 3}}, {"unet": None}, {"schedule": "linear"}, {"prediction": "score"}):
        save_checkpoint(path, denoiser.state_dict(), {"model": {**describe(denoiser), **damage}})
        assert "unknown to this version" in refused(load_denoiser, path)
    save_checkpoint(path, {"other": torch.zeros(1)}, {"model": describe(denoiser)})
    assert "holds other tensors" in refused(load_denoiser, path)


def test_no_model_and_no_model_file(tmp_path):
    for load in (load_model, load_classifier):
        for name in ("absent", "absent.safetensors"):
            assert "absent" in refused(load, tmp_path / name)
        torch.save({"net_model": Bomb(tmp_path / "exploded")}, tmp_path / "m.pt")
        assert "could run code; nothing of it was run" in refused(load, tmp_path / "m.pt")
        for name in ("noise.bin", "m.safetensors"):
            (tmp_path / name).write_bytes(bytes(range(256)))
            assert re.search("is damaged .*: get it again|: get or make it again", refused(load, tmp_path / name))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("map_at", ["conv", "relu"])
def test_an_extractor_s_checkpoint_is_read(map_at, tmp_path):
    made, path = shaken(build_extractor("small_resnet", 3, 7, map_at)), tmp_path / "e.safetensors"
    facts = {"extractor": {"name": "small_resnet"}}
    checksum = save_checkpoint(path, made.state_dict(), {"kind": "extractor", "facts": facts})
    found, info = load_classifier(path, map_at)
    assert info == {"name": "small_resnet", "sha256": checksum} and not found.training
    assert not any(p.requires_grad for p in found.parameters()) and found.map_at == map_at
    images = noise_of(2, (3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(found(images), made(images), strict=True))


def test_what_is_no_extractor_is_refused(tmp_path):
    denoiser, extractor = tmp_path / "d.safetensors", tmp_path / "e.safetensors"
    save_checkpoint(denoiser, ours().state_dict(), {"kind": "base", "model": describe(ours())})
    assert "holds no extractor but base" in refused(load_classifier, denoiser)
    facts = {"extractor": {"name": "a later one"}}
    save_checkpoint(extractor, {"fc.bias": torch.zeros(10)}, {"kind": "extractor", "facts": facts})
    assert "holds no denoiser but extractor" in refused(load_model, extractor)
    assert "holds an extractor that this version does not know" in refused(load_classifier, extractor)
