"""What is particular to TorchScript files: their steps, the lines that use them, and networks that no trace follows."""

import pytest
import torch
from small_models import BOUND, GUIDED, noise_of, ours
from tiny import quiet, refused
from torch import nn

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.interop import export_torchscript
from rddlib.interop.torchscript import script_usage
from rddlib.utils.errors import GuidanceWarning

pytestmark = quiet
SHAPE = (1, 8, 8)


def test_the_steps_are_those_it_was_distilled_for_unless_others_are_said(tmp_path):
    denoiser = ours()
    denoiser.steps = 2
    for asked, made in ((0, 2), (1, 1)):
        export_torchscript(denoiser, tmp_path / "s.ts", asked)
        images = torch.jit.load(tmp_path / "s.ts")(noise_of(3))
        torch.testing.assert_close(images, ddim_sample(denoiser, noise_of(3), made), rtol=0, atol=BOUND)
    assert (ddim_sample(denoiser, noise_of(3), 2) - ddim_sample(denoiser, noise_of(3), 1)).abs().max() > 100 * BOUND


def test_a_weight_outside_the_range_is_warned_of_and_drawn_with(tmp_path):
    denoiser, y = ours(**GUIDED), torch.arange(3)
    with pytest.warns(GuidanceWarning, match="guidance 9 is outside"):
        export_torchscript(denoiser, tmp_path / "s.ts", 1, guidance=9.0)
        expected = ddim_sample(denoiser, noise_of(3), 1, y=y, guidance=9.0)
    images = torch.jit.load(tmp_path / "s.ts")(noise_of(3), y)
    torch.testing.assert_close(images, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_lines_that_say_how_to_use_it_draw_images(classes, tmp_path, monkeypatch):
    denoiser = ours(num_classes=classes)
    export_torchscript(denoiser, tmp_path / "s.ts", 1)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(script_usage(denoiser, "s.ts"), found)
    assert found["images"].shape == (4, *SHAPE) and found["images"].abs().max() <= 1


class Untraceable(nn.Module):
    """answer(z, scale): an image, by Python that a trace does not follow."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.tensor(0.7))

    def forward(self, z, t):
        return self.answer(z, self.scale)


UNTRACEABLE = {
    "a branch on the images": lambda z, scale: scale * z if z.mean() > 0 else -z,
    "a branch on their number": lambda z, scale: scale * z if len(z) > 2 else -z,
    "fresh noise": lambda z, scale: scale * z + 0.1 * torch.randn_like(z),
    "images that are no numbers": lambda z, scale: scale * z * float("nan"),
    "numpy": lambda z, scale: torch.from_numpy(0.7 * z.detach().numpy()),
    "a number that a trace holds constant": lambda z, scale: scale * torch.ones(len(z), *SHAPE) - z,
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_a_network_that_a_trace_does_not_follow_is_refused_and_leaves_no_file(name, tmp_path):
    denoiser = as_denoiser(Untraceable(UNTRACEABLE[name]), CosineSchedule())
    (tmp_path / "before.ts").write_text("before")
    for path in (tmp_path / "s.ts", tmp_path / "before.ts"):
        assert "cannot be traced" in refused(export_torchscript, denoiser, path, 2, image_shape=SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["before.ts"]
    assert (tmp_path / "before.ts").read_text() == "before"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write" in refused(export_torchscript, ours(), tmp_path / "file/s.ts", 1)
    assert (tmp_path / "file").read_text() == "mine"
