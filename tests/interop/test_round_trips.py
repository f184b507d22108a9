"""Every kind of model through every way out and in (checkpoint, diffusers, TorchScript) draws what it drew before."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from small_models import (
    BOUND,
    GUIDED,
    LABELLED,
    ddim,
    drawn,
    gap,
    labels_of,
    loaded,
    noise_of,
    ours,
    own,
    released_file,
    unet2d,
)
from tiny import needs_diffusers, quiet, refused, same

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.diffusers_unet import DiffusersUNet
from rddlib.diffusion.model_file import describe
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import NO_CLASS
from rddlib.interop import export_torchscript, from_diffusers, load_model, load_released_unet, to_diffusers
from rddlib.interop.torchscript import shape_of
from rddlib.utils.checkpoint import save_checkpoint

pytestmark = quiet


def released():
    with tempfile.TemporaryDirectory() as folder:
        return load_released_unet(released_file(Path(folder) / "ckpt.pt"))


def theirs(prediction="v_prediction", size=1000, null_class=None, **changes):
    scheduler = ddim(prediction_type=prediction, num_train_timesteps=size)
    return from_diffusers(unet2d(num_train_timesteps=size, **changes), scheduler, null_class=null_class)


GRID = DiscreteCosineSchedule(1024)
LINEAR = BetaSchedule(tuple(torch.linspace(1e-4, 0.005, 1024).double().tolist()))
SHORT = BetaSchedule(tuple(torch.linspace(0.01, 0.3, 50).double().tolist()), 0.99)
WIDE = {"multipliers": (2, 2)}  # wider than its head, as no UNet2DModel is
COLOURS = dict(image_size=16, image_channels=3, multipliers=(1, 2, 2), blocks=2, attention=(16, 4), groups=4)
PLAIN, CLASSES, SCRIPT = "DDIMPipeline", "ClassDDIMPipeline", "ScriptedPipeline"


class Kind(NamedTuple):
    """make: the denoiser; travels: the class of the pipeline it is saved as; options: of the exports."""

    make: Callable[[], Denoiser]
    travels: str = PLAIN
    options: dict = {}
    steps: int = 4


KINDS = {
    "v": Kind(ours),
    "x without attention, unclipped": Kind(lambda: ours("x", attention=(), blocks=3), PLAIN, {"clip": False}),
    "colours and three levels": Kind(lambda: ours("x", **COLOURS)),
    "wider than tall": Kind(lambda: ours(image_size=(8, 12))),
    "one level": Kind(lambda: ours(multipliers=(1,), attention=())),
    "uneven widths": Kind(lambda: ours(channels=24, multipliers=(1, 3, 2), attention=(8, 2), groups=3)),
    "the released grid": Kind(lambda: ours("x", GRID, time_grid=1024)),
    "the released schedule": Kind(lambda: ours("v", GRID)),
    "a grid on the continuous schedule": Kind(lambda: ours(time_grid=1024)),
    "a short grid": Kind(lambda: ours("v", DiscreteCosineSchedule(64), time_grid=64)),
    "betas and eps": Kind(lambda: ours("eps", LINEAR)),
    "few betas": Kind(lambda: ours("x", SHORT, time_grid=50), PLAIN, {"clip": False}, 5),
    "classes": Kind(lambda: ours(num_classes=5), CLASSES),
    "one class": Kind(lambda: ours("x", num_classes=1), CLASSES),
    "classes and none": Kind(lambda: ours("x", **LABELLED), CLASSES, {"clip": False}),
    "guidance taken, 0": Kind(lambda: ours(**GUIDED), CLASSES, {"guidance": 0.0}),
    "guidance taken, 3": Kind(lambda: ours("x", GRID, **GUIDED, time_grid=1024), CLASSES, {"guidance": 3.0}),
    "guided by two evaluations": Kind(lambda: ours(**LABELLED), SCRIPT, {"guidance": 1.5}, 2),
    "wider than its head": Kind(lambda: ours(**WIDE), SCRIPT, {"clip": False}, 3),
    "wide, taking guidance": Kind(lambda: ours(**WIDE, **GUIDED), SCRIPT, {"guidance": 3.0}, 2),
    "a time grid of another length": Kind(lambda: ours(time_grid=512), SCRIPT, {}, 2),
    "steps that do not divide the grid": Kind(ours, SCRIPT, {}, 3),
    "a module of one's own": Kind(own, SCRIPT, {"image_shape": (2, 4, 6)}, 3),
    "a released file": Kind(released),
    "theirs, epsilon": Kind(lambda: theirs("epsilon")),
    "theirs, sample": Kind(lambda: theirs("sample")),
    "theirs, v": Kind(theirs),
    "theirs, taller than wide": Kind(lambda: theirs(sample_size=(12, 8))),
    "theirs, not square, classes": Kind(lambda: theirs(sample_size=(4, 8), num_class_embeds=4), CLASSES),
    "theirs, learned times": Kind(lambda: theirs(size=50, time_embedding_type="learned"), PLAIN, {}, 5),
    "theirs, classes": Kind(lambda: theirs(num_class_embeds=4), CLASSES),
    "theirs, classes and none": Kind(lambda: theirs(num_class_embeds=4, null_class=True), CLASSES),
    "theirs, guided": Kind(lambda: theirs(num_class_embeds=4, null_class=True), SCRIPT, {"guidance": 1.0}, 2),
    "theirs, on another grid": Kind(
        lambda: Denoiser(DiffusersUNet(unet2d(), 1000), CosineSchedule(), "v").eval(), SCRIPT
    ),
}
SCRIPTED = [name for name, kind in KINDS.items() if kind.travels == SCRIPT]


def kinds(*excluded):
    """The parameter of a test of all kinds but those."""
    names = [name for name in KINDS if name not in excluded]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[needs_diffusers] * name.startswith("theirs")) for name in names]
    )


def made(name):
    """(its denoiser, its images as a function of their number and the steps)."""
    kind = KINDS[name]
    denoiser, how = kind.make(), {**kind.options}
    shape = shape_of(denoiser, how.pop("image_shape", None))

    def draw(count, steps):
        return ddim_sample(denoiser, noise_of(count, shape), steps, y=labels_of(denoiser, count), **how)

    return denoiser, draw


@kinds("a module of one's own")  # which only Python code can make again
def test_a_checkpoint_holds_the_model_bit_for_bit(name, tmp_path):
    denoiser, draw = made(name)
    denoiser.steps = 4
    described = json.loads(json.dumps(describe(denoiser)))  # lists for tuples
    save_checkpoint(tmp_path / "m.safetensors", denoiser.state_dict(), {"kind": "base", "model": described})
    found, info = load_model(tmp_path / "m.safetensors")
    for what in ("schedule", "prediction", "steps", "num_classes", "unconditional", "guidance", "training"):
        assert getattr(found, what) == getattr(denoiser, what), what
    assert json.loads(json.dumps(describe(found))) == described and info["kind"] == "base"
    assert found.network.config == denoiser.network.config
    assert same(denoiser, found)
    expected, denoiser.network = draw(3, 4), found.network
    assert torch.equal(draw(3, 4), expected)


@needs_diffusers
@kinds()
def test_a_saved_pipeline_draws_our_images(name, tmp_path):
    (denoiser, draw), kind = made(name), KINDS[name]
    folder = to_diffusers(denoiser, tmp_path / "p", steps=kind.steps, **kind.options)
    pipeline, y = loaded(folder), labels_of(denoiser)
    assert type(pipeline).__name__ == kind.travels
    scripted = kind.travels == SCRIPT
    for steps in (kind.steps,) if scripted else (1, kind.steps, 2 * kind.steps):
        images = drawn(pipeline, 0 if scripted else steps, y)
        expected = draw(3, steps).clamp(-1, 1)
        assert gap(images, expected) < BOUND, steps
        assert 0.1 < expected.std() < 0.95  # neither all grey nor all black and white
    if scripted:
        assert pipeline.config.num_inference_steps == kind.steps and "no unet" in refused(from_diffusers, folder)
        with pytest.raises(ValueError, match="class_labels|no classes"):
            pipeline(class_labels=[0] if y is None else None)


@needs_diffusers
@kinds(*SCRIPTED)
def test_a_saved_pipeline_comes_back(name, tmp_path):
    (denoiser, _), kind = made(name), KINDS[name]
    back = from_diffusers(to_diffusers(denoiser, tmp_path / "p", **kind.options))
    for what in ("prediction", "num_classes", "unconditional"):
        assert getattr(back, what) == getattr(denoiser, what), what
    assert not back.guidance
    size = back.schedule.steps
    t = torch.tensor([0, 1, 2, size // 3, size - 1]).double().add(1) / size
    y, w, c = labels_of(denoiser, len(t)), kind.options.get("guidance"), denoiser.network.config
    z = noise_of(len(t), c.image_shape)
    for labels in [y, torch.full_like(y, NO_CLASS)] if denoiser.unconditional else [y]:
        given = [] if labels is None else [labels]
        guidance = [] if w is None else [torch.full((len(t),), w, dtype=torch.float64)]
        assert gap(back.network(z, t, *given), denoiser.network(z, t, *given, *guidance)) < BOUND
    times = torch.arange(2, size + 1).double() / size  # index 0 is that of the last alpha, where it is below 1
    torch.testing.assert_close(back.schedule.alpha(times), denoiser.schedule.alpha(times), rtol=1e-4, atol=1e-9)
    assert float(back.schedule.alpha(0.0)) == pytest.approx(float(denoiser.schedule.alpha(0.0)), abs=1e-7)


# A trace holds schedule and times constant, so that these are like others; scripted pipelines hold and draw such a file
TRACED_ALIKE = [
    *("the released schedule", "a grid on the continuous schedule", "a short grid", "few betas", "one class"),
    *("one level", "uneven widths", "guidance taken, 0", "theirs, sample", "theirs, v", "theirs, taller than wide"),
    *("theirs, classes", "theirs, classes and none"),
]


@kinds(*TRACED_ALIKE, *(name for name in SCRIPTED if name != "a module of one's own"))  # the one of a given image_shape
def test_a_torchscript_file_draws_our_images(name, tmp_path):
    (denoiser, draw), kind, path = made(name), KINDS[name], tmp_path / "new" / "sampler.ts"
    said = export_torchscript(denoiser, path, 2, **kind.options)
    assert isinstance(said, float) and 0 <= said <= BOUND and list(path.parent.iterdir()) == [path]
    sampler, shape = torch.jit.load(path), shape_of(denoiser, kind.options.get("image_shape"))
    for count in (1, 2, 7):  # it was traced with two
        y = labels_of(denoiser, count)
        images = sampler(noise_of(count, shape), *([] if y is None else [y]))
        torch.testing.assert_close(images, draw(count, 2), rtol=0, atol=BOUND)
        assert images.dtype == torch.float32


ALONE = """
import sys
sys.modules["rddlib"] = None
import numpy, torch
noise, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
for name in ("plain", "labelled", "scripted"):
    labelled = [] if name == "plain" else [labels]
    numpy.save(f"{name}.ts.npy", torch.jit.load(f"{name}.ts")(noise, *labelled))
