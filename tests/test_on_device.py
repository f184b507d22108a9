"""The same numbers on every device: each test compares with float64 or with the CPU. `make test-gpu` runs the GPU's alone."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import QUEUE, conditional_denoiser, tiny_denoiser

from rddlib.data import load_dataset
from rddlib.diffusion.sampling import ddim_sample, stochastic_sample, two_step_target
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import TERMS, Sum, Term
from rddlib.distillation.pixel_queue import PixelQueue
from rddlib.distillation.train import distill, train_base
from rddlib.evaluation import evaluate
from rddlib.losses import ii_p2p_loss, is_p2p_loss, m_p2p_loss
from rddlib.methods import build_objective
from rddlib.study.profiles import load_profile
from rddlib.training import Checkpoints, RunConfig, TrainConfig, Trainer, training_device
from rddlib.utils.checkpoint import load_checkpoint

DIGITS = load_dataset("digits")
FORMS = {"cpu": ("reference", "chunked"), "cuda": ("reference", "chunked", "fused")}


def on(device, *values):
    return [value.to(device) for value in values]


def value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    return value.detach().cpu(), torch.autograd.grad(value, x)[0].cpu()


@pytest.mark.parametrize("dtype, tight", [("float64", 1e-9), ("float32", 1e-4), ("bfloat16", 0.02)])
@pytest.mark.parametrize("loss", ["is_p2p", "m_p2p", "ii_p2p"])
def test_losses_in_every_form_and_dtype(device, loss, dtype, tight, generator):
    map_T = torch.randn(7, 48, 3, 3, generator=generator)
    map_S, E = map_T + 0.3 * torch.randn(map_T.shape, generator=generator), F.normalize(torch.randn(40, 48), dim=1)

    def run(place, dtype, **form):
        S, T, rows = (x.to(place, getattr(torch, dtype)) for x in (map_S.bfloat16(), map_T.bfloat16(), E.bfloat16()))
        forms = {
            "is_p2p": lambda x: is_p2p_loss(x, T, 0.5, **form),
            "m_p2p": lambda x: m_p2p_loss(x, T, rows, 0.2, **form),
            "ii_p2p": lambda x: ii_p2p_loss(x, T, 0.5),
        }
        return value_and_gradient(forms[loss], S)

    expected, wanted = run("cpu", "float64", impl="reference")
    for impl in FORMS[device.type][: 1 if loss == "ii_p2p" else None]:
        value, gradient = run(device, dtype, impl=impl)
        assert value.item() == pytest.approx(expected.item(), rel=tight) and gradient.dtype == getattr(torch, dtype)
        assert (gradient.double() - wanted).norm() <= tight * wanted.norm()


def test_queue(device, generator):
    """All pixels of each map are pushed, and all rows drawn, so that nothing is left to chance but the order."""
    maps, here, there = torch.randn(5, 6, 2, 2, generator=generator), PixelQueue(20, 6), PixelQueue(20, 6).to(device)
    here.push(maps, 4, generator)
    there.push(maps.to(device), 4, torch.Generator(device))
    drawn = there.sample(20, torch.Generator(device))
    assert drawn.device.type == device.type
    rows = [sorted(map(tuple, x.cpu().mul(1e4).round().tolist())) for x in (here.rows, there.rows, drawn)]
    assert rows[0] == rows[1] == rows[2]


def test_objectives(device):
    """All terms, in their second iteration, with every row of the queue drawn; in float64."""
    extractor, teacher = build_extractor("small_resnet", 1, 10).double().eval(), tiny_denoiser()
    x_student, x_teacher = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64) * 2 - 1
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    terms = [Term(name, head="none") for name in TERMS if name != "lpips"]
    options = {"queue_size": 48, "draws": 48, "per_image": 16}

    def second(place):
        objective = Sum(terms, teacher.schedule, copy.deepcopy(extractor), **options).double().to(place)
        student, target, times = on(place, x_student, x_teacher, t)
        for _ in range(2):
            loss = lambda x: objective(x, target, times, torch.Generator(place)).total  # noqa: E731
            found = value_and_gradient(loss, student)
            objective.after_step(torch.Generator(place))
        return found

    torch.testing.assert_close(second(device), second("cpu"), rtol=1e-5, atol=1e-9)  # shares are kept in float32


def test_sampling_and_targets(device):
    denoiser, noise = conditional_denoiser(), torch.randn(4, 1, 8, 8)
    y, t, fresh = torch.tensor([0, 3, 9, 3]), torch.tensor([0.5, 0.75, 1.0, 1.0]).double(), torch.randn(4, 4, 1, 8, 8)

    def drawn(place):
        model, (z, labels, times) = copy.deepcopy(denoiser).double().to(place), on(place, noise.double(), y, t)
        return [
            ddim_sample(model, z, 4, y=labels, guidance=1.5).cpu(),
            stochastic_sample(model, z, 4, y=labels, fresh=lambda k: fresh[k].double().to(place)).cpu(),
            two_step_target(model, z, times, 0.25, labels).cpu(),
        ]

    torch.testing.assert_close(drawn(device), drawn("cpu"), rtol=1e-4, atol=1e-5)  # sinusoids are float32


def test_scores(device):
    images, other = DIGITS.images[:400], DIGITS.images[400:800]
    metrics = {"metrics": ("fid", "is", "pfd"), "batch_size": 100}
    found, expected = (evaluate(images, other, device=place, **metrics).values for place in (device, "cpu"))
    assert found == pytest.approx(expected, rel=1e-4)


def test_images_stream_from_the_cpu(device, monkeypatch):
    """Those that are too many for a GPU stay behind; rows of them are pinned on their way to it."""
    monkeypatch.setattr("rddlib.data.dataset.RESIDENT_BYTES", 0)
    streamed, rows = DIGITS.to(device), torch.tensor([1796, 0, 5])
    assert (streamed.images.device.type, streamed.labels.device.type) == ("cpu", device.type)
    found = streamed.floats(rows)
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), DIGITS.floats(rows), rtol=0, atol=1e-6)  # a GPU multiplies by 1 / 127.5
    assert streamed.labels_of(rows).cpu().equal(DIGITS.labels[rows])


@pytest.mark.ci
def test_a_group_of_one_process_trains_as_a_process_alone(device, tmp_path):
    """NCCL's group on a GPU."""
    hidden = {} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command = ["-m", "rddlib.cli", "train", "--profile", "smoke", "--set", "base.train.iterations=3"]
    command += ["--set", "base.train.precision=float32", "--set", "run.compile=never"]
    weights = []
    for name, launcher in (("alone", []), ("group", torchrun)):
        words = [sys.executable, *launcher, *command, "--out", str(tmp_path / name)]
        subprocess.run(words, env=os.environ | hidden, check=True, capture_output=True, timeout=240)
        (path,) = (tmp_path / name / "checkpoints").glob("base-*.safetensors")
        weights.append(load_checkpoint(path)[0])
    alone, group = weights
    close = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(group, alone, **close)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_graphs_change_nothing(device, precision):
    """Student, teacher and extractor recorded, their blocks compiled or not, dropout and averaged weights among it: the losses
    of eight steps are those without."""
    if device.type != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    profile, losses = load_profile("smoke"), {}
    for graphs, compile in (("never", "never"), ("auto", "never"), ("auto", "blocks")):
        run = RunConfig(log_every=1, compile=compile, graphs=graphs)
        trained = [Trainer(TrainConfig(8, 16, 1e-3, ema=0.9, precision=precision), seed=k, run=run) for k in (3, 4)]
        train_base(conditional_denoiser(dropout=0.3), DIGITS, trained[0])
        torch.manual_seed(1)
        teacher, extractor = conditional_denoiser(), build_extractor("small_resnet", 1, 10).eval()
        objective = build_objective(profile.method("cfd_is_pd"), profile.loss, 0.9, teacher.schedule, extractor, 2)
        distill(teacher, DIGITS, 2, objective, trained[1])
        losses[graphs, compile] = [record["loss"] for trainer in trained for record in trainer.history]
    expected = pytest.approx(losses.pop(("never", "never")), rel={"float32": 1e-3, "bf16": 3e-2}[precision])
    assert list(losses.values()) == [expected, expected]


