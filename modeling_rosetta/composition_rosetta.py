"""Composition: upcycle a dense model into experts (paper, A.3), then mount further token types on it (3.2.2, C.1)."""

import copy
import itertools

import torch
from torch import nn
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from .configuration_rosetta import RosettaConfig
from .latents_rosetta import LatentIn, LatentOut, TimestepEmbedder
from .modeling_rosetta import (
    RosettaExpertPool,
    RosettaForCausalLMAndImageGeneration,
    RosettaVisionModel,
)


# Standard deviation of an upcycled router, as in the authors' code.
ROUTER_STD = 0.01


def text_config_from_dense(dense_config, **kwargs) -> RosettaConfig:
    """
    Configuration of a Rosetta that reads text only and fits the weights of a dense Qwen3.

    Args:
        dense_config (`Qwen3Config`)
        kwargs: fields to set otherwise, such as `token_types` (text only), `expert_pools` (default 3 text experts),
            or a larger `vocab_size`.
    """
    token_types = kwargs.pop("token_types", RosettaConfig().token_types[:1])
    shared_fields = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "hidden_act max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_bias "
        "pad_token_id bos_token_id eos_token_id"
    ).split()
    fields = {name: getattr(dense_config, name) for name in shared_fields}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": dense_config.rope_parameters["rope_theta"]}
    fields["expert_pools"] = {token_types[0]["expert_pool"]: 3}
    return RosettaConfig(**{**fields, "token_types": token_types, **kwargs})


@torch.no_grad()
def upcycle(dense: Qwen3ForCausalLM, config: RosettaConfig) -> RosettaForCausalLMAndImageGeneration:
    """
    Magnitude-preserving sparse upcycling (paper, A.3): every expert is a copy of the dense FFN with half its
    `down_proj`, so that the shared and the routed experts sum to the dense output. Logits equal the dense model's.
    New vocabulary rows keep their small initialisation.

    Args:
        dense (`Qwen3ForCausalLM`): left as it is.
        config (`RosettaConfig`): of a model that reads text only, e.g. from [`text_config_from_dense`].

    Raises:
        ValueError: if `config` has more token types than text, or does not fit the dense model.
    """
    if len(config.token_types) != 1:
        names = [t["name"] for t in config.token_types]
        raise ValueError(
            f"`config` must have text as its only token type to be upcycled, got {names}; mount the rest."
        )
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "tie_word_embeddings"):
        if getattr(config, field) != getattr(dense.config, field):
            raise ValueError(
                f"`config.{field}` must be {getattr(dense.config, field)} as in the dense model, "
                f"got {getattr(config, field)}."
            )
    if config.vocab_size < dense.config.vocab_size:
        raise ValueError(
            f"`config.vocab_size` must be at least the dense model's {dense.config.vocab_size}, "
            f"got {config.vocab_size}."
        )
    model = RosettaForCausalLMAndImageGeneration(config).to(dense.device, dense.dtype)
    text = config.token_types[0]
    stream, shares = text["attention_stream"], text["shared_expert"] is not None
    magnitude = 0.5 if shares else 1.0

    rows = dense.config.vocab_size
    model.model.embed_tokens.weight[:rows] = dense.model.embed_tokens.weight
    model.lm_head.weight[:rows] = dense.lm_head.weight
    model.model.norm.load_state_dict(dense.model.norm.state_dict())
    for layer, dense_layer in zip(model.model.layers, dense.model.layers, strict=True):
        layer.self_attn.streams[stream].load_state_dict(dense_layer.self_attn.state_dict())
        layer.input_layernorm[stream].load_state_dict(dense_layer.input_layernorm.state_dict())
        layer.post_attention_layernorm[stream].load_state_dict(dense_layer.post_attention_layernorm.state_dict())
        ffn = dense_layer.mlp
        if shares:
            shared_expert = layer.mlp.shared_experts[text["shared_expert"]]
            shared_expert.load_state_dict(ffn.state_dict())
            shared_expert.down_proj.weight.mul_(magnitude)
        pool = layer.mlp.pools[text["expert_pool"]]
        pool.experts.gate_up_proj.copy_(
            torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]).expand_as(pool.experts.gate_up_proj)
        )
        pool.experts.down_proj.copy_((magnitude * ffn.down_proj.weight).expand_as(pool.experts.down_proj))
        pool.router.weight.normal_(std=ROUTER_STD)
    return model


