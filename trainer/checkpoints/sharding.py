"""FSDP2 under accelerate: what a Rosetta needs besides."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import PreTrainedModel

from .adapters import has_adapters


@contextmanager
def routers_in_fp32(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """
    A context to shard `model` in. accelerate shards with one precision for the whole model, which would round the
    routers' weights to bfloat16. Here the routers of a decoder layer become a group of their own that keeps fp32, at
    the price of one more small collective a layer.

    It replaces a function of torch's while accelerate shards in lower precision, for the layers of `model` only.
    accelerate offers no other way: its policies choose modules and not their precision; routers that are ignored get
    no gradient from the other ranks; and of routers that are sharded before, `cpu_ram_efficient_loading` would send
    out the main process's shard as the whole.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = None if plugin is None else plugin.mixed_precision_policy
    if policy is None or policy.param_dtype is None:
        yield
        return
    # By name, since remote code has classes of its own.
    waiting = {id(module) for module in model.modules() if type(module).__name__ == "RosettaDecoderLayer"}
    fully_shard = torch.distributed.fsdp.fully_shard

    def fully_shard_with_routers_apart(module, **kwargs):
        layer = getattr(module, "_checkpoint_wrapped_module", module)
        if id(layer) in waiting:
            waiting.remove(id(layer))  # recomputed, it comes within its wrapper too
            routers = [part for part in layer.modules() if type(part).__name__ == "RosettaRouter"]
            fully_shard(routers, **{**kwargs, "mp_policy": MixedPrecisionPolicy()})
        return fully_shard(module, **kwargs)

    torch.distributed.fsdp.fully_shard = fully_shard_with_routers_apart
    try:
        yield
    finally:
        torch.distributed.fsdp.fully_shard = fully_shard


def run_idle_parts(model: nn.Module):
    """Makes a model that is sharded run all of its parts in evaluation as well, whatever a batch holds: all ranks must
    call what they gather weights for."""
    for module in model.modules():
        if hasattr(module, "runs_idle_parts"):
            module.runs_idle_parts = True
    head = model.get_output_embeddings()

    def run_head(*_):
        # Losses take its weight and do not call it; without a backward pass, torch 2.11 takes the group that it is
        # sharded with for half run, and leaves it sharded in the next forward pass.
        if not torch.is_grad_enabled():
            head(head.weight.new_empty(0, head.weight.shape[1]))

    model.register_forward_hook(run_head, prepend=True)


def reduce_in_fp32(accelerator: Accelerator):
    """Has gradients added up over the ranks in fp32, and what modules return, losses among it, left as it is.
    accelerate would have both in the precision of the products. To be called before it shards."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = None if plugin is None else plugin.mixed_precision_policy
    if policy is not None and policy.param_dtype is not None:
        policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)
        plugin.mixed_precision_policy = policy


def unsharded_model(accelerator: Accelerator, model: nn.Module) -> PreTrainedModel | None:
    """
    The whole model, gathered into the memory of the main process. All processes must call this.

    Args:
        accelerator (`Accelerator`): that prepared the model.
        model (`nn.Module`): as `accelerator.prepare` returned it.

    Returns:
        The model, on the CPU if it was sharded and else itself, on the main process; `None` on the others.
    """
    unwrapped = accelerator.unwrap_model(model)
    if not isinstance(unwrapped, FSDPModule):
        return unwrapped if accelerator.is_main_process else None
    state_dict = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    bare = unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped
    names = ((name, _name_without_adapters(name)) for name in state_dict)
    own = {plain: state_dict[name] for name, plain in names if plain is not None}
    model_class = _unsharded_class(bare)
    whole = model_class.from_pretrained(None, config=bare.config, state_dict=own, dtype=bare.dtype)
    whole.name_or_path = bare.name_or_path
    if not has_adapters(unwrapped):
        return whole
    adapters = list(unwrapped.peft_config.items())
    if isinstance(unwrapped, PeftModel):
        (first, config), *others = adapters
        whole = _unsharded_class(unwrapped)(whole, config, first)
        for name, config in others:
            whole.add_adapter(name, config)
        whole.set_adapter(unwrapped.active_adapter)
    else:
        for name, config in adapters:
            whole.add_adapter(config, name)
        whole.set_adapter(unwrapped.active_adapters())
    whole.load_state_dict(state_dict)
    return whole


def _unsharded_class(model: nn.Module) -> Any:
    return next(parent for parent in type(model).__mro__ if not issubclass(parent, FSDPModule))


def _name_without_adapters(name: str) -> str | None:
    """The name that a weight of the base model has without adapters; `None` if it is an adapter's."""
    if ".lora_" in name or ".modules_to_save." in name:
        return None
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")


__all__ = ["reduce_in_fp32", "routers_in_fp32", "run_idle_parts", "unsharded_model"]
