"""The DDPM U-Net (Ho et al. 2020; RCFD C.1, RDD A.1): from noisy images and times to a prediction of the same shape."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.utils.checks import at_least
from rddlib.utils.text import counted, joined

TIME_SCALE = 1024  # t in [0, 1] enters the sinusoids as p = 1024 t, the released code's step index
GUIDANCE_SCALE = 256  # w enters them as p = 256 w: Meng et al.'s range [0, 4] then covers as much as t does
NO_CLASS = -1  # the label for "no class" in classifier-free guidance


@dataclass(frozen=True)
class UNetConfig:
    """Sizes and options of a `UNet`.

    image_size: the side of square images in pixels, or (height, width); image_channels: 1 or 3; channels: width at full
    resolution; multipliers: width of each resolution in units of `channels`, full resolution first; blocks: residual blocks
    per resolution; attention: the resolutions (their heights) with self-attention; dropout: inside residual blocks;
    groups: of GroupNorm; num_classes: 0 for an unconditional network; label_dropout: the share of labels that base
    training replaces by NO_CLASS, above 0 for classifier-free guidance, 0 for a network without NO_CLASS;
    guidance: range (w_min, w_max) of the weights that a network distilled from a guided one takes as an input, or empty;
    time_grid: 0 for continuous times, p = 1024 t; else the T of a grid t = k/T: p = round(T t), a row of a table of
    sinusoids that is stored with the weights, as in the released code.
    Raises ValueError for numbers out of range or that do not fit together.
    """

    image_size: int | tuple[int, int] = 32
    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)
    dropout: float = 0.0
    groups: int = 32
    num_classes: int = 0
    label_dropout: float = 0.0
    guidance: tuple[float, ...] = ()
    time_grid: int = 0

    def __post_init__(self):
        size = self.image_size
        if isinstance(size, tuple):
            if len(size) != 2:
                raise ValueError(f"image_size lists {joined(size)}, expected a number, or height and width")
            if size[0] == size[1]:  # one shape has one configuration, and so one key
                object.__setattr__(self, "image_size", size[0])
        _, *sides = self.image_shape
        said = "x".join(map(str, dict.fromkeys(sides)))
        if min(sides) < 1:
            raise ValueError(f"image_size is {said}, expected at least 1")
        at_least(self, 1, "image_channels", "channels", "blocks", "groups")
        at_least(self, 0, "num_classes", "time_grid")
        halvings = len(self.multipliers) - 1
        if halvings < 0 or any(side % 2**halvings for side in sides):
            raise ValueError(
                f"image_size {said} cannot be halved {counted(halvings, 'time')} by {len(self.multipliers)} multipliers"
            )
        unknown = set(self.attention) - {sides[0] >> i for i in range(len(self.multipliers))}
        if unknown:
            raise ValueError(f"attention names resolutions {joined(sorted(unknown))} that a {said} px U-Net lacks")
        if any((self.channels * m) % self.groups for m in (1, *self.multipliers)):
            raise ValueError(
                f"groups {self.groups} does not divide channels {self.channels}, or them times {joined(self.multipliers)}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside [0, 1)")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout {self.label_dropout} is outside [0, 1)")
        check_guidance_range(self.guidance)
        if (self.label_dropout or self.guidance) and not self.num_classes:
            raise ValueError("label_dropout and guidance are for class-conditional networks: set num_classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        size = self.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return self.image_channels, height, width

    @property
    def attends(self) -> list[bool]:
        """Which resolutions have self-attention, full resolution first."""
        return [(self.image_shape[1] >> level) in self.attention for level in range(len(self.multipliers))]


def check_guidance_range(guidance: tuple[float, ...]) -> None:
    """Raise ValueError unless guidance is empty or (w_min, w_max) with -1 <= w_min < w_max."""
    if guidance and not (len(guidance) == 2 and -1 <= guidance[0] < guidance[1] < math.inf):
        raise ValueError(
            f"guidance is {joined(guidance)}, expected nothing, or w_min and w_max with -1 <= w_min < w_max"
        )


def sinusoids(p: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017) of positions p [N]: [N, channels], float32.

    Interleaved sin(p w_i), cos(p w_i) with w_i = 10000^(-2i/channels).
    """
    frequencies = torch.exp(torch.arange(0, channels, 2, device=p.device) * (-math.log(10000.0) / channels))
    angles = p.float()[:, None] * frequencies  # [N, channels/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _embedding(channels: int, width: int) -> nn.Sequential:
    """A two-layer MLP from sinusoids [N, channels] to an embedding [N, width]."""
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))


