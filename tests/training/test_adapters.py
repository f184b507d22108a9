"""Students that learn low-rank adapters alone: what is trained, what is shared, and what they are once merged."""

import copy
import re
import sys
from dataclasses import replace

import pytest
import torch
from tiny import randomised, refused, same

from rddlib.data import ImageDataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.objectives import PD
from rddlib.distillation.train import distill
from rddlib.study.graph import build_denoiser, check_adapters
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study
from rddlib.training import RunConfig, TrainConfig, Trainer
from rddlib.training.adapters import adapted
from rddlib.utils.errors import UserError

pytest.importorskip("peft", reason="adapters need peft: pip install 'rddlib[lora]'")
RANK, PROJECTIONS = 2, ("attention.qkv.weight", "attention.proj.weight")
CONFIG = TrainConfig(4, 4, 1e-2)


def filled(denoiser):
    """With random weights everywhere: an untrained network's last layers are zero, and would teach the others nothing."""
    torch.manual_seed(0)
    return randomised(denoiser, 0.1).eval().requires_grad_(False)


@pytest.fixture
def teacher():
    """With attention at both resolutions."""
    unet = UNet(UNetConfig(8, 1, 8, (1, 2), 1, attention=(8, 4), groups=4))
    return filled(Denoiser(unet, CosineSchedule(), "v"))


@pytest.fixture
def images():
    return ImageDataset("images", torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), torch.zeros(16), 0)


def halved(teacher, images, **options):
    trainer = Trainer(CONFIG, 0, "test", lora=RANK, **options)
    return distill(teacher, images, 2, PD(teacher.schedule), trainer)


def test_projections_alone_change_and_by_no_more_than_their_rank(teacher, images):
    before = copy.deepcopy(teacher).state_dict()
    student = halved(teacher, images).state_dict()
    assert student.keys() == before.keys()
    changed = [name for name in before if not torch.equal(before[name], student[name])]
    assert changed and changed == [name for name in before if name.endswith(PROJECTIONS)]
    for name in changed:
        assert torch.linalg.matrix_rank((student[name] - before[name]).flatten(1), rtol=1e-4) == RANK
    assert same(before, teacher)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_weights_are_shared_while_it_trains_and_the_merged_student_computes_the_same(teacher, ema):
    held = []

    def loss(model, step):
        held[:] = [model]
        return model(torch.ones(4, 1, 8, 8), 0.5).square().mean(), {}

    trained = Trainer(replace(CONFIG, ema=ema), 0, lora=RANK).fit(teacher, loss, 16)
    parameters = dict(held[0].named_parameters())
    own = {parameter.data_ptr() for parameter in teacher.parameters()}
    learnt = [name for name, parameter in parameters.items() if parameter.data_ptr() not in own]
    assert len(parameters) - len(learnt) == len(own) and all("lora_" in name for name in learnt)
    assert not own & {parameter.data_ptr() for parameter in trained.parameters()}
    z = torch.randn(2, 1, 8, 8)
    same = torch.allclose(trained(z, 0.5), held[0](z, 0.5), atol=1e-5)
    assert same == (ema == 0) and not torch.allclose(trained(z, 0.5), teacher(z, 0.5), atol=1e-3)


def test_a_killed_run_ends_with_the_same_bits(teacher, images, tmp_path):
    options = {"files": tmp_path / "run", "run": RunConfig(save_every=0, keep=9)}
    whole = halved(teacher, images, **options)
    for step in (3, 4):
        (tmp_path / f"run.{step:08d}.resume").unlink()
    assert same(halved(teacher, images, **options), whole)


def test_a_study_s_students_learn_them(tmp_path):
    profile = load_profile("digits", {"distill.lora": str(RANK)})
    stage, teacher = Study(profile, tmp_path).stages.student("pd", 4, 0), filled(build_denoiser(profile))
    student, _ = stage.fit(stage.trainer(replace(CONFIG, iterations=2)), teacher)
    before, after = teacher.state_dict(), student.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(name.endswith(PROJECTIONS) for name in changed)


def test_what_cannot_be_adapted_is_said_before_anything_is_trained(monkeypatch):
    with pytest.raises(UserError, match="no attention projections to adapt: leave lora out"):
        adapted(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)), RANK)
    check_adapters(load_profile("digits", {"distill.lora": "4"}))
    monkeypatch.setitem(sys.modules, "peft", None)
    check_adapters(load_profile("digits"))
    assert re.search(r"rddlib\[lora\]", refused(check_adapters, load_profile("digits", {"distill.lora": "4"})))
