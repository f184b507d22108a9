"""TorchScript samplers against ours: other numbers of images than traced, labels, guidance, and what cannot be traced."""

import importlib.util
import math
import os
import re
import subprocess
import sys
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn

from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.interop import export_torchscript, from_diffusers
from rddlib.interop.torchscript import script_usage
from rddlib.utils.errors import GuidanceWarning, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # in diffusers
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]
needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
BOUND = 1e-4
SHAPE = (1, 8, 8)
LABELLED = {"num_classes": 5, "label_dropout": 0.1}
GUIDED = {"num_classes": 5, "guidance": (0.0, 4.0)}


def shaken(module):
    """The module with random weights everywhere, of a size that keeps what passes through near 1."""
    g = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1
    return module.eval()


def small(prediction="v", schedule=None, **changes):
    config = UNetConfig(
        **{
            "image_size": 8,
            "image_channels": 1,
            "channels": 16,
            "multipliers": (1, 2),
            "blocks": 1,
            "attention": (4,),
            "groups": 8,
            **changes,
        }
    )
    return Denoiser(shaken(UNet(config)), schedule or CosineSchedule(), prediction).eval()


class Own(nn.Module):
    """A network that says nothing of itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.embedding = nn.Conv2d(2, 2, 3, padding=1), nn.Embedding(4, 2)

    def forward(self, z, t, y):
        return self.conv(z) * t.to(z.dtype)[:, None, None, None] + self.embedding(y)[:, :, None, None]


def own():
    return Denoiser(shaken(Own()), CosineSchedule(), "x", num_classes=3)


def draw(count, shape=SHAPE):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))


def labels(denoiser, count):
    return (torch.arange(count) * 2 % denoiser.num_classes,) if denoiser.num_classes else ()


def refused(call, *inputs, **options):
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the same images -------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    make: object
    steps: int
    options: dict = {}
    shape: tuple = SHAPE


CASES = {
    "one step": Case(small, 1),
    "four steps": Case(lambda: small("x"), 4),
    "unclipped": Case(small, 3, {"clip": False}),
    "the released grid": Case(lambda: small("x", DiscreteCosineSchedule(1024), time_grid=1024), 2),
    "betas, eps": Case(lambda: small("eps", BetaSchedule((0.02,) * 50, 0.99)), 5),
    "colours": Case(lambda: small("v", image_channels=3, image_size=16, attention=(16, 8)), 2, shape=(3, 16, 16)),
    "labels": Case(lambda: small(num_classes=5), 2),
    "labels and none": Case(lambda: small(**LABELLED), 2),
    "guidance by two evaluations": Case(lambda: small(**LABELLED), 2, {"guidance": 1.5}),
    "guidance taken, 0": Case(lambda: small(**GUIDED), 2, {"guidance": 0.0}),
    "guidance taken, 3": Case(lambda: small(**GUIDED), 2, {"guidance": 3.0}),
    "own module": Case(own, 3, {"image_shape": (2, 4, 6)}, (2, 4, 6)),
    "a function": Case(lambda: as_denoiser(lambda z, t: 0.7 * z.tanh(), CosineSchedule()), 2, {"image_shape": SHAPE}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_draws_our_images(name, tmp_path):
    case = CASES[name]
    denoiser, path = case.make(), tmp_path / "new" / "sampler.ts"
    said = export_torchscript(denoiser, path, case.steps, **case.options)
    assert (
        isinstance(said, float)
        and 0 <= said <= BOUND
        and [path.name for path in path.parent.iterdir()] == ["sampler.ts"]
    )
    sampler = torch.jit.load(path)
    how = {name: value for name, value in case.options.items() if name != "image_shape"}
    for count in (1, 2, 7):
        noise, y = draw(count, case.shape), labels(denoiser, count)
        images = sampler(noise, *y)
        expected = ddim_sample(denoiser, noise, case.steps, y=y[0] if y else None, **how)
        torch.testing.assert_close(images, expected, rtol=0, atol=BOUND)
        assert images.dtype == torch.float32 and (expected.std() > 0.1 or count == 1)


def test_labels_and_guidance_are_heard(tmp_path):
    noise, denoiser = draw(3), small(**LABELLED)
    drawn = []
    for w in (0.5, 3.0):
        export_torchscript(denoiser, tmp_path / "s.ts", 1, guidance=w)
        sampler = torch.jit.load(tmp_path / "s.ts")
        drawn += [sampler(noise, torch.full((3,), label)) for label in (0, 4)]
    gaps = [float((a - b).abs().max()) for k, a in enumerate(drawn) for b in drawn[:k]]
    assert min(gaps) > 100 * BOUND


def test_a_weight_outside_the_range_is_warned_of_and_drawn_with(tmp_path):
    denoiser = small(**GUIDED)
    with pytest.warns(GuidanceWarning, match="guidance 9 is outside"):
        export_torchscript(denoiser, tmp_path / "s.ts", 1, guidance=9.0)
    with pytest.warns(GuidanceWarning):
        expected = ddim_sample(denoiser, draw(3), 1, y=torch.arange(3), guidance=9.0)
    images = torch.jit.load(tmp_path / "s.ts")(draw(3), torch.arange(3))
    torch.testing.assert_close(images, expected, rtol=0, atol=BOUND)


@needs_diffusers
@pytest.mark.parametrize("classes", [None, 4])
def test_a_model_of_diffusers_too(classes, tmp_path):
    from diffusers import DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False)
    denoiser = from_diffusers(shaken(unet), scheduler, null_class=classes is not None)
    guidance = 2.0 if classes else None
    export_torchscript(denoiser, tmp_path / "s.ts", 2, guidance=guidance)
    for count in (1, 7):
        y = labels(denoiser, count)
        expected = ddim_sample(denoiser, draw(count), 2, y=y[0] if y else None, guidance=guidance)
        images = torch.jit.load(tmp_path / "s.ts")(draw(count), *y)
        torch.testing.assert_close(images, expected, rtol=0, atol=BOUND)


def test_the_steps_are_those_it_was_distilled_for_unless_others_are_said(tmp_path):
    denoiser = small()
    denoiser.steps = 4
    for asked, made in ((0, 4), (2, 2)):
        export_torchscript(denoiser, tmp_path / "s.ts", asked)
        images = torch.jit.load(tmp_path / "s.ts")(draw(3))
        torch.testing.assert_close(images, ddim_sample(denoiser, draw(3), made), rtol=0, atol=BOUND)
    assert (ddim_sample(denoiser, draw(3), 4) - ddim_sample(denoiser, draw(3), 2)).abs().max() > 100 * BOUND


ALONE = """
import sys
sys.modules["rddlib"] = None
import torch
noise, labels = torch.load(sys.argv[1])
torch.save([torch.jit.load("plain.ts")(noise), torch.jit.load("labelled.ts")(noise, labels)], sys.argv[2])
assert not [name for name in sys.modules if name.startswith(("rddlib.", "diffusers"))]
"""


def test_the_file_needs_no_rddlib(tmp_path):
    plain, labelled = small(), small(**LABELLED)
    export_torchscript(plain, tmp_path / "plain.ts", 2)
    export_torchscript(labelled, tmp_path / "labelled.ts", 2, guidance=1.5)
    noise, y = draw(5), torch.arange(5)
    torch.save([noise, y], tmp_path / "noise.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, "noise.pt", "images.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "images.pt")
    torch.testing.assert_close(found[0], ddim_sample(plain, noise, 2), rtol=0, atol=BOUND)
    torch.testing.assert_close(found[1], ddim_sample(labelled, noise, 2, y=y, guidance=1.5), rtol=0, atol=BOUND)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_lines_that_say_how_to_use_it_draw_images(classes, tmp_path, monkeypatch):
    denoiser = small(num_classes=classes)
    export_torchscript(denoiser, tmp_path / "s.ts", 1)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(script_usage(denoiser, "s.ts"), found)
    assert found["images"].shape == (4, *SHAPE) and found["images"].abs().max() <= 1


# --- the denoiser stays as it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_exporting_changes_nothing_of_the_denoiser(dtype, training, tmp_path):
    denoiser = small(dropout=0.5).to(dtype).train(training)
    denoiser.network.middle.eval()  # a part may be in another mode
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    flags = [module.training for module in denoiser.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_torchscript(denoiser, tmp_path / "s.ts", 2)
    after = denoiser.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert [module.training for module in denoiser.modules()] == flags
    assert all(p.requires_grad and p.device.type == "cpu" for p in denoiser.parameters())
    images = torch.jit.load(tmp_path / "s.ts")(draw(3))  # without dropout, in float32
    expected = ddim_sample(denoiser.float().eval(), draw(3), 2)
    torch.testing.assert_close(images, expected, rtol=0, atol=BOUND)


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "steps of a model for any number": (small, {}, "steps is 0: say for how many"),
    "no steps": (small, {"steps": -1}, "steps is -1"),
    "too many steps": (small, {"steps": 65}, "steps is 65: .* 1 to 64"),
    "no shape": (own, {"steps": 2}, "pass image_shape"),
    "no guidance where it is taken": (lambda: small(**GUIDED), {"steps": 2}, "pass guidance, 0 to 4"),
    "guidance without classes": (small, {"steps": 2, "guidance": 1.0}, "is unconditional .*; or leave guidance out"),
    "guidance that is no number": (lambda: small(**GUIDED), {"steps": 2, "guidance": math.inf}, "expected a number"),
    "guidance without dropout": (lambda: small(num_classes=5), {"steps": 2, "guidance": 1.0}, "no NO_CLASS; or leave"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused_and_leave_no_file(name, tmp_path):
    make, options, said = REFUSED[name]
    assert re.search(said, refused(export_torchscript, make(), tmp_path / "new/s.ts", **options))
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    """answer(z, t, scale): an image, by Python that a trace does not follow."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.tensor(0.7))

    def forward(self, z, t):
        return self.answer(z, t, self.scale)


