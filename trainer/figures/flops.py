"""Floating-point operations of training, by which the share of a GPU's peak that is used (MFU) is counted."""

import re

import torch
from torch import nn

from ..optimizer.diff_lr import clean_parameter_name


# Dense bf16 products with fp32 accumulation, in TFLOPS, from NVIDIA's data sheets (half of the figures with sparsity).
# The first name that is part of the device's decides.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.05,
    "L40": 181.05,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.25,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}

_EMBEDS = re.compile(r"model\.(embed_tokens|visual|latent_in|timestep_embedder|feature_in)\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn\.(streams)|mlp\.(pools|shared_experts))\.(\w+)\.")
_LAYER_KEYS = {"streams": "attention_stream", "pools": "expert_pool", "shared_experts": "shared_expert"}
_VISION_TRUNK = re.compile(r"model\.visual\.(patch_embed|blocks)\.")
_READS_DATA = re.compile(r"\.(patch_embed|conv_in|linear_1)\.|^model\.feature_in\.\w+\.proj\.")


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU in FLOP/s, `None` where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for known, peak in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def training_flops(model: nn.Module) -> dict[str, float]:
    """
    FLOPs of forward and backward for each token of a type, image to draw, text target, and pair of positions that
    attend. Multiplied by the counts of the same names and added up, they are those of a batch.

    What counts is matrix products, convolutions and attention that the model needs: 2 for each weight forward, 2 for
    the gradient of a trained weight, 2 for that of its input if anything before it is trained (together the 6 of
    6 N D). A frozen ViT counts forward only. Of a token's pool the experts that it is routed to count, the embedding
    counts as the head only, where there is a target, and attention counts half of the square of a sample's length,
    being causal. Recomputed activations do not count.

    Args:
        model ([`RosettaForCausalLMAndImageGeneration`]): may be wrapped or sharded; read off its parameters' names.

    Returns:
        `dict[str, float]`: by `num_tokens_{type}`, `num_latent_images`, `num_text_targets`, `attention_pairs` and
        `vit_pairs`.
    """
    config = model.config
    weights = {clean_parameter_name(name): weight for name, weight in model.named_parameters()}
    trained = [name for name, weight in weights.items() if weight.requires_grad]
    first_trained = min(map(_depth, trained), default=float("inf"))
    flops = dict.fromkeys((*(f"num_tokens_{t['name']}" for t in config.token_types), "num_latent_images"), 0.0)
    flops |= {"num_text_targets": 0.0, "attention_pairs": 0.0, "vit_pairs": 0.0}

    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"  # tied

    def has_trained_input(name: str) -> bool:
        if name == head:
            return bool(trained)
        if _READS_DATA.search(name):
            return False
        if _depth(name) > 0:
            return first_trained < _depth(name)
        part = _VISION_TRUNK if name.startswith("model.visual.") else re.compile(re.escape(name.split(".")[1]))
        return any(part.search(other) for other in trained)

    for name, weight in weights.items():
        passes = 1 + weight.requires_grad + has_trained_input(name)
        for unit, uses in _uses(name, weight, config, head).items():
            flops[unit] += 2 * passes * uses * weight.numel()

    width = config.num_attention_heads * config.head_dim
    for layer in range(config.num_hidden_layers):
        flops["attention_pairs"] += 2 * width * (3 if first_trained <= layer + 1 else 1)
    if any(name.startswith("model.visual.") for name in weights):
        vision = config.vision_config
        passes = 3 if any(_VISION_TRUNK.search(name) for name in trained) else 1
        flops["vit_pairs"] += 4 * vision.hidden_size * vision.depth * passes
    return flops


def _depth(name: str) -> float:
    """0 for what embeds, from 1 on for the layers, infinite for the heads."""
    if _EMBEDS.match(name):
        return 0
    layer = _LAYER.match(name)
    return int(layer[1]) + 1 if layer else float("inf")


def _uses(name: str, weight: torch.Tensor, config, head: str) -> dict[str, float]:
    """How often a weight is multiplied with for each unit of a batch."""
    types = {t["name"]: t for t in config.token_types}
    if weight.ndim < 2 or "pos_embed" in name:
        return {}
    if name == head:
        return {"num_text_targets": 1}
    if layer := _LAYER.match(name):
        kind, owner = layer[2] or layer[3], layer[4]
        share = config.num_experts_per_tok / config.expert_pools[owner] if ".experts." in name else 1
        return {f"num_tokens_{t}": share for t, entry in types.items() if entry[_LAYER_KEYS[kind]] == owner}
    if name.startswith("model.visual."):
        vit = config.token_types[config.token_type_index("pixel_values")]["name"]
        return {f"num_tokens_{vit}": config.vision_config.spatial_merge_size**2 if _VISION_TRUNK.match(name) else 1}
    if re.match(r"(model\.latent_in|latent_out|model\.timestep_embedder)\.", name):
        vae = config.token_types[config.token_type_index("noisy_latents")]["name"]
        return {f"num_tokens_{vae}": 1} if weight.ndim == 4 else {"num_latent_images": 1}
    if feature := re.match(r"(?:model\.)?feature_(?:in|out)\.(\w+)\.", name):
        return {f"num_tokens_{feature[1]}": 1}
    return {}


__all__ = ["PEAK_TFLOPS", "peak_flops", "training_flops"]
