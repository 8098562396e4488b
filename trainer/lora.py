"""Adapters: which modules and fused weights of Rosetta a LoRA of peft goes on."""

import re

from peft import LoraConfig

from modeling_rosetta.composition_rosetta import own_modules


PARTS = ("attention", "shared_expert", "pools")
_PROJECTIONS = {
    "streams": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "shared_experts": ("gate_proj", "up_proj", "down_proj"),
}
_FUSED = ("gate_up_proj", "down_proj")


def lora_config(
    config, parts: str | list[str] = "attention", token_types: str | list[str] | None = None, **kwargs
) -> LoraConfig:
    """
    [`~peft.LoraConfig`] for chosen parts of a model: peft's `"all-linear"` would miss the experts, whose weights are
    fused, and hit the ViT.

    Args:
        config (`RosettaConfig`)
        parts (`str` or `list[str]`): among `"attention"` (all streams), `"shared_expert"` (all of them) and `"pools"`
            (the experts of all pools).
        token_types (`str` or `list[str]`, *optional*): only what serves these token types and no others, e.g. one that
            was just mounted. With `parts="pools"`: the experts of these types.
        kwargs: as for [`~peft.LoraConfig`], e.g. `r` and `lora_alpha`. `lora_dropout` must be 0 on fused experts.

    Raises:
        ValueError: if a part or a token type is unknown, or the parts have nothing that serves `token_types` only.

    Example:

    ```python
    model.add_adapter(lora_config(model.config, ["attention", "pools"], r=8))
    ```
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"`parts` must be among {PARTS}, got {parts}.")
    every = [t["name"] for t in config.token_types]
    paths = [path for path in own_modules(config, every if token_types is None else token_types) if ".layers." in path]
    parents = {"attention": "streams", "shared_expert": "shared_experts", "pools": "pools"}
    # The same children in every layer: layer 0 stands for all.
    chosen = [
        (parent, child)
        for path in paths
        if path.startswith("model.layers.0.")
        for parent, child in [path.split(".")[-2:]]
        if parent in [parents[part] for part in parts]
    ]
    if not chosen:
        raise ValueError(f"`parts`: {parts} have nothing that serves {token_types or every} and no other token type.")
    modules = [
        rf"{parent}\.{re.escape(child)}\.({'|'.join(_PROJECTIONS[parent])})"
        for parent, child in chosen
        if parent in _PROJECTIONS
    ]
    fused = [
        f"pools.{child}.experts.{weight}"
        for parent, child in chosen
        if parent not in _PROJECTIONS
        for weight in _FUSED
    ]
    if fused and kwargs.get("lora_dropout"):
        raise ValueError(f"`lora_dropout` must be 0 on fused experts, got {kwargs['lora_dropout']}.")
    targets = {
        "target_modules": rf".*\.({'|'.join(modules)})" if modules else [],
        "target_parameters": fused or None,
    }
    return LoraConfig(**{"task_type": "CAUSAL_LM", **targets, **kwargs})


__all__ = ["lora_config"]
