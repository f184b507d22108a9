"""Low-rank adapters (LoRA, Hu et al. 2021) of a network's attention projections, by peft, an extra; merged once trained."""

import copy

from torch import nn

from rddlib.utils.errors import UserError

PROJECTIONS = r"(.*\.)?(to_[qkv]|to_out\.0|attention\.(qkv|proj))"  # of attention, in diffusers' networks and in ours


def sharing(module: nn.Module) -> nn.Module:
    """A copy whose parameters are the module's own, so that they are held once."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def adapted(module: nn.Module, rank: int) -> nn.Module:
    """The module, in place, its attention projections W as W + B A, where A [rank, in] and B [out, rank] alone are trained.

    B begins as zeros, so that the outputs are what they were. Raises UserError without peft, and where no layer is a
    projection of attention.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "adapters (lora) need peft, which cannot be imported here: pip install 'rddlib[lora]'"
        ) from error
    try:
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS), module)
    except ValueError as error:  # it found none
        raise UserError("this network has no attention projections to adapt: leave lora out") from error


def merged(module: nn.Module) -> nn.Module:
    """A copy of an adapted module in which each W is W + B A, of the same layers as before it was adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    module = copy.deepcopy(module)  # the weights may be another's too
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())
    return module
