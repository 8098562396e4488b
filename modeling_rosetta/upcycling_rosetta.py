"""Magnitude-preserving sparse upcycling (paper, A.3): a dense Qwen3 becomes a Rosetta that reads text."""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, Qwen3ForCausalLM
from transformers.initialization import no_init_weights
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_rosetta import RosettaConfig
from .modeling_rosetta import RosettaForCausalLMAndImageGeneration


# Standard deviation and seed of an upcycled router, as in the authors' code.
ROUTER_STD = 0.01
ROUTER_SEED = 42

DENSE_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "rms_norm_eps tie_word_embeddings attention_bias"
).split()
OTHER_FIELDS = "vocab_size max_position_embeddings initializer_range pad_token_id bos_token_id eos_token_id".split()


class Rule(NamedTuple):
    """How one tensor of the upcycled model comes out of tensors of the dense one: `make(*sources)`."""

    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor]


def text_config_from_dense(dense_config, **kwargs) -> RosettaConfig:
    """
    Configuration of a Rosetta that reads text only and fits the weights of a dense Qwen3.

    Args:
        dense_config (`Qwen3Config`)
        kwargs: fields to set otherwise, such as `token_types` (text only), `expert_pools` (default 3 text experts),
            or a larger `vocab_size`.

    Raises:
        ValueError: if the dense model is no Qwen3, or has sliding windows or scaled positions, which Rosetta has not.
    """
    _check_dense(dense_config)
    token_types = kwargs.pop("token_types", RosettaConfig().token_types[:1])
    fields = {name: getattr(dense_config, name) for name in (*DENSE_FIELDS, *OTHER_FIELDS)}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": dense_config.rope_parameters["rope_theta"]}
    fields["expert_pools"] = {token_types[0]["expert_pool"]: 3}
    return RosettaConfig(**{**fields, "token_types": token_types, **kwargs})


@torch.no_grad()
def upcycle(
    dense: Qwen3ForCausalLM | str | os.PathLike,
    config: RosettaConfig | None = None,
    dtype: torch.dtype | None = None,
) -> RosettaForCausalLMAndImageGeneration:
    """
    Magnitude-preserving sparse upcycling (paper, A.3). Logits equal the dense model's. [`upcycling_rules`] says how
    each weight is made. A checkpoint is read tensor by tensor, so that its weights are never there twice.

    Args:
        dense (`Qwen3ForCausalLM`, `str` or `os.PathLike`): the dense model, which is left as it is, or a folder or
            Hub id with its weights as safetensors.
        config (`RosettaConfig`, *optional*): of a model that reads text only; by default
            [`text_config_from_dense`] of the dense model's.
        dtype (`torch.dtype`, *optional*): of the new model; by default the dense one's.

    Raises:
        ValueError: if `config` has more token types than text, or does not fit the dense model.
        OSError: if there is no such checkpoint.
    """
    if isinstance(dense, str | os.PathLike):
        dense_config = AutoConfig.from_pretrained(dense)
        read, device, own_dtype = _open_checkpoint(dense), None, dense_config.dtype
    else:
        dense_config, weights = dense.config, dense.state_dict()
        read, device, own_dtype = weights.__getitem__, dense.device, dense.dtype
    config = text_config_from_dense(dense_config) if config is None else config
    rules = upcycling_rules(dense_config, config)
    with no_init_weights():
        model = RosettaForCausalLMAndImageGeneration._from_config(config, dtype=dtype or own_dtype)
    model = model.to(device)
    model.tie_weights()
    parameters = dict(model.named_parameters())
    if parameters.keys() != rules.keys():
        raise RuntimeError(f"No rule, or no parameter, for {sorted(parameters.keys() ^ rules.keys())}.")
    for name, (sources, make) in rules.items():
        parameters[name].copy_(make(*map(read, sources)))
    return model