class Cut(Exception):
    """The power went."""


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("compile", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_a_cut_training_ends_where_an_uncut_one_does(device, tmp_path, precision, compile):
    """CFD, relations at a share of it, queue, head, averaged weights, channels last. To rounding: a GPU adds in no fixed order."""
    if device.type != training_device().type:
        pytest.skip("a process trains on one device: on a GPU where there is one")
    if precision == "tf32" and device.type == "cpu":
        pytest.skip("CPUs have no TF32")
    profile = load_profile("smoke", {"sums": '["loud = cfd + is_p2p(share=1 tau=0.1) + m_p2p(share=0.3)"]'})
    config = TrainConfig(6, 16, 1e-3, ema=0.9, precision=precision)
    run = RunConfig(save_every=0, log_every=1, channels_last="always", compile=compile)

    def train(files, cut_at=None):
        teacher, extractor = tiny_denoiser(), build_extractor("small_resnet", 1, 10).eval()
        loss = replace(profile.loss, **QUEUE)
        torch.manual_seed(1)
        objective = build_objective(profile.method("loud"), loss, 0.9, teacher.schedule, extractor, 2)
        after = objective.after_step

        def cut(generator):
            after(generator)
            if len(Checkpoints(files).steps()) and Checkpoints(files).steps()[0] == cut_at:
                raise Cut

        objective.after_step = cut
        trainer = Trainer(config, seed=3, files=files, run=run)
        return distill(teacher, DIGITS, 2, objective, trainer), trainer

    with pytest.raises(Cut):
        train(tmp_path / "cut", cut_at=3)
    (resumed, logged), (whole, _) = train(tmp_path / "cut"), train(tmp_path / "whole")
    assert [record["step"] for record in logged.history][-1] == 5 and Checkpoints(tmp_path / "cut").steps()[0] == 6
    a, b, before = (
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (resumed, whole, tiny_denoiser())
    )
    moved, rounding = (
        (b - before).norm(),
        0 if device.type == "cpu" else {"float32": 1e-2, "tf32": 1e-2, "bf16": 5e-2}[precision],
    )
    assert moved > 0 and (a - b).norm() <= rounding * moved
