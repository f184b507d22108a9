"""What a network of any size would take to distil, computed on the meta device: nothing is measured, and nothing is read but
the network's configuration."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rddlib.diffusion.diffusers_unet import diffusers_class, sides_of
from rddlib.training.adapters import adapted
from rddlib.utils.errors import UserError
from rddlib.utils.text import human_size

NETWORKS = ("UNet2DConditionModel", "UNet2DModel", "DiTTransformer2DModel")
TOKENS = 77  # of a prompt, CLIP's
TRAINED = 16  # bytes of a trained parameter: it, its gradient and Adam's two moments, all in float32
# An iteration of either stage: two of the teacher, one of the student, and a backward pass twice as dear.
EVALUATIONS = 5
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Computed:
    """Of one network: parameters, and how many are trained; flops: of evaluating one image; kept: bytes that its backward pass
    needs of one image."""

    name: str
    shape: tuple[int, int, int]
    precision: str
    parameters: int
    trained: int
    flops: int
    kept: int

    def memory(self, batch: int) -> int:
        """Bytes of a student in training at this batch, with its teacher in float32; buffers of kernels come on top."""
        return self.parameters * 4 + self.trained * TRAINED + self.kept * batch

    def held(self, batch: int) -> str:
        """The memory, in words."""
        fixed, image, total = map(human_size, (self.memory(0), self.kept, self.memory(batch)))
        return f"{fixed} of student, Adam and teacher, and {image} of activations an image: {total} at batch {batch}"

    def lines(self, batch: int, adapters: "Computed | None" = None) -> list[str]:
        """As `rdd plan --computed` says it; adapters: the same with a student that learns nothing else."""
        shape = "x".join(map(str, self.shape))
        return [
            f"{self.name}: {self.parameters / 1e6:.1f}M parameters, latents or images of {shape}",
            f"one evaluation of one image: {self.flops / 1e9:.1f} GFLOP; an iteration of batch {batch}, in either stage: "
            f"{EVALUATIONS * batch * self.flops / 1e12:.2f} TFLOP",
            f"memory in {self.precision}: {self.held(batch)}",
            *([f"with distill.lora {adapters.trained / 1e6:.1f}M learn: {adapters.held(batch)}"] if adapters else []),
            "Computed on the meta device, not measured: with fused attention, without buffers, extractor and autoencoder.",
        ]


def computed(folder: Path, precision: str = "float32", lora: int = 0) -> Computed:
    """What the network of a diffusers pipeline's folder would take; it needs unet/config.json (or that of transformer/) and no
    weights.

    precision: of the activations, "float32" or "bf16"; lora: of `Trainer`. Raises UserError where there is no such
    configuration, and as `adapted` does.
    """
    part = next((name for name in ("unet", "transformer") if (folder / name).is_dir()), "")
    place = folder / part / "config.json"
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} describes no network: name the folder of a pipeline with unet/config.json") from error
    if kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        kind = "DiTTransformer2DModel"  # by its older name
    if kind not in NETWORKS:
        raise UserError(f"{place} describes a {kind}: only {', '.join(NETWORKS)} can be computed")
    if config.get("addition_embed_type"):
        raise UserError(
            f"{place} describes a network that wants more than a prompt (size, image): it cannot be computed"
        )
    with torch.device("meta"):
        return of_network(diffusers_class(kind).from_config(config), precision, lora)


def of_network(unet: nn.Module, precision: str = "float32", lora: int = 0) -> Computed:
    """`computed` of a network of diffusers, on whichever device it is."""
    like = next(unet.parameters())
    dtype, shape = DTYPES[precision], (unet.config.in_channels, *sides_of(unet))
    count = sum(parameter.numel() for parameter in unet.parameters())
    unet = adapted(unet, lora) if lora else unet
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    unet = nn.Module.to(unet, dtype)  # past a warning that is for models in use
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor  # each storage once, however many layers keep it
        return tensor

    z = torch.zeros(1, *shape, device=like.device, dtype=dtype)
    options = {}
    if hasattr(unet.config, "cross_attention_dim"):
        width = unet.config.cross_attention_dim
        options["encoder_hidden_states"] = torch.zeros(1, TOKENS, width, device=like.device, dtype=dtype)
    if hasattr(unet.config, "num_embeds_ada_norm") or getattr(unet.config, "num_class_embeds", None):
        options["class_labels"] = torch.zeros(1, device=like.device, dtype=torch.long)
    t = torch.zeros(1, device=like.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(z, t, return_dict=False, **options)
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(z, t, return_dict=False, **options)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Computed(type(unet).__name__, shape, precision, count, trained, counter.get_total_flops(), size)


class _Attention(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: its inputs and its output, never the matrix of weights."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Attention.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