UNTRACEABLE = {
    "a branch on the images": lambda z, t, scale: scale * z if z.mean() > 0 else -z,
    "a branch on their number": lambda z, t, scale: scale * z if len(z) > 2 else -z,
    "fresh noise": lambda z, t, scale: scale * z + 0.1 * torch.randn_like(z),
    "images that are no numbers": lambda z, t, scale: scale * z * float("nan"),
    "numpy": lambda z, t, scale: torch.from_numpy(0.7 * z.detach().numpy()),
    "a number that a trace holds constant": lambda z, t, scale: scale * torch.ones(len(z), *SHAPE) - z,
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_a_network_that_a_trace_does_not_follow_is_refused_and_leaves_no_file(name, tmp_path):
    denoiser = as_denoiser(Untraceable(UNTRACEABLE[name]), CosineSchedule())
    (tmp_path / "before.ts").write_text("before")
    for path in (tmp_path / "s.ts", tmp_path / "before.ts"):
        said = refused(export_torchscript, denoiser, path, 2, image_shape=SHAPE)
        assert "cannot be traced" in said
    assert [path.name for path in tmp_path.iterdir()] == ["before.ts"]
    assert (tmp_path / "before.ts").read_text() == "before"


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("file/s.ts", "folder"):
        assert "cannot write" in refused(export_torchscript, small(), tmp_path / name, 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
