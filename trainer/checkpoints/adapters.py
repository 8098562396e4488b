"""Adapters of peft in checkpoints: those of a `PeftModel`, and those that `model.add_adapter` puts into a model."""

import os
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn


_PREFIX = "base_model.model."  # of all names in peft's files, and in a `PeftModel`


def has_adapters(model: nn.Module) -> bool:
    """Whether what is saved of `model` is its adapters."""
    return isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False)


def check_adapters_hold_what_is_trained(model: nn.Module):
    """
    Raises:
        ValueError: if a parameter is trained beside the adapters of `model`, which no checkpoint would hold.
    """
    if not has_adapters(model):
        return
    kept = {id(weight) for name in model.peft_config for weight in _weights(model, name, _parameters(model)).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in kept:
            raise ValueError(
                f"`model`: '{name}' is trained beside the adapters, but is part of none, and would not be saved. "
                "Freeze it, or name its module in `modules_to_save` of the adapter's configuration."
            )


def save_adapters(folder: str | os.PathLike, model: nn.Module, state_dict: dict | None = None):
    """
    Writes all adapters as `PeftModel.save_pretrained` lays them out: one named `"default"`, or the only one that a
    model of transformers has, in `folder`, others in folders of their own.

    Args:
        folder (`str` or `os.PathLike`)
        model (`PeftModel` or `PreTrainedModel`): whole, not sharded.
        state_dict (`dict`, *optional*): of `model`, if other weights are to be saved.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    for name, config in model.peft_config.items():
        own = _folder(folder, name, model)
        own.mkdir(parents=True, exist_ok=True)
        weights = _weights(model, name, state_dict)
        prefixed = {_PREFIX + key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
        save_file(prefixed, own / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(own)


def load_adapters(folder: str | os.PathLike, model: nn.Module):
    """
    Puts the adapters that [`save_adapters`] wrote into those of `model`.

    Raises:
        ValueError: if an adapter is not in `folder`, or has other weights there.
    """
    for name in model.peft_config:
        file = _folder(folder, name, model) / SAFETENSORS_WEIGHTS_NAME
        if not file.is_file():
            raise ValueError(f"`model` has an adapter '{name}', the checkpoint has none: {file} does not exist.")
        stored = _plain(load_file(file))
        own = _weights(model, name)
        for key in sorted(stored.keys() | _plain(own).keys()):
            there, here = (tuple(weights[key].shape) if key in weights else None for weights in (stored, _plain(own)))
            if there != here:
                raise ValueError(
                    f"`model`: its adapter '{name}' is not the checkpoint's: '{key}' has the shape {here}, and "
                    f"{there} in {file}."
                )
        set_peft_model_state_dict(model, {key: stored[key.removeprefix(_PREFIX)] for key in own}, name)


def _folder(folder: str | os.PathLike, name: str, model: nn.Module) -> Path:
    is_alone = not isinstance(model, PeftModel) and len(model.peft_config) == 1
    return Path(folder) if is_alone or name == "default" else Path(folder, name)


def _weights(model: nn.Module, name: str, state_dict: dict | None = None) -> dict[str, torch.Tensor]:
    # The base model's embedding is not trained, and would be looked for in a configuration on the Hub.
    return get_peft_model_state_dict(model, state_dict, name, save_embedding_layers=False)


def _plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(_PREFIX): weight for key, weight in weights.items()}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A state dict that holds the parameters themselves."""
    return dict(model.named_parameters(remove_duplicate=False))


__all__ = ["check_adapters_hold_what_is_trained", "has_adapters", "load_adapters", "save_adapters"]
