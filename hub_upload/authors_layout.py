"""
The layout of the authors' checkpoints: which of their tensors become which of ours, and what configuration they have.

In memory order, each of our tensors is the concatenation of some of theirs: most are one tensor by another name, and
the experts of a pool are one after the other. So one table, read in either direction, converts and reverts.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Collection

import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from modeling_rosetta.configuration_rosetta import EMBEDDING_SOURCES


TYPES = ("text", "vit", "vae")  # in the order of their experts in `mlp.experts`
GENERATION = "_mot_gen"  # suffix of the second attention stream, MoT's
ROTARY = "vit.rotary_pos_emb.inv_freq"  # a buffer that transformers computes
IGNORED = "lm_head.weight"  # left over from a dense checkpoint; the head is tied to the embedding

_TIME = {"linear_1": "mlp.0", "linear_2": "mlp.2"}
_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MODULES = {
    "model.visual": "vit",
    "model.latent_in.conv_in": "patch_embed.model.0",
    "latent_out.norm_out": "final_layer.model.1.0",
    "latent_out.conv_out": "final_layer.model.1.2",
    **{f"model.latent_in.timestep_embedder.{ours}": f"time_embed.{theirs}" for ours, theirs in _TIME.items()},
    **{f"latent_out.timestep_embedder.{ours}": f"time_embed_2.{theirs}" for ours, theirs in _TIME.items()},
    **{f"model.timestep_embedder.{ours}": f"timestep_emb.{theirs}" for ours, theirs in _TIME.items()},
    **{f"model.latent_in.block.{ours}": f"patch_embed.model.1.{theirs}" for ours, theirs in _BLOCK.items()},
    **{f"latent_out.block.{ours}": f"final_layer.model.0.{theirs}" for ours, theirs in _BLOCK.items()},
}
LATENT_PROJECTIONS = ("model.latent_in.", "latent_out.")
LATENT_PREFIX = "latent_prefix"  # token type of the tokens before an image to draw, where it is not text's


def empty_model(config: RosettaConfig) -> RosettaForCausalLMAndImageGeneration:
    """The model on the meta device: names, shapes and code without weights."""
    with torch.device("meta"):
        return RosettaForCausalLMAndImageGeneration(config)


def sources(config: RosettaConfig) -> dict[str, list[str]]:
    """
    For each of our tensors, the authors' tensors that it is the concatenation of.

    Raises:
        ValueError: if the configuration is none that the authors' code has.
    """
    _check_has_layout(config)
    keys = empty_model(config).state_dict()
    return {key: _sources_of(key, config) for key in keys if key != "lm_head.weight"}


def source_shape(tensor: torch.Tensor, num_sources: int) -> tuple[int, ...]:
    """Shape of each of the authors' tensors that become `tensor`."""
    if num_sources == 1:
        return tuple(tensor.shape)
    return tensor.numel() // num_sources // tensor.shape[-1], tensor.shape[-1]