assert "diffusers" not in sys.modules
from diffusers import DiffusionPipeline
for name in ("plain", "labelled", "scripted"):
    pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=name != "plain")
    given = {"batch_size": 3} if name == "plain" else {"class_labels": [0, 1, 2]}
    given |= {} if name == "scripted" else {"num_inference_steps": 2, "use_clipped_model_output": True}
    images = pipeline(**given, generator=torch.Generator().manual_seed(0), output_type="np").images
    numpy.save(f"{name}.hf.npy", 2 * images.transpose(0, 3, 1, 2) - 1)
"""


@pytest.mark.ci
@needs_diffusers
def test_what_is_saved_needs_no_rddlib(tmp_path):
    names = {"plain": "v", "labelled": "guidance taken, 3", "scripted": "guided by two evaluations"}
    for name, kind in names.items():
        denoiser, options = KINDS[kind].make(), KINDS[kind].options
        to_diffusers(denoiser, tmp_path / name, steps=2, **options)
        export_torchscript(denoiser, tmp_path / f"{name}.ts", 2, **options)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, kind in names.items():
        for way in ("ts", "hf"):
            found = torch.from_numpy(np.load(tmp_path / f"{name}.{way}.npy"))
            assert gap(found, made(kind)[1](3, 2)) < BOUND, (name, way)


@needs_diffusers
@pytest.mark.parametrize(
    "make",
    [lambda: ours(dropout=0.5).double(), lambda: ours(**WIDE, dropout=0.5).bfloat16(), theirs],
    ids=["ours", "wide", "theirs"],
)
def test_exporting_changes_nothing_of_the_denoiser(make, tmp_path):
    denoiser = make().train()
    next(denoiser.network.children()).eval()  # a part may be in another mode
    before = copy.deepcopy(denoiser)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_torchscript(denoiser, tmp_path / "s.ts", 2)
    to_diffusers(denoiser, tmp_path / "p", steps=2)
    for (name, tensor), earlier in zip(denoiser.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, earlier) and tensor.dtype == earlier.dtype, name
    assert [m.training for m in denoiser.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in denoiser.parameters()] == [p.requires_grad for p in before.parameters()]
    images = torch.jit.load(tmp_path / "s.ts")(noise_of(3))  # without dropout, in float32
    torch.testing.assert_close(images, ddim_sample(denoiser.float().eval(), noise_of(3), 2), rtol=0, atol=BOUND)


REFUSED = {
    "steps of a model for any number": (own, {"image_shape": (2, 8, 8)}, "steps is 0: say for how many"),
    "too many steps": (own, {"image_shape": (2, 8, 8), "steps": 65}, "steps is 65: .* 1 to 64"),
    "no shape": (own, {"steps": 2}, "pass image_shape"),
    "no guidance where it is taken": (lambda: ours(**GUIDED), {"steps": 2}, "give one of 0 to 4"),
    "guidance without classes": (ours, {"steps": 2, "guidance": 1.0}, "is unconditional .*; or leave guidance out"),
    "guidance that is no number": (lambda: ours(**GUIDED), {"steps": 2, "guidance": math.nan}, "expected a number"),
}


@needs_diffusers
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("export", [to_diffusers, export_torchscript])
def test_a_refused_export_leaves_nothing_behind(export, name, tmp_path):
    make, options, said = REFUSED[name]
    assert re.search(said, refused(export, make(), tmp_path / "new/p", **options))
    assert not list(tmp_path.rglob("*p"))
