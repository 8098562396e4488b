"""LoRA adapters in the pipeline's transformer."""

import os
from contextlib import contextmanager

from transformers.utils import ADAPTER_CONFIG_NAME, cached_file


def load_lora(transformer, source: str | os.PathLike, adapter_name: str | None, **hub_arguments):
    """
    Loads an adapter as peft saves it and makes it the active one.

    Args:
        transformer ([`RosettaForCausalLMAndImageGeneration`])
        source (`str` or `os.PathLike`): a folder or a Hub id.
        adapter_name (`str`, *optional*): by default `"default"`, or `"default_1"` and so on if there is one.
        hub_arguments: `revision`, `token`, `subfolder`, `cache_dir` and so on.

    Raises:
        ValueError: if there is no such adapter, or the name is taken.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"`pretrained_model_name_or_path` must be a folder or a Hub id, got {type(source).__name__}.")
    source = os.fspath(source)
    missing = cached_file(source, ADAPTER_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub_arguments)
    if missing is None:
        raise ValueError(
            f"`pretrained_model_name_or_path` must hold an adapter of peft, `{ADAPTER_CONFIG_NAME}` and its weights; "
            f"{source} has none."
        )
    loaded = getattr(transformer, "peft_config", {}) or {}
    if adapter_name is None:
        names = ["default", *(f"default_{i}" for i in range(1, len(loaded) + 1))]
        adapter_name = next(name for name in names if name not in loaded)
    if adapter_name in loaded:
        raise ValueError(f"`adapter_name`: an adapter {adapter_name!r} is loaded already, of {list(loaded)}.")
    # Without `hotswap` transformers would put the weights into an adapter that is there.
    transformer.load_adapter(source, adapter_name, hotswap=False, adapter_kwargs=hub_arguments)
    transformer.set_adapter(adapter_name)


@contextmanager
def lora_scaled(transformer, attention_kwargs: dict | None):
    """Scales the active adapters by `attention_kwargs["scale"]` for as long as it goes on."""
    scale = (attention_kwargs or {}).get("scale", 1.0)
    if scale == 1.0:
        yield
        return
    from diffusers.utils import scale_lora_layers, unscale_lora_layers

    scale_lora_layers(transformer, scale)
    try:
        yield
    finally:
        unscale_lora_layers(transformer, scale)


__all__ = ["load_lora", "lora_scaled"]
