"""What diffusers, and servers that run its pipelines, call of a transformer of theirs."""

import os

import torch
from transformers import PreTrainedModel

from .quantization_rosetta import check_experts_are_quantized


# diffusers' names of the attention that transformers has by others.
ATTENTION_BACKENDS = {"native": "sdpa", "flex": "flex_attention", "_native_math": "eager"}
KEPT_AS_THEY_ARE = ("norm", "patch_embed", "pos_embed", "embed_tokens", "lm_head", "lora_")
PUBLISHING = (
    "Save the pipeline with `save_pretrained(folder)`, then publish the folder, checked and with its card, by "
    "`python -m hub_upload push folder --repo-id name/model`, or as it is by `hf upload name/model folder`."
)


class DiffusersPreTrainedModel(PreTrainedModel):
    """A model of transformers with these methods; diffusers is imported by those that need it."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Raises a `ValueError` if a `quantization_config` did not reach the experts."""
        loaded = super().from_pretrained(*args, **kwargs)
        check_experts_are_quantized(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def set_attention_backend(self, backend: str):
        """
        Args:
            backend (`str`): `"native"` (PyTorch's sdpa), `"flex"` (needs a GPU) or `"_native_math"` (eager); the flash
                kernels of diffusers ignore the full attention inside images.

        Raises:
            ValueError: if it is another.
        """
        if backend not in ATTENTION_BACKENDS:
            raise ValueError(f"`backend` must be one of {list(ATTENTION_BACKENDS)}, got {backend!r}.")
        self.set_attn_implementation(ATTENTION_BACKENDS[backend])

    def reset_attention_backend(self):
        self.set_attention_backend("native")

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] = (
            "norm",
            "patch_embed",
            "pos_embed",
            "embed_tokens",
            "lm_head",
            "lora_",
        ),
        skip_modules_classes: tuple[type, ...] | None = None,
        non_blocking: bool = False,
    ):
        """
        Keeps the weights in `storage_dtype`, and casts those of each layer for as long as it computes: in fp8 half the
        memory of bf16, at some speed. Unlike diffusers' hooks by themselves, the experts are among the layers.

        Args:
            storage_dtype (`torch.dtype`, defaults to `torch.float8_e4m3fn`)
            compute_dtype (`torch.dtype`, *optional*): the model's by default.
            skip_modules_pattern (`tuple[str, ...]`): parts of the names of modules that stay as they are.
            skip_modules_classes (`tuple[type, ...]`, *optional*): classes of such modules.
            non_blocking (`bool`, defaults to `False`): as in [`torch.Tensor.to`].
        """
        from diffusers.hooks import apply_layerwise_casting
        from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook

        compute_dtype = self.dtype if compute_dtype is None else compute_dtype
        apply_layerwise_casting(
            self, storage_dtype, compute_dtype, skip_modules_pattern, skip_modules_classes, non_blocking
        )
        for name, module in self.named_modules():
            skipped = any(pattern in name for pattern in skip_modules_pattern or ())
            if type(module).__name__ == "RosettaExperts" and not skipped:
                apply_layerwise_casting_hook(module, storage_dtype, compute_dtype, non_blocking)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *args,
        **kwargs,
    ):
        """Raises a `ValueError` if `push_to_hub` is True, but for adapters: the model would have an empty card."""
        if push_to_hub and not getattr(self, "_hf_peft_config_loaded", False):
            raise ValueError(f"`push_to_hub` must be False: the model would have an empty card. {PUBLISHING}")
        super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        """Is refused, but for adapters: the repository would have an empty card, no processor and no pipeline."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            raise NotImplementedError(PUBLISHING)
        return super().push_to_hub(*args, **kwargs)


__all__ = ["DiffusersPreTrainedModel"]