@torch.no_grad()
def mount(
    model: RosettaForCausalLMAndImageGeneration,
    token_type: dict,
    num_experts: int | None = None,
    init_from: str = "text",
    vision_tower: Qwen3VLVisionModel | None = None,
    **config_updates,
) -> RosettaForCausalLMAndImageGeneration:
    """
    Mounts a token type on a model, in place: its expert pool with a router, its attention stream and its shared
    expert where these are new, and the source of its embeddings. What was there before is not touched.

    Args:
        model (`RosettaForCausalLMAndImageGeneration`)
        token_type (`dict`): the entry to add to `config.token_types`.
        num_experts (`int`, *optional*): experts of a new pool.
        init_from (`str`): the token type whose pool, stream and shared expert are copied. Experts and their router
            rows are repeated, in order, as often as needed (C.1.2, C.1.3).
        vision_tower (`Qwen3VLVisionModel`, *optional*): for a type embedded from `"pixel_values"`; its weights and
            configuration are taken. `out_hidden_size` must be the model's hidden size.
        config_updates: further fields of the configuration, such as `latent_channels`.

    Returns:
        The model.

    Raises:
        ValueError: before anything is changed, if the type exists, its source does not, or sizes do not fit.
    """
    config, name = model.config, token_type.get("name")
    names = [t["name"] for t in config.token_types]
    if name in names:
        raise ValueError(f"`token_type`: '{name}' is mounted already; the model has {names}.")
    if init_from not in names:
        raise ValueError(f"`init_from` must be one of {names}, got '{init_from}'.")
    new_pool = token_type["expert_pool"] not in config.pools
    if new_pool != (num_experts is not None):
        needs = "needs `num_experts`" if new_pool else "is there already, so `num_experts` must not be given"
        raise ValueError(f"The expert pool '{token_type['expert_pool']}' {needs}, got {num_experts}.")
    if (token_type["embeds_from"] == "pixel_values") != (vision_tower is not None):
        raise ValueError("`vision_tower` goes with a token type that embeds from 'pixel_values', and only with that.")

    fields = {**config.to_dict(), **config_updates}
    fields["token_types"] = [*config.token_types, token_type]
    fields["expert_pools"] = {**config.expert_pools, **({token_type["expert_pool"]: num_experts} if new_pool else {})}
    if vision_tower is not None:
        fields["vision_config"] = vision_tower.config.to_dict()
    fields.pop("model_type"), fields.pop("transformers_version")
    new_config = RosettaConfig(**fields)  # validates

    for field in ("token_types", "expert_pools", "vision_config", *config_updates):
        setattr(config, field, getattr(new_config, field))
    source = next(t for t in config.token_types if t["name"] == init_from)
    for layer in model.model.layers:
        if new_pool:
            pool = _repeat_experts(config, layer.mlp.pools[source["expert_pool"]], num_experts)
            layer.mlp.pools[token_type["expert_pool"]] = pool
        for modules, key in (
            (layer.self_attn.streams, "attention_stream"),
            (layer.input_layernorm, "attention_stream"),
            (layer.post_attention_layernorm, "attention_stream"),
            (layer.mlp.shared_experts, "shared_expert"),
        ):
            if token_type[key] is not None and token_type[key] not in modules:
                modules[token_type[key]] = copy.deepcopy(modules[source[key]])
    _mount_source(model, token_type["embeds_from"], vision_tower)
    return model


def _repeat_experts(config: RosettaConfig, source: RosettaExpertPool, num_experts: int) -> RosettaExpertPool:
    weight = source.experts.down_proj
    pool = RosettaExpertPool(config, num_experts).to(weight.device, weight.dtype).train(source.training)
    taken = list(itertools.islice(itertools.cycle(range(source.experts.num_experts)), num_experts))
    pool.router.weight.copy_(source.router.weight[taken])
    pool.experts.gate_up_proj.copy_(source.experts.gate_up_proj[taken])
    pool.experts.down_proj.copy_(source.experts.down_proj[taken])
    return pool


def _mount_source(model: RosettaForCausalLMAndImageGeneration, embeds_from: str, vision_tower: nn.Module | None):
    base, config = model.model, model.config

    def fresh(module: nn.Module) -> nn.Module:
        module.apply(model._init_weights)
        return module.to(model.device, model.dtype).train(model.training)

    base.vision_type = config.token_type_index("pixel_values")
    base.latent_type = config.token_type_index("noisy_latents")
    if embeds_from == "pixel_values":
        base.visual = RosettaVisionModel._from_config(config.vision_config).to(model.device, model.dtype)
        base.visual.load_state_dict(vision_tower.state_dict())
        base.visual.train(model.training)
    elif embeds_from == "noisy_latents":
        base.latent_in, model.latent_out = fresh(LatentIn(config)), fresh(LatentOut(config))
        if config.timestep_token_id is not None:
            base.timestep_embedder = fresh(TimestepEmbedder(config.hidden_size))


__all__ = ["mount", "text_config_from_dense", "upcycle"]