class SelfAttention(nn.Module):
    """Single-head self-attention over pixels, with a residual connection."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        q, k, v = self.qkv(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # each [N, H*W, C]
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # [N, H*W, C]
        return h + self.proj(out.transpose(1, 2).unflatten(2, h.shape[2:]))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the embedding added between them, a shortcut, and optional self-attention at the end."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, groups: int, attention: bool):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = SelfAttention(outputs, groups) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [N, inputs, H, W], embedding [N, embedding] -> [N, outputs, H, W]."""
        out = self.conv1(F.silu(self.norm1(h)))
        out = out + self.embed(F.silu(embedding))[:, :, None, None]
        out = self.conv2(self.dropout(F.silu(self.norm2(out))))
        return self.attention(self.shortcut(h) + out)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """U-Net with a skip connection from every block and downsampling to the way up. A new network outputs 0."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        c = config
        embedding = 4 * c.channels
        self.time_embedding = _embedding(c.channels, embedding)
        if c.time_grid:
            self.register_buffer("time_table", sinusoids(torch.arange(c.time_grid + 1), c.channels))
        self.label_embedding = nn.Linear(c.num_classes, embedding) if c.num_classes else None
        self.head = nn.Conv2d(c.image_channels, c.channels, 3, padding=1)

        def block(inputs: int, outputs: int, attention: bool) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, c.dropout, c.groups, attention)

        widths = [c.channels * m for m in c.multipliers]
        width, skips = c.channels, [c.channels]
        self.down = nn.ModuleList()
        for level, target in enumerate(widths):
            for _ in range(c.blocks):
                self.down.append(block(width, target, c.attends[level]))
                width = target
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])
        self.up = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(c.blocks + 1):
                self.up.append(block(width + skips.pop(), target, c.attends[level]))
                width = target
            if level:
                self.up.append(Upsample(width))
        self.tail = nn.Sequential(
            nn.GroupNorm(c.groups, width), nn.SiLU(), _zeroed(nn.Conv2d(width, c.image_channels, 3, padding=1))
        )
        self.guidance_embedding = _embedding(c.channels, embedding) if c.guidance else None
        if self.guidance_embedding is not None:
            _zeroed(self.guidance_embedding[-1])  # a student starts as its teacher for any w

    def embed(self, t: Tensor, y: Tensor | None, w: Tensor | None = None) -> Tensor:
        """Sum of the time, label and guidance embeddings: [N, 4 * channels]. Arguments and errors as in `forward`."""
        if (y is None) != (self.label_embedding is None):
            what = "is class-conditional: pass labels y" if y is None else "takes no labels y"
            raise ValueError(f"this U-Net {what}")
        if (w is None) != (self.guidance_embedding is None):
            what = "takes guidance weights w: pass them" if w is None else "takes no guidance weights w"
            raise ValueError(f"this U-Net {what}")
        dtype, channels = self.head.weight.dtype, self.config.channels
        embedding = self.time_embedding(self._position(t).to(dtype))
        if y is not None:
            one_hot = F.one_hot(y - NO_CLASS, self.config.num_classes + 1)[:, 1:]  # [N, classes], zeros for NO_CLASS
            embedding = embedding + self.label_embedding(one_hot.to(dtype))
        if w is not None:
            embedding = embedding + self.guidance_embedding(sinusoids(w * GUIDANCE_SCALE, channels).to(dtype))
        return embedding

    def _position(self, t: Tensor) -> Tensor:
        """Sinusoids [N, channels] of t [N]."""
        grid = self.config.time_grid
        return self.time_table[(t * grid).round().long()] if grid else sinusoids(t * TIME_SCALE, self.config.channels)

    def with_guidance(self, weights: tuple[float, ...]) -> "UNet":
        """A copy that takes w in this range as well, and does not heed it yet; without dropout.

        The new branch (Fourier features of w, added to the time embedding) ends in zeros; its first layer is drawn from
        torch's global generator.
        """
        network = UNet(replace(self.config, guidance=tuple(weights), label_dropout=0.0, dropout=0.0))
        network.load_state_dict(self.state_dict(), strict=False)  # which lacks the new branch
        return network

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """The prediction, of z's shape; whether it is x, eps or v is known to the Denoiser.

        z: [N, *image_shape]; t: [N] in [0, 1]; y: [N] class labels or NO_CLASS (which adds only the label embedding's bias),
        for a conditional network; w: [N] guidance weights, for a network that takes them.
        Raises ValueError where y or w is missing or not wanted.
        """
        embedding = self.embed(t, y, w)
        h = self.head(z)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h)
        return self.tail(h)
