"""Composition (paper, 3.2.2, C.1): mount token types on a model, take them off again, resize pools of experts."""

import copy
import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from .configuration_rosetta import RosettaConfig
from .features_rosetta import FeatureIn, FeatureOut
from .latents_rosetta import LatentIn, LatentOut, TimestepEmbedder
from .modeling_rosetta import (
    RosettaAttentionStream,
    RosettaExpertPool,
    RosettaForCausalLMAndImageGeneration,
    RosettaVisionModel,
)


# In each layer, the module dictionaries and the field of a token type that names its entry in them.
LAYER_MODULES = {
    "mlp.pools": "expert_pool",
    "self_attn.streams": "attention_stream",
    "input_layernorm": "attention_stream",
    "post_attention_layernorm": "attention_stream",
    "mlp.shared_experts": "shared_expert",
}
# Fields of the configuration that come and go with a token type from this source.
SOURCE_FIELDS = {
    "pixel_values": ("vision_config",),
    "noisy_latents": ("latent_channels", "latent_hidden_size", "timestep_token_id", "flow_loss_coef"),
}


def own_modules(config: RosettaConfig, names: str | list[str]) -> list[str]:
    """
    Names of the modules that serve these token types and no others: what mounting adds and unmounting removes, what
    is trained with [`~trainer.train_token_types`], and what DiffLR gives a rate of its own.

    Args:
        config (`RosettaConfig`)
        names (`str` or `list[str]`): of token types.

    Raises:
        ValueError: if there is no such token type.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = [t["name"] for t in config.token_types]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`names` must be among {known}, got {unknown}.")
    types = [t for t in config.token_types if t["name"] in names]
    others = [t for t in config.token_types if t["name"] not in names]
    modules = []
    for layer, (parent, field) in itertools.product(range(config.num_hidden_layers), LAYER_MODULES.items()):
        shared = {None, *(t[field] for t in others)}
        children = dict.fromkeys(t[field] for t in types if t[field] not in shared)
        modules += [f"model.layers.{layer}.{parent}.{child}" for child in children]
    for token_type in types:
        source, name = token_type["embeds_from"], token_type["name"]
        if source == "pixel_values":
            modules.append("model.visual")
        elif source == "noisy_latents":
            modules += ["model.latent_in", "latent_out"]
            if config.timestep_token_id is not None:
                modules.append("model.timestep_embedder")
        elif source != "input_ids":
            modules.append(f"model.feature_in.{name}")
            if config.is_generated(token_type):
                modules.append(f"feature_out.{name}")
    return modules


@torch.no_grad()
def mount(
    model: RosettaForCausalLMAndImageGeneration,
    token_type: dict,
    num_experts: int | None = None,
    init_from: str | None = "text",
    vision_tower: Qwen3VLVisionModel | None = None,
    processor=None,
    **config_updates,
) -> RosettaForCausalLMAndImageGeneration:
    """
    Mounts a token type on a model, in place: its expert pool with a router, its attention stream and its shared
    expert where these are new, and the source of its embeddings. What was there before is not touched: without tokens
    of the new type the model computes what it did, bit for bit. The new type comes last in `config.token_types`. Make
    the optimizer after it.

    Args:
        model (`RosettaForCausalLMAndImageGeneration`)
        token_type (`dict`): the entry to add to `config.token_types`.
        num_experts (`int`, *optional*): experts of a new pool.
        init_from (`str`, *optional*): the token type whose pool, stream and shared expert are copied. Experts and
            their router rows are repeated, in order, as often as needed (C.1.2, C.1.3). `None`: all are fresh.
        vision_tower (`Qwen3VLVisionModel`, *optional*): for a type embedded from `"pixel_values"`; its weights and
            configuration are taken. `out_hidden_size` must be the model's hidden size.
        processor (`RosettaProcessor`, *optional*): is made to lay out tokens of the new type, too.
        config_updates: for a type embedded from `"noisy_latents"`: `latent_channels`, `latent_hidden_size`,
            `timestep_token_id` and `flow_loss_coef` of the configuration.

    Returns:
        The model.

    Raises:
        ValueError: before anything is changed, if the type exists, its source does not, or sizes do not fit.
    """
    _check_model(model)
    config, name = model.config, token_type.get("name")
    names = [t["name"] for t in config.token_types]
    if name in names:
        raise ValueError(f"`token_type`: '{name}' is mounted already; the model has {names}.")
    if init_from is not None and init_from not in names:
        raise ValueError(f"`init_from` must be one of {names} or None, got '{init_from}'.")
    source = next((t for t in config.token_types if t["name"] == init_from), None)
    new_pool = token_type.get("expert_pool") not in config.pools
    if new_pool != (num_experts is not None):
        needs = "needs `num_experts`" if new_pool else "is there already, so `num_experts` must not be given"
        raise ValueError(f"The expert pool '{token_type.get('expert_pool')}' {needs}, got {num_experts}.")
    embeds_from = token_type.get("embeds_from")
    if (embeds_from == "pixel_values") != (vision_tower is not None):
        raise ValueError("`vision_tower` goes with a token type that embeds from 'pixel_values', and only with that.")
    allowed = [field for field in SOURCE_FIELDS.get(embeds_from, ()) if field != "vision_config"]
    if unknown := sorted(set(config_updates) - set(allowed)):
        raise ValueError(f"`config_updates` of a type from {embeds_from!r} must be among {allowed}, got {unknown}.")

    fields = {**config_updates, "token_types": [*config.token_types, dict(token_type)]}
    fields["expert_pools"] = {**config.expert_pools, **({token_type["expert_pool"]: num_experts} if new_pool else {})}
    if vision_tower is not None:
        fields["vision_config"] = vision_tower.config.to_dict()
    new_config = _changed(config, fields)  # validates
    if (
        source is not None
        and source["shared_expert"] is None
        and token_type["shared_expert"]
        not in (
            None,
            *config.shared_experts,
        )
    ):
        raise ValueError(
            f"`init_from`: '{init_from}' has no shared expert that the new '{token_type['shared_expert']}' could be a "
            "copy of."
        )
    _check_vocabulary(new_config, token_type, processor)
    modules = {
        path: _new_module(model, new_config, path, token_type, source, vision_tower)
        for path in own_modules(new_config, name)
    }
    if processor is not None:
        processor.set_token_types(new_config)
    for path, module in modules.items():
        parent, _, child = path.rpartition(".")
        model.get_submodule(parent).add_module(child, module)
    _take_over(config, new_config, fields)
    return model


def unmount(
    model: RosettaForCausalLMAndImageGeneration, name: str, processor=None
) -> RosettaForCausalLMAndImageGeneration:
    """
    Takes a token type off a model, in place: the inverse of [`mount`]. Weights and configuration are again those of
    the model before it was mounted (with what has been trained since); fields of the configuration that `mount`
    takes for the type go back to their defaults. Types that were mounted later stay and move up: their
    `token_type_ids` become one less.

    Args:
        model (`RosettaForCausalLMAndImageGeneration`)
        name (`str`): of the token type; any but the foundation.
        processor (`RosettaProcessor`, *optional*): forgets the type, too.

    Returns:
        The model.

    Raises:
        ValueError: before anything is changed, if there is no such type, or it is the foundation.
    """
    _check_model(model)
    config = model.config
    names = [t["name"] for t in config.token_types]
    if name not in names[1:]:
        what = "is the foundation, which all else stands on" if name == names[0] else "is not mounted"
        raise ValueError(f"`name`: '{name}' {what}; those that can be unmounted are {names[1:]}.")
    remaining = [t for t in config.token_types if t["name"] != name]
    pools = {t["expert_pool"] for t in remaining}
    fields = {
        "token_types": remaining,
        "expert_pools": {pool: number for pool, number in config.expert_pools.items() if pool in pools},
    }
    (token_type,) = (t for t in config.token_types if t["name"] == name)
    obsolete = SOURCE_FIELDS.get(token_type["embeds_from"], ())
    new_config = _changed(config, fields, without=obsolete)
    paths = own_modules(config, name)
    if processor is not None:
        processor.set_token_types(new_config)
    for path in paths:
        parent, _, child = path.rpartition(".")
        parent = model.get_submodule(parent)
        if isinstance(parent, nn.ModuleDict):
            del parent[child]
        else:
            setattr(parent, child, None)
    _take_over(config, new_config, [*fields, *obsolete])
    return model


@torch.no_grad()
def resize_experts(
    model: RosettaForCausalLMAndImageGeneration, pool: str, num_experts: int, fresh: bool = False
) -> RosettaForCausalLMAndImageGeneration:
    """
    Gives a pool more experts or fewer, in place, at equal active parameters (paper, Figure 7). Experts that stay are
    the same bit for bit, with their router rows; shrinking drops the last ones, and so undoes growing. Make the
    optimizer after it.

    Growing changes what the model computes, unless all experts of the pool are equal, as they are after upcycling. A
    copy has the router row of its original, so that the two are always chosen together: where a token went to the two
    best experts it now goes to twins of the best one, until training parts them. A fresh expert takes tokens from the
    others at once.

    Args:
        model (`RosettaForCausalLMAndImageGeneration`)
        pool (`str`): one of `config.pools`.
        num_experts (`int`): at least `config.num_experts_per_tok`.
        fresh (`bool`, defaults to `False`): new experts start afresh, rather than as copies of the others in turn.

    Returns:
        The model.

    Raises:
        ValueError: before anything is changed, if there is no such pool or too few experts.
    """
    _check_model(model)
    config = model.config
    if pool not in config.pools:
        raise ValueError(f"`pool` must be one of {config.pools}, got {pool!r}.")
    if type(num_experts) is not int or num_experts < config.num_experts_per_tok:
        raise ValueError(
            f"`num_experts` must be an integer of at least `num_experts_per_tok` = {config.num_experts_per_tok}, got "
            f"{num_experts!r}."
        )
    fields = {"expert_pools": {**config.expert_pools, pool: num_experts}}
    pools = [layer.mlp.pools[pool] for layer in model.model.layers]
    resized = [_repeat_experts(model, source, num_experts, fresh) for source in pools]
    for layer, source, new in zip(model.model.layers, pools, resized, strict=True):
        for parameter, old in zip(new.parameters(), source.parameters(), strict=True):
            parameter.requires_grad_(old.requires_grad)
        layer.mlp.pools[pool] = new
    _take_over(config, _changed(config, fields), fields)
    return model


def _check_model(model):
    if not isinstance(model, RosettaForCausalLMAndImageGeneration) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "`model` must be a RosettaForCausalLMAndImageGeneration of this package, without adapters (load it with "
            f"its own `from_pretrained`; merge or remove adapters first), got {type(model).__name__}."
        )


def _check_vocabulary(config: RosettaConfig, token_type: dict, processor):
    ids = {"image_token_id": config.image_token_id}
    if token_type["embeds_from"] == "noisy_latents" and config.timestep_token_id is not None:
        ids["timestep_token_id"] = config.timestep_token_id
    if processor is not None:
        ids["processor"] = processor.image_token_id
    for name, token_id in ids.items():
        if token_id >= config.vocab_size:
            raise ValueError(
                f"The vocabulary of {config.vocab_size} is too small for the token {token_id} of `{name}`, which "
                "stands at the positions of the new type: set it, or resize the embeddings, before mounting."
            )


def _changed(config: RosettaConfig, fields: dict, without: list[str] = ()) -> RosettaConfig:
    kept = {key: value for key, value in config.to_dict().items() if key not in without}
    kept.pop("model_type"), kept.pop("transformers_version")
    changed = RosettaConfig(**{**kept, **fields})
    if "vision_config" in without:
        changed.vision_config.dtype = config.dtype
    return changed


def _take_over(config: RosettaConfig, changed: RosettaConfig, fields: list[str]):
    for field in fields:
        setattr(config, field, getattr(changed, field))


def _new_module(model, config, path: str, token_type: dict, source: dict | None, vision_tower) -> nn.Module:
    """The module of a new token type that will be `path`: a copy of that of `source` where there is one, or fresh."""
    parent, _, child = path.rpartition(".")
    if child == "visual":
        module = RosettaVisionModel._from_config(config.vision_config)
        module.load_state_dict(vision_tower.state_dict())
        return module.to(model.device, model.dtype).train(model.training)
    field = next((field for suffix, field in LAYER_MODULES.items() if parent.endswith(f".{suffix}")), None)
    if field is not None and source is not None:
        origin = model.get_submodule(parent)[source[field]]
        if field == "expert_pool":
            return _repeat_experts(model, origin, config.expert_pools[child]).requires_grad_(True)
        return copy.deepcopy(origin).requires_grad_(True)
    norm = partial(Qwen3RMSNorm, config.hidden_size, eps=config.rms_norm_eps)
    build: dict[str, Callable[[], nn.Module]] = {
        "pools": lambda: RosettaExpertPool(config, config.expert_pools[child]),
        "streams": lambda: RosettaAttentionStream(config),
        "input_layernorm": norm,
        "post_attention_layernorm": norm,
        "shared_experts": lambda: Qwen3MLP(config),
        "feature_in": lambda: FeatureIn(config, token_type),
        "feature_out": lambda: FeatureOut(config, token_type),
        "latent_in": lambda: LatentIn(config),
        "latent_out": lambda: LatentOut(config),
        "timestep_embedder": lambda: TimestepEmbedder(config.hidden_size),
    }
    kind = next(name for name in (child, parent.rpartition(".")[2]) if name in build)
    return _fresh(model, build[kind]()).to(model.device, model.dtype).train(model.training)


def _fresh(model, module: nn.Module) -> nn.Module:
    return module.apply(model._init_weights)


def _repeat_experts(model, source: RosettaExpertPool, num_experts: int, fresh: bool = False) -> RosettaExpertPool:
    """The first `num_experts` of the experts of `source` repeated without end, or followed by fresh ones."""
    weight, config = source.experts.down_proj, model.config
    pool = RosettaExpertPool(config, num_experts).to(weight.device, weight.dtype).train(source.training)
    taken = list(itertools.islice(itertools.cycle(range(source.experts.num_experts)), num_experts))
    if fresh:
        _fresh(model, pool)
        taken = taken[: source.experts.num_experts]
    for new, old in zip(pool.parameters(), source.parameters(), strict=True):
        new[: len(taken)] = old[taken]
    return pool


__all__ = ["mount", "own_modules", "resize_experts", "unmount"]
