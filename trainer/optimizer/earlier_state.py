"""The optimizer state that an earlier stage has left in a checkpoint, read for the parameters that live on."""

import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from .diff_lr import clean_parameter_name
from .whole_tensors import sharded_as


WHOLE, FSDP_WHOLE, FSDP_SHARDED = "optimizer.pt", "optimizer.bin", "optimizer_0"
MOMENTS = ("exp_avg", "exp_avg_sq")


def find_optimizer_state(checkpoint: str | os.PathLike, argument: str = "optimizer_state_from") -> Path:
    """
    The file, or with sharded state dicts the folder, of a checkpoint's optimizer.

    Raises:
        ValueError: if it has none; it names the `argument`.
    """
    for name in (WHOLE, FSDP_WHOLE, FSDP_SHARDED):
        if Path(checkpoint, name).exists():
            return Path(checkpoint, name)
    raise ValueError(
        f"`{argument}` must be a checkpoint with one of {WHOLE!r}, {FSDP_WHOLE!r} and {FSDP_SHARDED!r}, got "
        f"{str(checkpoint)!r}."
    )


def read_states(
    source: Path, params: dict[str, torch.Tensor], moments: tuple[str, ...] = MOMENTS
) -> tuple[dict[str, dict], set[str]]:
    """
    Args:
        source (`Path`): of [`find_optimizer_state`].
        params (`dict[str, torch.Tensor]`): by name.
        moments (`tuple[str, ...]`): which to read.

    Returns:
        `dict[str, dict]`: of the parameters of the same name and shape there `step` and `moments`, sharded as they
        are; `set[str]`: the names of all that have a state there.
    """
    read = _read_sharded if source.is_dir() else _read_whole
    return read(source, params, moments)


def second_moments(source: Path, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the parameters of the same name and shape `exp_avg_sq`, corrected for its bias as Adam does."""
    states, _ = read_states(source, params, ("exp_avg_sq",))
    if not states:
        return {}
    groups: dict = {"optimizer": {"param_groups": [{"betas": None}]}}
    if source.is_dir():
        dcp.load(groups, storage_reader=dcp.FileSystemReader(source))
    else:
        groups["optimizer"] = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    _, beta2 = groups["optimizer"]["param_groups"][0]["betas"]
    return {
        name: (state["exp_avg_sq"] / (1 - beta2 ** float(state["step"]))).to(params[name].device, params[name].dtype)
        for name, state in states.items()
    }


def _read_whole(file: Path, params: dict[str, torch.Tensor], moments) -> tuple[dict[str, dict], set[str]]:
    stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    states = {}
    for group in stored["param_groups"]:
        # FSDP's files have names in place of the numbers.
        for key, name in zip(group["params"], group.get("param_names", group["params"]), strict=True):
            if key in stored["state"]:
                states[clean_parameter_name(name)] = stored["state"][key]
    fitting = {
        name: {"step": states[name]["step"], **{key: sharded_as(param, states[name][key]) for key in moments}}
        for name, param in params.items()
        if name in states and states[name][moments[0]].shape == param.shape
    }
    return fitting, set(states)


def _read_sharded(folder: Path, params: dict[str, torch.Tensor], moments) -> tuple[dict[str, dict], set[str]]:
    """From a folder of `torch.distributed.checkpoint`, of which each rank reads its part."""
    reader = dcp.FileSystemReader(folder)
    prefix, suffix = "optimizer.state.", f".{moments[0]}"
    shapes = {
        key.removeprefix(prefix).removesuffix(suffix): stored.size
        for key, stored in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
    original_names = {clean_parameter_name(name): name for name in shapes}
    states = {
        name: {"step": torch.zeros(()), **{key: torch.empty_like(param).detach() for key in moments}}
        for name, param in params.items()
        if name in original_names and shapes[original_names[name]] == param.shape
    }
    if states:
        stored = {original_names[name]: state for name, state in states.items()}
        dcp.load({"optimizer": {"state": stored}}, storage_reader=reader)
    return states, set(original_names)


__all__ = ["MOMENTS", "find_optimizer_state", "read_states", "second_moments"]
