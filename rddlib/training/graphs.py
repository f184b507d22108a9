"""Networks as CUDA graphs: small ones keep a GPU waiting for Python to launch kernel after kernel; a recorded call is launched
as one."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rddlib.diffusion.unet import UNet
from rddlib.training.config import RunConfig

MOST = 4  # kinds of input of one network that are recorded, each with memory of its own; others run as they are


class Recorded:
    """network(*inputs) by a graph for each kind of input (shapes, types, with gradients or without), recorded when it first
    comes. What it returns, a tensor or several, is the caller's own."""

    def __init__(self, network: nn.Module):
        self.compiled = network._compiled_call_impl is not None
        self._network, self._call = network, network._compiled_call_impl or network._call_impl
        self._graphs: dict[tuple, Callable] = {}

    def __call__(self, *inputs: Tensor):
        kind = self._kind(inputs)
        if kind not in self._graphs and len(self._graphs) < MOST:
            self._graphs[kind] = self._record(inputs)
        return tree_map(torch.clone, self._graphs[kind](*inputs)) if kind in self._graphs else self._call(*inputs)

    def _kind(self, inputs: tuple[Tensor, ...]) -> tuple:
        shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for tensor in inputs)
        modes = (self._network.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        return shapes, modes, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

    def _record(self, inputs: tuple[Tensor, ...]) -> Callable:
        gc.collect()  # a graph must not be freed while another is recorded
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # recording has a stream of its own
        state = torch.cuda.get_rng_state(inputs[0].device)  # the runs before a recording draw dropout too
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        try:
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
                return torch.cuda.make_graphed_callables(
                    _Call(self._network, self._call),
                    tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs),
                    allow_unused_input=True,
                )
        finally:
            torch.cuda.set_rng_state(state, inputs[0].device)


class _Call(nn.Module):
    """The call of a network as a module with its parameters, which is what PyTorch records."""

    def __init__(self, network: nn.Module, call: Callable):
        super().__init__()
        self.network, self.call, self.training = network, call, network.training

    def forward(self, *inputs: Tensor):
        return self.call(*inputs)


def recorded(module: nn.Module, run: RunConfig) -> nn.Module:
    """The module, in place, its U-Nets `Recorded` on CUDA where `run` says so and no group of processes trains; after
    `compiled`, undone by `plain`.

    Not for a module whose gradients are added up over several backward passes, nor for a loss that calls it twice with
    gradients: a graph writes them, and what it needs for them, to the same place.
    """
    for network in module.modules():
        if isinstance(network, UNet) and _records(network, run):
            network._compiled_call_impl = Recorded(network)
    return module


@contextmanager
def recording(networks: Iterable[nn.Module], run: RunConfig) -> Iterator[None]:
    """Inside, these frozen networks are `Recorded` where `recorded` would record U-Nets, gradients at their inputs too."""
    before = {network: network._compiled_call_impl for network in networks if _records(network, run)}
    for network in before:
        network._compiled_call_impl = Recorded(network)
    try:
        yield
    finally:
        for network, call in before.items():
            network._compiled_call_impl = call


def _records(network: nn.Module, run: RunConfig) -> bool:
    """In a group, others' collectives would disturb a recording."""
    grouped = dist.is_available() and dist.is_initialized()
    return run.graphs == "auto" and not grouped and next(network.parameters()).is_cuda
