"""Weights of OpenCLIP under the names of transformers' `CLIPModel`."""

import re
from pathlib import Path

import torch


# Of the model; then within a layer of either tower.
NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # so spelt there
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(\w+)")
MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def read_open_clip(file: str | Path) -> dict[str, torch.Tensor]:
    """
    The weights in a file as OpenCLIP's training saves it, in fp32, as `CLIPModel.load_state_dict` takes them.

    Raises:
        ValueError: if it cannot be read, or holds a weight that no CLIP of two plain transformers has.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on damaged files
        raise ValueError(f"'{file}' cannot be read: {error}") from error
    return from_open_clip(content.get("state_dict", content))


def from_open_clip(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights, renamed; those of queries, keys and values, which are one there, apart."""
    renamed = {}
    for name, tensor in state_dict.items():
        name, tensor = name.removeprefix("module."), tensor.float()
        if name in NAMES:
            renamed[NAMES[name]] = tensor
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
        elif layer := LAYER.fullmatch(name):
            visual, number, module, kind = layer.groups()
            prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
            if module == "attn" and kind.startswith("in_proj_"):
                kind = kind.removeprefix("in_proj_")
                for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{prefix}.self_attn.{part}_proj.{kind}"] = rows.clone()
            elif module in MODULES:
                renamed[f"{prefix}.{MODULES[module]}.{kind}"] = tensor
            else:
                raise ValueError(f"OpenCLIP's weight '{name}' has no counterpart in transformers' CLIPModel.")
        else:
            raise ValueError(f"OpenCLIP's weight '{name}' has no counterpart in transformers' CLIPModel.")
    return renamed


__all__ = ["from_open_clip", "read_open_clip"]