def source_shapes(
    ours: dict[str, torch.Tensor], table: dict[str, list[str]], left_out: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of all of the authors' tensors that our tensors are made of, but for some."""
    return {
        source: source_shape(ours[key], len(parts))
        for key, parts in table.items()
        for source in parts
        if key not in left_out
    }


def optional_shapes(config: RosettaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the authors' tensors that ours do without."""
    shapes = {IGNORED: (config.vocab_size, config.hidden_size)}
    if config.token_type_index("pixel_values") is not None:
        shapes[ROTARY] = tuple(rotary_frequencies(config).shape)
    return shapes


def rotary_frequencies(config: RosettaConfig) -> torch.Tensor:
    """The one buffer `(head_dim / 4,)` of the authors' ViT that ours computes."""
    vision = config.vision_config
    rotary_size = vision.hidden_size // vision.num_heads // 2
    return 1.0 / (10000.0 ** (torch.arange(0, rotary_size, 2, dtype=torch.float) / rotary_size))


def infer_config(tensors: dict[str, torch.Tensor], overrides: dict | None = None) -> RosettaConfig:
    """
    The configuration that the names and shapes of the authors' tensors have. What these do not tell is as in
    Rosetta-3.8B-A1B, or as the overrides say.

    Args:
        tensors (`dict[str, torch.Tensor]`): of any device.
        overrides (`dict`, *optional*): fields of the configuration, nested as in config.json.

    Raises:
        ValueError: if the tensors are not the authors', an override is unknown, needed or does not fit.
    """
    shapes = _Shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    head_dim = shapes["model.layers.0.self_attn.query_layernorm.weight"][0]
    fields = {
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "hidden_size": shapes["model.norm.weight"][0],
        "intermediate_size": shapes["model.layers.0.mlp.shared_mlp.up_proj.weight"][0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.(\d+)\."),
        "num_attention_heads": shapes["model.layers.0.self_attn.q_proj.weight"][0] // head_dim,
        "num_key_value_heads": shapes["model.layers.0.self_attn.k_proj.weight"][0] // head_dim,
        "head_dim": head_dim,
        **_composition(shapes),
    }
    if _has(shapes, "vit."):
        fields["vision_config"] = _vision_fields(shapes)
    if _has(shapes, "patch_embed."):
        fields["latent_hidden_size"], fields["latent_channels"] = shapes["patch_embed.model.0.weight"][:2]
    overrides = overrides or {}
    _check_known(overrides, RosettaConfig, "")
    _check_known(overrides.get("vision_config", {}), Qwen3VLVisionConfig, "vision_config.")
    for name in ("vision_config", "rope_parameters"):
        if name in overrides:
            overrides = {**overrides, name: {**fields.get(name, {}), **overrides[name]}}
    config = RosettaConfig(**{**copy.deepcopy(fields), **overrides})

    if _has(shapes, "timestep_emb.") and config.timestep_token_id is None:
        raise ValueError(
            "`overrides` must give `timestep_token_id`, the id of '<｜timestep｜>' in the tokenizer, since the "
            "checkpoint has an embedding for that token."
        )
    mergers = _count(shapes, r"vit\.deepstack_merger_list\.(\d+)\.")
    indexes = config.vision_config.deepstack_visual_indexes
    if _has(shapes, "vit.") and (len(indexes) != mergers or max(indexes, default=0) >= config.vision_config.depth):
        raise ValueError(
            f"`overrides` must give `vision_config.deepstack_visual_indexes`, the {mergers} of the ViT's "
            f"{config.vision_config.depth} blocks whose output is merged; they are {list(indexes)}."
        )
    return config


def check_tensors(
    tensors: dict[str, torch.Tensor], expected: dict[str, tuple], optional: dict[str, tuple] | None = None
):
    """
    Checks the names and shapes of all tensors.

    Raises:
        ValueError: that lists tensors that are missing, unexpected or of a wrong shape.
    """
    known = {**expected, **(optional or {})}
    problems = [f"missing: {key}" for key in expected if key not in tensors]
    problems += [f"unexpected: {key}" for key in tensors if key not in known]
    problems += [
        f"wrong shape: {key} must have {list(known[key])}, got {list(tensor.shape)}"
        for key, tensor in tensors.items()
        if key in known and known[key] != tuple(tensor.shape)
    ]
    if problems:
        listed = problems[:40] + ([f"and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError("`source` does not have the tensors of its configuration:\n  " + "\n  ".join(listed))


class _Shapes(dict):
    def __missing__(self, key: str):
        raise ValueError(f"`source` is no complete checkpoint of the authors' layout: it lacks {key}.")


def _has(keys, start: str) -> bool:
    return any(key.startswith(start) for key in keys)


def _count(keys, pattern: str) -> int:
    return 1 + max((int(match[1]) for match in map(re.compile(pattern).match, keys) if match), default=-1)


def _composition(shapes: dict[str, tuple]) -> dict:
    """Token types and expert pools, read off the routers of the first layer."""
    mlp = "model.layers.0.mlp"
    present = {"text", *(["vit"] if _has(shapes, "vit.") else []), *(["vae"] if _has(shapes, "patch_embed.") else [])}
    separate = [name for name in TYPES if f"{mlp}.gate.wg_{name}.weight" in shapes]
    if separate:
        types, pools = RosettaConfig().token_types, {name: f"{mlp}.gate.wg_{name}" for name in separate}
        present = set(separate)
    elif _has(shapes, f"{mlp}{GENERATION}."):
        types = RosettaConfig.mot().token_types
        pools = {"und": f"{mlp}.gate.wg", "gen": f"{mlp}{GENERATION}.gate.wg"}
        present.add("vae")
        if _has(shapes, "timestep_emb."):
            # In drawing, the tokens before the image pass through the generation stream too.
            types = [*types, {**types[2], "name": LATENT_PREFIX, "embeds_from": "input_ids"}]
            present.add(LATENT_PREFIX)
    elif present == {"text"}:
        types, pools = RosettaConfig().token_types, {"text": f"{mlp}.gate.wg"}
    else:
        types, pools = RosettaConfig.moe().token_types, {"all": f"{mlp}.gate.wg"}
    return {
        "token_types": [token_type for token_type in types if token_type["name"] in present],
        "expert_pools": {pool: shapes[f"{router}.weight"][0] for pool, router in pools.items()},
    }


def _vision_fields(shapes: dict[str, tuple]) -> dict:
    hidden_size, in_channels, temporal_patch_size, patch_size, _ = shapes["vit.patch_embed.proj.weight"]
    fields = {
        "depth": _count(shapes, r"vit\.blocks\.(\d+)\."),
        "hidden_size": hidden_size,
        "intermediate_size": shapes["vit.blocks.0.mlp.linear_fc1.weight"][0],
        "in_channels": in_channels,
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "spatial_merge_size": math.isqrt(shapes["vit.merger.linear_fc2.weight"][1] // hidden_size),
        "out_hidden_size": shapes["vit.merger.linear_fc2.weight"][0],
        "num_position_embeddings": shapes["vit.pos_embed.weight"][0],
    }
    if ROTARY in shapes:
        fields["num_heads"] = hidden_size // (4 * shapes[ROTARY][0])
    return fields


def _check_known(overrides: dict, config_class: type, prefix: str):
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = [prefix + name for name in overrides if name not in known]
    if unknown:
        raise ValueError(f"`overrides` must be fields of {config_class.__name__}, which has no {unknown}.")


def _check_has_layout(config: RosettaConfig):
    problems = []
    if len(config.attention_streams) > 2:
        problems.append(f"the attention streams {config.attention_streams}, more than two")
    for stream in config.attention_streams:
        types = [t for t in config.token_types if t["attention_stream"] == stream]
        shared = {t["shared_expert"] for t in types}
        pools = config.pools_of_stream[stream]
        if len(shared) != 1 or None in shared:
            problems.append(f"the shared experts {sorted(map(str, shared))} in one attention stream")
        if len(pools) > 1 and (len(config.attention_streams) > 1 or pools != [n for n in TYPES if n in pools]):
            problems.append(f"the expert pools {pools} in one attention stream")
    sources = [t["embeds_from"] for t in config.token_types]
    if unknown := [source for source in sources if source not in EMBEDDING_SOURCES]:
        problems.append(f"token types that embed from {unknown}")
    if not config.tie_word_embeddings or config.attention_bias:
        problems.append("a head that is not tied to the embedding, or biases in the attention")
    if problems:
        raise ValueError(f"The authors' layout has no place for {'; '.join(problems)}.")


def _sources_of(key: str, config: RosettaConfig) -> list[str]:
    for ours, theirs in _MODULES.items():
        if key.startswith(f"{ours}."):
            return [theirs + key.removeprefix(ours)]
    match key.split("."):
        case ["model", "layers", number, *path]:
            return [f"model.layers.{number}.{source}" for source in _layer_sources(path, config)]
        case _:
            return [key]


def _layer_sources(path: list[str], config: RosettaConfig) -> list[str]:
    suffixes = dict(zip(config.attention_streams, ("", GENERATION), strict=False))

    def mlp(field: str, name: str) -> str:
        stream = next(t["attention_stream"] for t in config.token_types if t[field] == name)
        return f"mlp{suffixes[stream]}"

    match path:
        case ["self_attn", "streams", stream, module, "weight"]:
            module = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}.get(module, module)
            return [f"self_attn.{module}{suffixes[stream]}.weight"]
        case [norm, stream, "weight"]:
            return [f"{norm}{suffixes[stream]}.weight"]
        case ["mlp", "shared_experts", name, module, "weight"]:
            return [f"{mlp('shared_expert', name)}.shared_mlp.{module}.weight"]
        case ["mlp", "pools", pool, *weight]:
            siblings = next(pools for pools in config.pools_of_stream.values() if pool in pools)
            if weight[0] == "router":
                return [f"{mlp('expert_pool', pool)}.gate.wg{f'_{pool}' if len(siblings) > 1 else ''}.weight"]
            first = sum(config.expert_pools[sibling] for sibling in siblings[: siblings.index(pool)])
            projections = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[weight[1]]
            return [
                f"{mlp('expert_pool', pool)}.experts.{expert}.{projection}.weight"
                for expert in range(first, first + config.expert_pools[pool])
                for projection in projections
            ]
        case _:
            raise ValueError(f"The authors' layout has no place for `{'.'.join(path)}` of a layer.")


__all__ = [
    "IGNORED",
    "LATENT_PREFIX",
    "LATENT_PROJECTIONS",
    "ROTARY",
    "check_tensors",
    "empty_model",
    "infer_config",
    "optional_shapes",
    "rotary_frequencies",
    "source_shape",
    "source_shapes",
    "sources",
]
