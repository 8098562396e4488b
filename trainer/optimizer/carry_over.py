"""The optimizer state of an earlier stage, carried over to the parameters that live on."""

import logging
import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor, distribute_tensor

from .diff_lr import clean_parameter_name


logger = logging.getLogger(__name__)

WHOLE, FSDP_WHOLE, FSDP_SHARDED = "optimizer.pt", "optimizer.bin", "optimizer_0"
MOMENTS = ("exp_avg", "exp_avg_sq")


def find_optimizer_state(checkpoint: str | os.PathLike) -> Path:
    """
    The file, or with sharded state dicts the folder, of a checkpoint's optimizer.

    Raises:
        ValueError: if it has none.
    """
    for name in (WHOLE, FSDP_WHOLE, FSDP_SHARDED):
        if Path(checkpoint, name).exists():
            return Path(checkpoint, name)
    raise ValueError(
        f"`optimizer_state_from` must be a checkpoint with one of {WHOLE!r}, {FSDP_WHOLE!r} and {FSDP_SHARDED!r}, got "
        f"{str(checkpoint)!r}."
    )


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
    read = _read_sharded if source.is_dir() else _read_whole
    states, known = read(source, {name: param for name, (param, _) in params.items()})
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


def _read_whole(file: Path, params: dict[str, torch.Tensor]) -> tuple[dict[str, dict], set[str]]:
    """The states of `params` in a file, sharded as these are, and the names of all that have one there."""
    stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    states = {}
    for group in stored["param_groups"]:
        # FSDP's files have names in place of the numbers.
        for key, name in zip(group["params"], group.get("param_names", group["params"]), strict=True):
            if key in stored["state"]:
                states[clean_parameter_name(name)] = stored["state"][key]
    fitting = {
        name: {"step": states[name]["step"], **{key: _sharded_as(param, states[name][key]) for key in MOMENTS}}
        for name, param in params.items()
        if name in states and states[name]["exp_avg"].shape == param.shape
    }
    return fitting, set(states)


def _read_sharded(folder: Path, params: dict[str, torch.Tensor]) -> tuple[dict[str, dict], set[str]]:
    """The same from a folder of `torch.distributed.checkpoint`, of which each rank reads its part."""
    reader = dcp.FileSystemReader(folder)
    prefix, suffix = "optimizer.state.", ".exp_avg"
    shapes = {
        key.removeprefix(prefix).removesuffix(suffix): stored.size
        for key, stored in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
    original_names = {clean_parameter_name(name): name for name in shapes}
    states = {
        name: {"step": torch.zeros(()), **{key: torch.empty_like(param).detach() for key in MOMENTS}}
        for name, param in params.items()
        if name in original_names and shapes[original_names[name]] == param.shape
    }
    if states:
        stored = {original_names[name]: state for name, state in states.items()}
        dcp.load({"optimizer": {"state": stored}}, storage_reader=reader)
    return states, set(original_names)


def _sharded_as(param: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    if not isinstance(param, DTensor):
        return whole
    # Every rank has read the file: none needs to send the others their part.
    return distribute_tensor(whole.to(param.device), param.device_mesh, param.placements, src_data_rank=None)


__all__ = ["carry_over_optimizer_state", "check_takes_moments", "find_optimizer_state"]
