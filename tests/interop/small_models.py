"""Small models of every kind, and questions that many tests ask of them."""

import json

import torch
from torch import nn

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.interop.released import UNET_NAMES, _released_names

BOUND = 1e-4  # between our images and another program's; float32 alone makes 1e-5
LABELLED = {"num_classes": 5, "label_dropout": 0.1}
GUIDED = {"num_classes": 5, "guidance": (0.0, 4.0)}
SIZES = {"norm_num_groups": 4, "block_out_channels": (8, 8)}  # of networks for latents, and of their codec


def shaken(module):
    """The module with random weights everywhere, of a size that keeps what passes through near 1."""
    g = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    for layer in module.modules():
        if isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d)):
            layer.weight.data += 1
    return module.eval()


def ours(prediction="v", schedule=None, **changes):
    """A denoiser on our U-Net, for images [1, 8, 8] unless `changes` of its configuration say otherwise."""
    small = dict(image_size=8, image_channels=1, channels=16, multipliers=(1, 2), blocks=1, attention=(4,), groups=8)
    return Denoiser(shaken(UNet(UNetConfig(**small | changes))), schedule or CosineSchedule(), prediction).eval()


class Own(nn.Module):
    """A network that says nothing of itself: images [2, H, W] of three classes."""

    def __init__(self):
        super().__init__()
        self.conv, self.embedding = nn.Conv2d(2, 2, 3, padding=1), nn.Embedding(4, 2)

    def forward(self, z, t, y):
        return self.conv(z) * t.to(z.dtype)[:, None, None, None] + self.embedding(y)[:, :, None, None]


def own():
    return Denoiser(shaken(Own()), CosineSchedule(), "x", num_classes=3)


def unet2d(**changes):
    """A UNet2DModel of diffusers for images [1, 8, 8]."""
    from diffusers import UNet2DModel

    small = {
        **dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4),
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return shaken(UNet2DModel(**small | changes))


def ddpm(folder):
    """The folder of an untrained DDPMPipeline for images [1, 8, 8], which predicts epsilon."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet2d(), DDPMScheduler()).save_pretrained(folder)
    return folder


def ddim(**options):
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{"timestep_spacing": "trailing", **options})


def latent_scheduler(prediction="v_prediction", steps=1024):
    """As latent pipelines have it."""
    from diffusers import DDIMScheduler

    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return DDIMScheduler(steps, prediction_type=prediction, timestep_spacing="trailing", steps_offset=1, **options)


def codec(kind="AutoencoderKL"):
    """Of images [3, 8, 8] and latents [4, 4, 4]."""
    import diffusers

    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return getattr(diffusers, kind)(latent_channels=4, **SIZES, **ends)


def released_tensors(network, rules=UNET_NAMES):
    """Our network's tensors under their published names."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        names = _released_names(name, rules)
        tensors.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=True))
    return tensors


def released_file(path, steps=8, size=8, image_channels=1, num_classes=0, seed=0):
    """The path of a U-Net's file as published, of random weights, made from ours by the inverse of the names."""
    torch.manual_seed(seed)
    network = UNet(
        UNetConfig(size, image_channels, 32, (1, 2), 1, (size // 2,), num_classes=num_classes, time_grid=1024)
    )
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    noise = torch.randn(2, image_channels, size, size)
    torch.save({"net_model": released_tensors(network), "x_T": noise, "T": steps, "time_scale": 1024 // steps}, path)
    return path


def noise_of(count, shape=(1, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def labels_of(denoiser, count=3):
    return torch.arange(count) % denoiser.num_classes if denoiser.num_classes else None


def gap(found, expected):
    """The largest difference, as a share of the largest number where that is above 1."""
    assert found.shape == expected.shape and found.isfinite().all() and expected.isfinite().all()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def edit(path, **changes):
    """Change entries of a JSON file; `...` takes one out."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


def loaded(folder):
    """The pipeline saved in a folder, by diffusers."""
    from diffusers import DiffusionPipeline

    own_code = any(folder.glob("*.py"))
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, steps=0, y=None):
    """Three images of a pipeline in [-1, 1], from `noise_of(3)` or of the labels y; steps: 0 where they are fixed."""
    given = {"batch_size": 3} if y is None else {"class_labels": y}
    options = {"num_inference_steps": steps, "use_clipped_model_output": True} if steps else {}
    return 2 * pipeline(**given, **options, generator=torch.Generator().manual_seed(0), output_type="pt").images - 1
