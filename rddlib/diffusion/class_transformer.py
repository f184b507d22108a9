"""A DiTTransformer2DModel of diffusers as the network of a Denoiser: it draws latents of classes, and may take a weight w."""

import inspect

import torch
from torch import Tensor, nn

from rddlib.diffusion.diffusers_unet import LABEL_DROPOUT, DiffusersConfig, diffusers_class, plain_config, sides_of
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.prompted_unet import GUIDANCE_CHANNELS, weight_sinusoids
from rddlib.diffusion.unet import NO_CLASS
from rddlib.utils.errors import UserError

LEARNED_SIGMA = 2  # a network that learns sigma makes this many times the channels that it takes


class _Labels(nn.Module):
    """The row of a class plus what stands for w; diffusers' own, in whose place this is, would drop labels by itself."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.embedding_table = table

    def forward(self, given: tuple[Tensor, Tensor | float]) -> Tensor:
        labels, weight = given
        return self.embedding_table(labels) + weight


class ClassTransformer(nn.Module):
    """A DiTTransformer2DModel with our times, labels and weights.

    Args:
        transformer: the DiTTransformer2DModel, or the Transformer2DModel of the same tensors; it is copied, without the
            channels that learn sigma.
        grid: the number T of times it was trained with, so that t enters as the index T t - 1.
        space: where it draws, None for a network that nobody asks yet.
        guidance: (w_min, w_max) if it takes w, else empty. All blocks see the sinusoids of w through one layer.

    Raises UserError for a transformer that needs more than noise, time and class.
    """

    def __init__(
        self, transformer: nn.Module, grid: int, space: LatentSpace | None = None, guidance: tuple[float, ...] = ()
    ):
        super().__init__()
        self.transformer, self.grid, self.space, self.guidance = _copied(transformer), grid, space, tuple(guidance)
        for block in self.transformer.transformer_blocks:
            block.norm1.emb.class_embedder = _Labels(block.norm1.emb.class_embedder.embedding_table)
        if guidance:
            self.weight_embedding = nn.Linear(GUIDANCE_CHANNELS, self.transformer.inner_dim, bias=False)

    @property
    def config(self) -> DiffusersConfig:
        """What a Denoiser asks. The row after the last class means "no class"."""
        config = self.transformer.config
        shape = (config.in_channels, *sides_of(self.transformer))
        return DiffusersConfig(shape, config.num_embeds_ada_norm, LABEL_DROPOUT, self.guidance)

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """The network's output, of z's shape.

        z: latents [N, C, H, W]; t: [N] in [0, 1]; y: [N] labels or NO_CLASS; w: [N] for a network that takes it. Raises
        ValueError where y is missing, and where w is missing or not wanted.
        """
        if y is None:
            raise ValueError("this network is class-conditional: pass labels y")
        if (w is None) == bool(self.guidance):
            raise ValueError(f"this network takes {'' if w is None else 'no '}guidance weights w")
        labels = torch.where(y == NO_CLASS, self.config.num_classes, y)
        weight = 0.0 if w is None else self._weight(w, z)
        index = (t * self.grid - 1).clamp(min=0)
        return self.transformer(z, index, class_labels=(labels, weight), return_dict=False)[0]

    def _weight(self, w: Tensor, like: Tensor) -> Tensor:
        return self.weight_embedding(weight_sinusoids(w, GUIDANCE_CHANNELS).to(like))

    def with_guidance(self, weights: tuple[float, ...]) -> "ClassTransformer":
        """A copy that takes w in this range as well, and does not heed it yet: its new layer is zero."""
        made = ClassTransformer(self.transformer, self.grid, self.space, weights)
        nn.init.zeros_(made.weight_embedding.weight)
        return made

    @torch.no_grad()
    def plain(self, w: float | None = None) -> nn.Module:
        """The DiTTransformer2DModel that computes the same; w, for a network that takes it, becomes part of each class."""
        made = _copied(self.transformer)
        if w is not None:
            weight = self.weight_embedding.weight
            shift = self._weight(torch.tensor([w], device=weight.device), weight)
            for block in made.transformer_blocks:
                block.norm1.emb.class_embedder.embedding_table.weight += shift.to(made.device)
        return made

    @property
    def facts(self) -> dict:
        """JSON-serialisable facts, from which `of` makes the network again with fresh weights."""
        return {"config": plain_config(self.transformer), "grid": self.grid, "guidance": list(self.guidance)}

    @classmethod
    def of(cls, facts: dict) -> "ClassTransformer":
        """An untrained network from its `facts`, in no latent space yet. Raises UserError if diffusers is missing."""
        transformer = diffusers_class("DiTTransformer2DModel").from_config(facts["config"])
        return cls(transformer, facts["grid"], guidance=tuple(facts["guidance"]))


def _copied(transformer: nn.Module) -> nn.Module:
    """A DiTTransformer2DModel of the same weights that makes as many channels as it takes."""
    config, kind = dict(transformer.config), diffusers_class("DiTTransformer2DModel")
    channels, made = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if config.get("norm_type") != "ada_norm_zero" or made not in (channels, LEARNED_SIGMA * channels):
        raise UserError(
            "this transformer is no DiT of classes that predicts epsilon, sample or v of its latents: it cannot be taken"
        )
    known = {name: config[name] for name in inspect.signature(kind.__init__).parameters if name in config}
    copy, tensors = kind.from_config(known | {"out_channels": channels}), transformer.state_dict()
    for name in ("proj_out_2.weight", "proj_out_2.bias"):  # rows: a patch's pixels, then channels, sigma's last
        patches = tensors[name].unflatten(0, (-1, made))
        tensors[name] = patches[:, :channels].flatten(0, 1)
    copy.load_state_dict(tensors)
    return copy.to(transformer.device)
