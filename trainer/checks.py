"""What the Trainer cannot do is said before it starts."""

import os

import torch
from accelerate.utils import DistributedType

from .training_arguments import RosettaTrainingArguments


NEVER_CALLED = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")
# Arguments of transformers' that nothing would heed, and the value they must have.
NOT_HEEDED = {
    "optim_args": None,
    "optim_target_modules": None,
    "average_tokens_across_devices": True,
    "use_liger_kernel": False,
    "batch_eval_metrics": False,
    "include_for_metrics": [],
}


def check_arguments(args: RosettaTrainingArguments, kwargs: dict):
    """
    Args:
        args ([`RosettaTrainingArguments`])
        kwargs (`dict`): the other arguments of the Trainer.

    Raises:
        ValueError: if one is of another class, or would have no effect.
    """
    if not isinstance(args, RosettaTrainingArguments):
        raise ValueError(f"`args` must be RosettaTrainingArguments, got {type(args).__name__}.")
    for name in NEVER_CALLED:
        if kwargs.get(name) is not None:
            raise ValueError(f"`{name}` must be None: RosettaTrainer trains on and evaluates the model's losses.")
    for name, heeded in NOT_HEEDED.items():
        if getattr(args, name) != heeded:
            raise ValueError(f"`{name}` must be {heeded!r}, as it has no effect here; got {getattr(args, name)!r}.")
    if args.n_gpu > 1:
        raise ValueError(
            f"`args.n_gpu` must be at most 1, got {args.n_gpu}: images cannot be scattered by "
            "`torch.nn.DataParallel`. Start one process a GPU with `accelerate launch`."
        )
    _check_optimizer(args, kwargs)


def _check_optimizer(args: RosettaTrainingArguments, kwargs: dict):
    brings_groups = (kwargs.get("optimizers") or (None,))[0] is not None
    if (chosen := kwargs.get("optimizer_cls_and_kwargs")) is not None:
        optimizer_class = chosen[0] if isinstance(chosen, tuple | list) and len(chosen) == 2 else None
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
            raise ValueError(
                "`optimizer_cls_and_kwargs` must be a class of torch optimizers and its keyword arguments, got "
                f"{chosen!r}."
            )
        brings_groups = brings_groups or "params" in chosen[1]
    if brings_groups and args.generation_learning_rate is not None:
        raise ValueError(
            "`generation_learning_rate` must be None with parameter groups of one's own, which have their rates; got "
            f"{args.generation_learning_rate}."
        )


def check_parallelism(accelerator, is_fsdp_enabled: bool):
    """
    Args:
        accelerator (`Accelerator`)
        is_fsdp_enabled (`bool`): whether it shards with FSDP.

    Raises:
        ValueError: if the model would not be sharded as was asked.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("DeepSpeed was asked for, but models are sharded by FSDP2 only.")
    parallelism = getattr(accelerator, "parallelism_config", None)
    for name in ("tp_size", "cp_size", "sp_size"):
        if (size := getattr(parallelism, name, 1)) > 1:
            raise ValueError(f"`parallelism_config`: `{name}` must be 1, got {size}: only data are parallel here.")
    if is_fsdp_enabled:
        if (version := accelerator.state.fsdp_plugin.fsdp_version) != 2:
            raise ValueError(f"`fsdp_version` must be 2, got {version}.")
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.num_processes > 1:
        raise ValueError(
            f"FSDP was asked for, but accelerate does not shard on {accelerator.device.type!r} devices; it would "
            "replicate the model instead. Leave FSDP out there."
        )


__all__ = ["check_arguments", "check_parallelism"]
