"""A UNet2DConditionModel of diffusers as the network of a Denoiser: its labels are prompts, and it may take a weight w."""

import math

import torch
from torch import Tensor, nn

from rddlib.diffusion.diffusers_unet import LABEL_DROPOUT, DiffusersConfig, diffusers_class, plain_config, sides_of
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

GUIDANCE_CHANNELS = 256  # of the sinusoids of w, as diffusers' own distilled models have them
GUIDANCE_SCALE = 1000.0  # w enters them times this: StableDiffusionPipeline's, with w = guidance_scale - 1


def weight_sinusoids(w: Tensor, channels: int) -> Tensor:
    """Sinusoids [N, channels] of guidance weights w [N], sines first, as StableDiffusionPipeline embeds them."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=w.device) * (-math.log(10000.0) / (half - 1)))
    angles = (w * GUIDANCE_SCALE).float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class PromptedUNet(nn.Module):
    """A UNet2DConditionModel with our times, prompts and weights.

    Args:
        unet: the UNet2DConditionModel.
        grid: the number T of times it was trained with, so that t enters as the index T t - 1.
        space: where it draws; its table says what the prompts' numbers mean. None for a network that nobody asks yet.
        guidance: (w_min, w_max) if it takes w, else empty.

    Raises UserError for a network that needs more than noise, time and prompt.
    """

    def __init__(self, unet: nn.Module, grid: int, space: LatentSpace | None = None, guidance: tuple[float, ...] = ()):
        super().__init__()
        self.unet, self.grid, self.space, self.guidance = unet, grid, space, tuple(guidance)
        config = unet.config
        if config.in_channels != config.out_channels:
            raise UserError(
                f"this UNet2DConditionModel makes {counted(config.out_channels, 'channel')} of {config.in_channels}: one "
                "that takes a mask or an image beside the noise cannot be taken, the plain text-to-image one can (it "
                "inpaints too)"
            )
        if config.addition_embed_type or config.class_embed_type or config.encoder_hid_dim_type:
            raise UserError(
                "this UNet2DConditionModel wants more than a prompt (size, image, class): it cannot be taken"
            )

    @property
    def config(self) -> DiffusersConfig:
        """What a Denoiser asks; classes are prompts, numbered as in the space's table."""
        known = len(self.space.prompts) if self.space else 0
        shape = (self.unet.config.in_channels, *sides_of(self.unet))
        return DiffusersConfig(shape, known, LABEL_DROPOUT, self.guidance)

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """The network's output, of z's shape.

        z: latents [N, C, H, W]; t: [N] in [0, 1]; y: [N] numbers of prompts in the space's table, NO_CLASS or None for the
        empty prompt; w: [N] for a network that takes it. Raises ValueError where w is missing or not wanted.
        """
        if (w is None) == bool(self.guidance):
            raise ValueError(
                "this network takes guidance weights w" if w is None else "this network takes no weights w"
            )
        y = torch.full((len(z),), -1, device=z.device) if y is None else y
        table = self.space.table
        prompts = table[y.to(table.device)].to(z)  # the last row, -1, is the empty prompt
        options = {} if w is None else {"timestep_cond": weight_sinusoids(w, self.unet.config.time_cond_proj_dim).to(z)}
        index = (t * self.grid - 1).clamp(min=0)
        return self.unet(z, index, encoder_hidden_states=prompts, return_dict=False, **options)[0]

    def with_guidance(self, weights: tuple[float, ...]) -> "PromptedUNet":
        """A copy that takes w in this range as well, and does not heed it yet: its new layer is zero."""
        config = dict(self.unet.config) | {"time_cond_proj_dim": GUIDANCE_CHANNELS}
        unet = diffusers_class("UNet2DConditionModel").from_config(config)
        unet.load_state_dict(self.unet.state_dict(), strict=False)
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        return PromptedUNet(unet, self.grid, self.space, weights)

    @property
    def facts(self) -> dict:
        """JSON-serialisable facts, from which `of` makes the network again with fresh weights."""
        return {"config": plain_config(self.unet), "grid": self.grid, "guidance": list(self.guidance)}

    @classmethod
    def of(cls, facts: dict) -> "PromptedUNet":
        """An untrained network from its `facts`, in no latent space yet. Raises UserError if diffusers is missing."""
        unet = diffusers_class("UNet2DConditionModel").from_config(facts["config"])
        return cls(unet, facts["grid"], guidance=tuple(facts["guidance"]))
