"""FSDP2 under accelerate: what a Rosetta needs besides."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import PreTrainedModel


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
    adapters = getattr(unwrapped, "peft_config", {})
    own = {name.replace(".base_layer", ""): weight for name, weight in state_dict.items() if ".lora_" not in name}
    model_class = next(parent for parent in type(unwrapped).__mro__ if not issubclass(parent, FSDPModule))
    whole = model_class.from_pretrained(None, config=unwrapped.config, state_dict=own, dtype=unwrapped.dtype)
    whole.name_or_path = unwrapped.name_or_path
    for name, adapter in adapters.items():
        whole.add_adapter(adapter, name)
    if adapters:
        whole.load_state_dict(state_dict)
    return whole


__all__ = ["reduce_in_fp32", "routers_in_fp32", "unsharded_model"]
