"""
Experts of 4 or 8 bits: nine tenths of the weights, which tools that quantise `nn.Linear` pass over.

    AutoModelForCausalLM.from_pretrained(repo, quantization_config={"quant_method": "rosetta", "bits": 4}, ...)
"""

from typing import ClassVar

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


METHOD = "rosetta"
WEIGHTS = ("gate_up_proj", "down_proj")
# What configurations of other methods call the modules that are to stay as they are.
SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules")


class RosettaQuantizationConfig(QuantizationConfigMixin):
    """
    Args:
        bits (`int`, defaults to 4): 4 or 8, of each weight of the experts.
        group_size (`int`, defaults to 32): weights of a row that share a scale and a zero; more is smaller and less
            exact. A group of 32 adds a bit to each weight. It must divide the sizes of the experts.

    Raises:
        ValueError: if an argument is none of these.
    """

    def __init__(self, bits: int = 4, group_size: int = 32, quant_method: str = METHOD):
        if bits not in (4, 8) or isinstance(bits, bool):
            raise ValueError(f"`bits` must be 4 or 8, got {bits!r}.")
        if type(group_size) is not int or group_size < 2 or group_size % 2:
            raise ValueError(f"`group_size` must be an even positive integer, got {group_size!r}.")
        self.bits, self.group_size, self.quant_method = bits, group_size, METHOD


class RosettaQuantizer(HfQuantizer):
    """Quantises the experts once the weights are loaded, or makes place for those that were saved quantised."""

    is_trainable: ClassVar[bool] = False

    def __init__(self, quantization_config: RosettaQuantizationConfig, **kwargs):
        super().__init__(quantization_config, **kwargs)

    def is_serializable(self) -> bool:
        return True

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        return False  # not while they are loaded

    def _process_model_before_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            _quantize_all(model, self.quantization_config)
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            _quantize_all(model, self.quantization_config)
        return model


# Of several copies of this code, of repositories and of the package, all take the classes of the first: diffusers
# accepts no others.
RosettaQuantizationConfig = AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, RosettaQuantizationConfig)  # type: ignore
AUTO_QUANTIZER_MAPPING.setdefault(METHOD, RosettaQuantizer)


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The fused experts of each pool, by the name of their module."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "RosettaExperts"}


def _quantize_all(model: nn.Module, config: RosettaQuantizationConfig):
    for experts in experts_of(model).values():
        quantize_experts(experts, config.bits, config.group_size)


@torch.no_grad()
def quantize_experts(experts: nn.Module, bits: int, group_size: int):
    """
    Puts packed weights in place of those of the experts of a pool, which are unpacked each time that they compute.

    Args:
        experts ([`RosettaExperts`]): also on the meta device.
        bits, group_size (`int`): see [`RosettaQuantizationConfig`].

    Raises:
        ValueError: before anything is changed, if `group_size` does not divide a row of the weights.
    """
    weights = {name: experts._parameters[name] for name in WEIGHTS}
    for name, weight in weights.items():
        if weight.shape[-1] % group_size:
            raise ValueError(
                f"`group_size` must divide the {weight.shape[-1]} weights of a row of `{name}`, got {group_size}."
            )
    for name, weight in weights.items():
        delattr(experts, name)
        for suffix, part in zip(("packed", "scale", "zero"), quantized(weight, bits, group_size), strict=True):
            experts.register_parameter(f"{name}_{suffix}", nn.Parameter(part, requires_grad=False))


def quantized(weight: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(..., I)` to integers `(..., I)`, two of 4 bits in a byte `(..., I / 2)`; and for each group of a row its scale
    and its value at integer 0 `(..., I / group_size)`, of the dtype of `weight`."""
    groups = weight.unflatten(-1, (-1, group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high.float() - low.float()) / (2**bits - 1)).clamp(min=1e-8).to(weight.dtype)
    integers = ((groups.float() - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 2**bits - 1)
    integers = integers.to(torch.uint8).flatten(-2)
    packed = integers if bits == 8 else integers[..., ::2] | integers[..., 1::2] << 4
    return packed, scale, low.contiguous()


def unpacked(packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of [`quantized`], of rows of `size` weights."""
    integers = packed
    if packed.shape[-1] < size:
        integers = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    groups = integers.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype)
    return torch.addcmul(zero[..., None], groups, scale[..., None]).flatten(-2)


def is_packed(experts: nn.Module, name: str) -> bool:
    return f"{name}_packed" in experts._parameters


def weight_of(experts: nn.Module, name: str, expert: int | None = None) -> torch.Tensor:
    """`gate_up_proj` or `down_proj` of experts that are packed, or of one of them."""
    parts = [experts._parameters[f"{name}_{suffix}"] for suffix in ("packed", "scale", "zero")]
    packed, scale, zero = parts if expert is None else [part[expert] for part in parts]
    size = experts.config.hidden_size if name == "gate_up_proj" else experts.config.intermediate_size
    return unpacked(packed, scale, zero, size)


def check_experts_are_quantized(model: nn.Module):
    """
    Raises:
        ValueError: if the model was to be quantised and its experts, which nobody asked to leave out, were not.
    """
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    skipped = [name for key in SKIPPED for name in getattr(config, key, None) or ()]
    if config is None or any("experts" in name for name in skipped):
        return
    plain = [
        weight
        for experts in experts_of(model).values()
        for weight in experts.parameters()
        if type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.element_size() > 1
        if weight.ndim == 3 and not any(is_packed(experts, name) for name in WEIGHTS)
    ]
    if plain:
        share = sum(weight.numel() for weight in plain) / sum(weight.numel() for weight in model.parameters())
        raise ValueError(
            f"`quantization_config` of {type(config).__name__} did not reach the experts, {share:.0%} of the weights, "
            "whose fused weights it passes over. Quantise them by "
            f'`quantization_config={{"quant_method": "{METHOD}", "bits": 4}}`, or say that they are to stay by '
            f"'experts' among its `{SKIPPED[0]}`."
        )


__all__ = ["RosettaQuantizationConfig", "check_experts_are_quantized", "experts_of", "quantize_experts"]
