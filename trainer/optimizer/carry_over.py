"""The optimizer state of an earlier stage, carried over to the parameters that live on."""

import logging
import os

import torch

from .earlier_state import MOMENTS, find_optimizer_state, read_states


logger = logging.getLogger(__name__)


def check_takes_moments(optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer], **kwargs):
    """
    Args:
        optimizer (`torch.optim.Optimizer` or its class): that shall go on with the moments of an earlier stage.
        kwargs: the arguments of the class.

    Raises:
        ValueError: if it has no such moments, or its parameters have no names.
    """
    optimizer_class = optimizer if isinstance(optimizer, type) else type(optimizer)
    if not issubclass(optimizer_class, torch.optim.Adam):  # which AdamW is one of
        raise ValueError(
            f"`optimizer_state_from` must be None with {optimizer_class.__name__}: only the moments of Adam and AdamW "
            "can be carried over."
        )
    if kwargs.get("amsgrad", False) if isinstance(optimizer, type) else optimizer.defaults["amsgrad"]:
        raise ValueError("`optimizer_state_from` must be None with `amsgrad`, whose maxima are not carried over.")
    if not isinstance(optimizer, type) and not all("param_names" in group for group in optimizer.param_groups):
        raise ValueError("`optimizer` must have named parameters for its state to be carried over.")


def carry_over_optimizer_state(optimizer: torch.optim.AdamW, checkpoint: str | os.PathLike) -> dict[str, list[str]]:
    """
    Gives `optimizer` the moments and step counts that a checkpoint's AdamW had for the parameters of the same name and
    shape. Learning rates, weight decay and MAOP's flags stay its own, and all other parameters start fresh. Parameters
    may be sharded otherwise than they were in the checkpoint.

    Args:
        optimizer (`torch.optim.AdamW`): with named parameters, e.g. of [`diff_lr_groups`].
        checkpoint (`str` or `os.PathLike`): of an earlier stage, in any of the Trainer's formats.

    Returns:
        `dict[str, list[str]]`: names of the parameters, `carried`, `new` (not in the checkpoint) and `reshaped`.

    Raises:
        ValueError: if `optimizer` cannot take them, or the checkpoint has no optimizer or no parameter of `optimizer`.
    """
    check_takes_moments(optimizer)
    source = find_optimizer_state(checkpoint)
    params = {
        name: (param, group)
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
    }
    states, known = read_states(source, {name: param for name, (param, _) in params.items()})
    if not states:
        raise ValueError(f"`optimizer_state_from`: none of the trained parameters has a state in {source}.")
    for name, state in states.items():
        param, group = params[name]
        device = param.device if group["fused"] or group["capturable"] else "cpu"
        step = torch.as_tensor(state["step"], dtype=torch.float32)
        moments = {key: state[key].to(param.device, param.dtype, copy=True) for key in MOMENTS}  # not a mapped file
        optimizer.state[param] = {"step": step.to(device), **moments}
    report = {
        "carried": list(states),
        "new": [name for name in params if name not in known],
        "reshaped": [name for name in params if name in known and name not in states],
    }
    logger.warning(
        "Optimizer state carried over from %s for %d parameters. New there, with a fresh state: %s. Of another shape "
        "there, with a fresh state: %s.",
        source,
        len(report["carried"]),
        report["new"] or "none",
        report["reshaped"] or "none",
    )
    return report


__all__ = ["carry_over_optimizer_state", "check_takes_moments"]
