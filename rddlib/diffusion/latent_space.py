"""Where latent models draw: images to latents and back by an autoencoder, prompts to embeddings by a text encoder."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from rddlib.utils.checkpoint import digest
from rddlib.utils.errors import UserError
from rddlib.utils.text import one_line, say

BLOCK = 16  # images or prompts that pass through a network at a time


class LatentSpace:
    """The parts of a latent pipeline that are not distilled, and a table of prompts.

    It is shared by all networks of its model, copies of theirs included; nothing of it is trained.

    Args:
        kind: the pipeline's class in diffusers, as which a student is saved.
        parts: its components by name: "vae" or "vqvae", "text_encoder" and "tokenizer" where it takes prompts, "id2label"
            ({"0": "name, other name", ..}) where it knows its classes' names.
        latent_shape: (C, H, W) of the latents.
        origin: where the parts were read, for the record of a student.

    Raises UserError for an autoencoder that cannot encode, or makes latents of another shape.
    """

    def __init__(self, kind: str, parts: Mapping[str, object], latent_shape: tuple[int, int, int], origin: str = ""):
        self.kind, self.parts, self.latent_shape, self.origin = kind, dict(parts), latent_shape, origin
        self.vae: nn.Module = parts.get("vae") or parts["vqvae"]
        self.scale = float(self.vae.config.scaling_factor)
        self.prompts: tuple[str, ...] = ()
        if self.takes_prompts and getattr(self.vae.config, "shift_factor", None):
            raise UserError("this autoencoder shifts its latents, as pipelines of flow models do: it cannot be taken")
        for network in self.networks.values():
            network.eval().requires_grad_(False)
        self._check_codec()

    def __deepcopy__(self, memo: dict) -> "LatentSpace":
        return self

    @property
    def takes_prompts(self) -> bool:
        """Whether what is drawn follows a text."""
        return "text_encoder" in self.parts

    @property
    def class_names(self) -> list[str]:
        """The first name of each class, in order; [] where they are not known."""
        named = {int(k): name.split(",")[0].strip() for k, name in (self.parts.get("id2label") or {}).items()}
        return [named[k] for k in sorted(named)] if sorted(named) == list(range(len(named))) else []

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Its parts that hold weights."""
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.in_channels, *(factor * side for side in self.latent_shape[1:]))

    @cached_property
    def sha256(self) -> str:
        """Of the tensors of autoencoder and text encoder, and of the scale."""
        tensors = {f"{name}.{key}": t for name, net in self.networks.items() for key, t in net.state_dict().items()}
        return digest(tensors, f"{self.scale}")

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint records of it, by which `load_model` finds it again."""
        return {"origin": self.origin, "sha256": self.sha256}

    def _check_codec(self) -> None:
        blank = torch.zeros(1, *self.image_shape, device=next(self.vae.parameters()).device)
        try:
            latents = self.encode(blank)
            back = self.decode(latents)
        except (RuntimeError, ValueError, AttributeError) as error:
            said = f"this autoencoder cannot take images of {self.image_shape} ({one_line(error, 100)})"
            raise UserError(f"{said}: get it again") from error
        if tuple(latents.shape[1:]) != tuple(self.latent_shape) or back.shape != blank.shape:
            raise UserError(
                f"this autoencoder makes latents {tuple(latents.shape[1:])} of images {self.image_shape}, its network takes "
                f"{tuple(self.latent_shape)}: they do not belong together"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [N, c, h, w] of images [N, C, H, W] in [-1, 1]: the mode of the autoencoder's posterior, scaled."""
        vae = self.vae.to(images.device)

        def block(x: Tensor) -> Tensor:
            encoded = vae.encode(x)
            return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

        return self.scale * torch.cat([block(x) for x in images.split(BLOCK)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, C, H, W], clamped to [-1, 1], of latents [N, c, h, w]."""
        return torch.cat([self.seen(z) for z in latents.split(BLOCK)]).clamp(-1, 1)

    def seen(self, latents: Tensor) -> Tensor:
        """As `decode`, all at once, differentiable in the latents and not clamped."""
        return self.vae.to(latents.device).decode(latents / self.scale).sample

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What the network is shown of prompts: [M, tokens, channels]. Those that are too long are cut, counted and said."""
        encoder, tokenizer = self.parts["text_encoder"], self.parts["tokenizer"]
        most, found = tokenizer.model_max_length, []
        long = [text for text in prompts if len(tokenizer(text, truncation=False).input_ids) > most]
        if long:
            say(f"{len(long)} of {len(prompts)} prompts are cut at {most} tokens, the first: {long[0][:60]!r}")
        for start in range(0, len(prompts), BLOCK):
            texts = list(prompts[start : start + BLOCK])
            tokens = tokenizer(texts, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
            seen = getattr(encoder.config, "use_attention_mask", None) and tokens.attention_mask
            found.append(encoder(tokens.input_ids.to(encoder.device), attention_mask=seen)[0])
        return torch.cat(found)

    @cached_property
    def table(self) -> Tensor:
        """[len(prompts) + 1, tokens, channels]: each prompt as the network sees it, the empty one last."""
        return self.embed([*self.prompts, ""])

    def with_prompts(self, prompts: Sequence[str], table: Tensor | None = None) -> "LatentSpace":
        """The same space with other prompts; table: of `table`, where it was computed before.

        Raises UserError where it takes none.
        """
        if not self.takes_prompts:
            raise UserError(f"a {self.kind} draws without prompts: leave them out")
        other = copy.copy(self)
        other.__dict__.pop("table", None)
        other.prompts = tuple(prompts)
        if table is not None:
            other.table = table
        return other
