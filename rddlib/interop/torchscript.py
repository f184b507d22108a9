"""A few-step sampler as one TorchScript file, from noise to images, that runs without rddlib and without Python."""

import contextlib
import copy
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.evaluation import check_guidance
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError

TOLERANCE = 1e-4  # between the exported images and ours
LARGEST = 64  # steps, since each is unrolled


class FewSteps(nn.Module):
    """`ddim_sample` of a denoiser with everything but noise and labels fixed."""

    def __init__(self, denoiser: Denoiser, steps: int, clip: bool = True, guidance: float | None = None):
        super().__init__()
        self.denoiser, self.steps, self.clip, self.guidance = denoiser, steps, clip, guidance

    def forward(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        """noise [N, C, H, W], labels y [N] if there are classes -> images [N, C, H, W]."""
        return ddim_sample(self.denoiser, noise, self.steps, y=y, clip=self.clip, guidance=self.guidance)


def export_torchscript(
    denoiser: Denoiser,
    path: str | Path,
    steps: int = 0,
    *,
    clip: bool = True,
    guidance: float | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> float:
    """Write the `steps`-step sampler (default: denoiser.steps) as a TorchScript file for CPUs, in float32.

    `torch.jit.load(path)(noise)`, or `(noise, labels)` with classes, gives the images of `ddim_sample`, for any number of
    them. clip: as in ddim_sample; guidance: the fixed weight w; image_shape: (C, H, W), if the network's config does not say
    it. The file is read back and compared before it is kept; returns the largest difference of an image value. Raises
    UserError if that is above 1e-4, for steps < 1 or > 64, and for guidance that the model does not take or lacks.
    """
    content, difference = scripted(denoiser, steps, clip, guidance, image_shape)
    write_atomically(Path(path), content)
    return difference


def scripted(
    denoiser: Denoiser, steps: int, clip: bool, guidance: float | None, image_shape: tuple[int, int, int] | None
) -> tuple[bytes, float]:
    """The file's content and largest difference, as `export_torchscript` writes and returns them."""
    if denoiser.space:
        raise UserError(
            "a latent model's images need its autoencoder, which a TorchScript file lacks: export it to diffusers"
        )
    steps, shape = steps or denoiser.steps, shape_of(denoiser, image_shape)
    if not 1 <= steps <= LARGEST:
        raise UserError(f"steps is {steps}: say for how many the sampler shall be, 1 to {LARGEST}")
    check_guidance(denoiser, guidance)
    denoiser = copy.deepcopy(denoiser).cpu().float().eval().requires_grad_(False)
    sampler = FewSteps(denoiser, steps, clip, guidance)
    with _quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(sampler, _inputs(denoiser, shape, 2, 0), check_trace=False)
            content = io.BytesIO()
            torch.jit.save(torch.jit.freeze(traced.eval()), content)
            loaded = load_torchscript(io.BytesIO(content.getvalue()))
            others = [_inputs(denoiser, shape, count, seed) for seed, count in enumerate((1, 3, 8), start=1)]
            difference = max(float((loaded(*inputs) - sampler(*inputs)).abs().max()) for inputs in others)
        except RuntimeError as error:  # from tracing, or from running with another number of images
            raise UserError(f"this network cannot be traced ({str(error).strip().splitlines()[-1].strip()})") from error
    if not difference <= TOLERANCE:
        raise UserError(f"the TorchScript file's images differ by {difference:.2g}: this network cannot be traced")
    return content.getvalue(), difference


def load_torchscript(file) -> torch.jit.ScriptModule:
    """`torch.jit.load` of a path or an open file, without its deprecation warning."""
    with _quiet():
        return torch.jit.load(file)


@contextlib.contextmanager
def _quiet():
    """Without the warnings that TorchScript is deprecated (nothing else runs without Python) and that a trace holds values
    constant (here the times of the steps)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def shape_of(denoiser: Denoiser, image_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """(C, H, W) of a denoiser's images, from its config or image_shape. Raises UserError if neither gives it."""
    config = getattr(denoiser.network, "config", None)
    if image_shape is None and not hasattr(config, "image_shape"):
        raise UserError("this network does not say its images' shape: pass image_shape, (C, H, W)")
    return image_shape or config.image_shape


def script_usage(denoiser: Denoiser, name: str, clip: bool = True) -> str:
    """Lines of Python that draw with an exported file, for its model card."""
    channels, height, width = shape_of(denoiser, None)
    labels = f", torch.arange(4) % {denoiser.num_classes}" if denoiser.num_classes else ""
    bounds = " in [-1, 1]" if clip else ""
    return f"""import torch

sampler = torch.jit.load("{name}")
images = sampler(torch.randn(4, {channels}, {height}, {width}){labels})  # as large{bounds}"""


def _inputs(denoiser: Denoiser, shape: tuple[int, int, int], count: int, seed: int) -> tuple[Tensor, ...]:
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return (noise, torch.arange(count) % denoiser.num_classes) if denoiser.num_classes else (noise,)
