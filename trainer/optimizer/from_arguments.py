"""The optimizer that the arguments of the Trainer ask for."""

import logging
from collections.abc import Collection

import torch
from torch import nn

from .diff_lr import diff_lr_groups
from .maop import MAOPAdamW


logger = logging.getLogger(__name__)


def optimizer_from_arguments(
    model: nn.Module,
    config,
    args,
    decay_parameter_names: Collection[str],
    optimizer_class: type[torch.optim.Optimizer] = MAOPAdamW,
    **kwargs,
) -> torch.optim.Optimizer:
    """
    An optimizer over the parameter groups of DiffLR.

    Args:
        model (`nn.Module`)
        config (`RosettaConfig`)
        args ([`RosettaTrainingArguments`])
        decay_parameter_names (`Collection[str]`): what decays unless `args.decay_all_parameters`.
        optimizer_class (`type[torch.optim.Optimizer]`)
        kwargs: its arguments. `lr` and `weight_decay` take the place of those of `args`, `params` that of the groups.
    """
    groups = kwargs.pop("params", None)
    if groups is None:
        groups = diff_lr_groups(
            model,
            config,
            learning_rate=kwargs.get("lr", args.learning_rate),
            generation_learning_rate=args.generation_learning_rate,
            weight_decay=kwargs.get("weight_decay", args.weight_decay),
            decay_parameter_names=None if args.decay_all_parameters else set(decay_parameter_names),
            latent_projections_at_generation_rate=args.latent_projections_at_generation_rate,
            maop=args.maop,
        )
    return optimizer_class(groups, **kwargs)


def warn_if_maop_has_no_effect(optimizer: torch.optim.Optimizer, args):
    if args.maop and not isinstance(optimizer, MAOPAdamW):
        logger.warning(
            "%s projects no gradients: `maop` has no effect. `maop=False` leaves out this warning.",
            type(optimizer).__name__,
        )


__all__ = ["optimizer_from_arguments", "warn_if_maop_has_no_effect"]
