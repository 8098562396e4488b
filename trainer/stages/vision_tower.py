"""The ViT of a Qwen3-VL, taken out of its repository (paper, C.1.2)."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.utils import cached_file


PREFIXES = ("model.visual.", "visual.", "")  # in a Qwen3-VL, in older ones, and in a ViT on its own
PROJECTORS = ("linear_fc2.weight", "linear_fc2.bias")
INDEX = "model.safetensors.index.json"


def load_vision_tower(name_or_path: str | os.PathLike, out_hidden_size: int) -> Qwen3VLVisionModel:
    """
    Loads the ViT of a Qwen3-VL (dense or MoE), reading no file of weights that has none of it. Its projectors
    (`linear_fc2`) lead to the width of another language model: unless they fit, they start afresh.

    Args:
        name_or_path (`str` or `os.PathLike`): folder or Hub id of a Qwen3-VL, or of a ViT that was saved on its own.
        out_hidden_size (`int`): the hidden size that its features are projected to.

    Raises:
        ValueError: if it has no ViT, or its weights are not complete.
        OSError: if there is nothing of that name.
    """
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path)
    fields = fields.get("vision_config", fields)
    if not str(fields.get("model_type")).startswith("qwen3_vl"):
        raise ValueError(f"`name_or_path`: '{name_or_path}' is no Qwen3-VL, but of type '{fields.get('model_type')}'.")
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "dtype", "torch_dtype")}
    config = Qwen3VLVisionConfig(**{**fields, "out_hidden_size": out_hidden_size})
    tower = Qwen3VLVisionModel._from_config(config, dtype=torch.float32)
    state = tower.state_dict()
    weights = _read(name_or_path, state)
    for name in state.keys() & weights.keys():
        if "merger" in name and name.endswith(PROJECTORS) and weights[name].shape != state[name].shape:
            weights[name] = state[name]  # as it was initialised
    if missing := sorted(state.keys() - weights.keys()):
        raise ValueError(
            f"`name_or_path`: the weights in '{name_or_path}' lack {len(missing)} of the ViT, the first is "
            f"'{missing[0]}'."
        )
    tower.load_state_dict(weights)
    return tower.eval()


def _read(name_or_path: str | os.PathLike, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a ViT that are named in `state`."""
    names = {prefix + name: name for prefix in PREFIXES for name in state}
    index = cached_file(
        name_or_path, INDEX, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    files = ["model.safetensors"]
    if index is not None:
        file_of = json.loads(Path(index).read_text())["weight_map"]
        files = sorted({file for key, file in file_of.items() if key in names})
    weights = {}
    for file in files:
        with safe_open(cached_file(name_or_path, file), framework="pt") as opened:
            weights |= {names[key]: opened.get_tensor(key) for key in opened.keys() if key in names}
    return weights


__all__ = ["load_vision_tower"]