def upcycling_rules(dense_config, config: RosettaConfig) -> dict[str, Rule]:
    """
    How each parameter of the upcycled model is made, by its name; sources are names of the dense model's parameters.

    Every expert is the dense FFN with half its `down_proj`, so that the shared and the routed experts sum to the dense
    output. Routers are N(0, 0.01), drawn in fp32 layer by layer from one generator, as the authors'. A new vocabulary
    row is the mean of the old ones: as likely as the geometric mean of the old tokens, so that n new rows take at
    most the share n / (n + V) from the V old ones.

    Args:
        dense_config (`Qwen3Config`)
        config (`RosettaConfig`): of a model that reads text only.

    Raises:
        ValueError: if the two do not fit together.
    """
    _check_dense(dense_config)
    _check_fit(dense_config, config)
    text = config.token_types[0]
    num_experts = config.expert_pools[text["expert_pool"]]
    magnitude = 1.0 if text["shared_expert"] is None else 0.5
    new_rows = config.vocab_size - dense_config.vocab_size
    generator = torch.Generator().manual_seed(ROUTER_SEED)

    def copied(source: str, make: Callable = lambda weight: weight) -> Rule:
        return Rule((source,), make)

    def with_new_rows(weight: torch.Tensor) -> torch.Tensor:
        mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, mean.expand(new_rows, -1)]) if new_rows else weight

    def scaled(weight: torch.Tensor) -> torch.Tensor:
        return magnitude * weight

    def repeated(weight: torch.Tensor) -> torch.Tensor:
        return weight.expand(num_experts, *weight.shape)

    rules = {"model.embed_tokens.weight": copied("model.embed_tokens.weight", with_new_rows)}
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        stream = text["attention_stream"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            rules[f"{layer}.{norm}.{stream}.weight"] = copied(f"{layer}.{norm}.weight")
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            for kind in ("weight", "bias") if config.attention_bias else ("weight",):
                source = f"{layer}.self_attn.{projection}.{kind}"
                rules[f"{layer}.self_attn.streams.{stream}.{projection}.{kind}"] = copied(source)
        for norm in ("q_norm", "k_norm"):
            rules[f"{layer}.self_attn.streams.{stream}.{norm}.weight"] = copied(f"{layer}.self_attn.{norm}.weight")

        gate, up, down = (f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        if text["shared_expert"] is not None:
            shared_expert = f"{layer}.mlp.shared_experts.{text['shared_expert']}"
            rules[f"{shared_expert}.gate_proj.weight"] = copied(gate)
            rules[f"{shared_expert}.up_proj.weight"] = copied(up)
            rules[f"{shared_expert}.down_proj.weight"] = copied(down, scaled)
        pool = f"{layer}.mlp.pools.{text['expert_pool']}"
        router = ROUTER_STD * torch.randn(num_experts, config.hidden_size, generator=generator)
        rules[f"{pool}.router.weight"] = Rule((), lambda router=router: router)
        rules[f"{pool}.experts.gate_up_proj"] = Rule((gate, up), lambda *weights: repeated(torch.cat(weights)))
        rules[f"{pool}.experts.down_proj"] = copied(down, lambda weight: repeated(scaled(weight)))
    rules["model.norm.weight"] = copied("model.norm.weight")
    if not config.tie_word_embeddings:
        rules["lm_head.weight"] = copied("lm_head.weight", with_new_rows)
    return rules


def _check_dense(dense_config):
    if dense_config.model_type != "qwen3":
        raise ValueError(f"The dense model must be a Qwen3 (`model_type` 'qwen3'), got '{dense_config.model_type}'.")
    rope_type = dense_config.rope_parameters.get("rope_type", "default")
    if dense_config.use_sliding_window or rope_type != "default":
        raise ValueError(
            "The dense model must have neither sliding windows nor scaled positions, got `use_sliding_window` = "
            f"{dense_config.use_sliding_window} and `rope_type` = {rope_type!r}."
        )


def _check_fit(dense_config, config: RosettaConfig):
    if len(config.token_types) != 1:
        names = [t["name"] for t in config.token_types]
        raise ValueError(
            f"`config` must have text as its only token type to be upcycled, got {names}; mount the rest."
        )
    for field in DENSE_FIELDS:
        if getattr(config, field) != getattr(dense_config, field):
            raise ValueError(
                f"`config.{field}` must be {getattr(dense_config, field)} as in the dense model, "
                f"got {getattr(config, field)}."
            )
    theta, dense_theta = (c.rope_parameters["rope_theta"] for c in (config, dense_config))
    if theta != dense_theta:
        raise ValueError(
            f"`config.rope_parameters['rope_theta']` must be {dense_theta} as in the dense model, got {theta}."
        )
    if config.vocab_size < dense_config.vocab_size:
        raise ValueError(
            f"`config.vocab_size` must be at least the dense model's {dense_config.vocab_size}, "
            f"got {config.vocab_size}."
        )


def _open_checkpoint(checkpoint: str | os.PathLike) -> Callable[[str], torch.Tensor]:
    """Reader of the tensors, by name, of the safetensors in a folder or of a Hub id."""
    index = cached_file(
        checkpoint,
        "model.safetensors.index.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is None:
        files = [cached_file(checkpoint, "model.safetensors")]
    else:
        files, _ = get_checkpoint_shard_files(checkpoint, index)
    shards = [safe_open(file, framework="pt") for file in files]
    shard_of = {name: shard for shard in shards for name in shard.keys()}

    def read(name: str) -> torch.Tensor:
        if name not in shard_of:
            raise ValueError(f"`dense`: the checkpoint '{checkpoint}' has no tensor '{name}'.")
        return shard_of[name].get_tensor(name)

    return read


__all__ = ["Rule", "text_config_from_dense", "upcycle", "upcycling_rules"]
