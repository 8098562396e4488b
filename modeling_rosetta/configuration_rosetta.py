"""Configuration of Rosetta, its baselines (MoE, MoT) and its ablations: values of one configuration space."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig


TOKEN_TYPE_KEYS = ("name", "embeds_from", "expert_pool", "attention_stream", "shared_expert")
EMBEDDING_SOURCES = ("input_ids", "pixel_values", "noisy_latents")


def _token_types(pools: dict, streams: dict, shared_experts: dict) -> list[dict]:
    sources = {"text": "input_ids", "vit": "pixel_values", "vae": "noisy_latents"}
    return [
        {
            "name": name,
            "embeds_from": source,
            "expert_pool": pools[name],
            "attention_stream": streams[name],
            "shared_expert": shared_experts[name],
        }
        for name, source in sources.items()
    ]


@strict
class RosettaConfig(PreTrainedConfig):
    r"""
    Configuration of [`RosettaForCausalLMAndImageGeneration`]. The defaults are Rosetta-3.8B-A1B (paper, Table 4);
    [`RosettaConfig.moe`] and [`RosettaConfig.mot`] give the baselines.

    Args:
        intermediate_size (`int`, defaults to 3072): Hidden width of every expert, routed or shared.
        token_types (`list[dict]`): The token types in the order of their `token_type_ids`. The first is the
            foundation (text). Each entry has

            - `name`: e.g. `"vae"`;
            - `embeds_from`: the batch key that its tokens are embedded from, one of `"input_ids"`,
              `"pixel_values"` (ViT) and `"noisy_latents"` (VAE; such a type is generated);
            - `expert_pool`: the pool, with a router of its own, that its tokens are routed to;
            - `attention_stream`: the attention projections and layer norms that its tokens use;
            - `shared_expert`: the expert that all its tokens pass through, or `None`.
        expert_pools (`dict[str, int]`): Number of experts of each pool.
        num_experts_per_tok (`int`, defaults to 2): Experts a token is routed to (top-k of its pool).
        router_aux_loss_coef (`float`, defaults to 0.01): Weight of the balance loss (C.1.1).
        flow_loss_coef (`float`, defaults to 1.0): Weight of the flow matching loss (C.1.3).
        balance_padding (`bool`, defaults to `False`): Whether padding counts as text in the balance loss and the
            capacity rate, as it does in the authors' code.
        latent_channels (`int`, defaults to 128): Channels of a patchified VAE latent.
        latent_hidden_size (`int`, defaults to 1024): Channels inside the latent-in and latent-out blocks.
        vision_config (`Qwen3VLVisionConfig` or `dict`): The ViT. It is built if a token type embeds from
            `"pixel_values"`.
        timestep_token_id (`int`, *optional*): Token that is replaced by the time embedding of its image. Without it
            the model has no such embedding.

    Raises:
        ValueError: if the token types and the expert pools do not fit together.
    """

    model_type = "rosetta"
    sub_configs = {"vision_config": Qwen3VLVisionConfig}
    keys_to_ignore_at_inference = ["past_key_values"]
    default_theta = 1000000.0
    ignore_keys_at_rope_validation = {"mrope_section", "mrope_interleaved"}

    vocab_size: int = 157420
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    token_types: list[dict] | None = None
    expert_pools: dict[str, int] | None = None
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.01
    flow_loss_coef: float = 1.0
    balance_padding: bool = False
    latent_channels: int = 128
    latent_hidden_size: int = 1024
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    timestep_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.token_types is None:
            self.token_types = _token_types(
                pools={"text": "text", "vit": "vit", "vae": "vae"},
                streams=dict.fromkeys(("text", "vit", "vae"), "shared"),
                shared_experts=dict.fromkeys(("text", "vit", "vae"), "global"),
            )
            self.expert_pools = {"text": 3, "vit": 3, "vae": 6} if self.expert_pools is None else self.expert_pools
        if self.vision_config is None:
            self.vision_config = {"out_hidden_size": self.hidden_size}
        if isinstance(self.vision_config, dict):
            self.vision_config = Qwen3VLVisionConfig(**self.vision_config)
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1000000.0}
        self.rope_parameters.setdefault("mrope_section", _mrope_section(self.head_dim))
        self.rope_parameters["mrope_interleaved"] = True
        super().__post_init__(**kwargs)

    @classmethod
    def moe(cls, num_experts: int = 12, **kwargs) -> "RosettaConfig":
        """The standard MoE baseline: one pool and one router for all token types (MoE-3.8B-A1B by default)."""
        names = ("text", "vit", "vae")
        token_types = _token_types(
            dict.fromkeys(names, "all"), dict.fromkeys(names, "shared"), dict.fromkeys(names, "global")
        )
        return cls(token_types=token_types, expert_pools={"all": num_experts}, **kwargs)

    @classmethod
    def mot(cls, num_und_experts: int = 7, num_gen_experts: int = 6, **kwargs) -> "RosettaConfig":
        """The MoT baseline: an understanding and a generation stream that share nothing but the attention
        itself (MoT-4.5B-A1B by default)."""
        streams = {"text": "und", "vit": "und", "vae": "gen"}
        token_types = _token_types(streams, streams, streams)
        return cls(token_types=token_types, expert_pools={"und": num_und_experts, "gen": num_gen_experts}, **kwargs)

    @property
    def attention_streams(self) -> list[str]:
        """Names of the attention streams, in the order of the token types."""
        return list(dict.fromkeys(t["attention_stream"] for t in self.token_types))

    @property
    def shared_experts(self) -> list[str]:
        """Names of the shared experts, in the order of the token types."""
        return list(dict.fromkeys(t["shared_expert"] for t in self.token_types if t["shared_expert"] is not None))

    @property
    def pools(self) -> list[str]:
        """Names of the expert pools, in the order of the token types."""
        return list(dict.fromkeys(t["expert_pool"] for t in self.token_types))

    @property
    def pools_of_stream(self) -> dict[str, list[str]]:
        """For each attention stream, the expert pools of its token types."""
        pools = {stream: {} for stream in self.attention_streams}
        for token_type in self.token_types:
            pools[token_type["attention_stream"]][token_type["expert_pool"]] = None
        return {stream: list(of_stream) for stream, of_stream in pools.items()}

    def token_type_index(self, embeds_from: str) -> int | None:
        """Index of the token type that is embedded from the batch key `embeds_from`, `None` if there is none."""
        return next((i for i, t in enumerate(self.token_types) if t["embeds_from"] == embeds_from), None)

    def validate_composition(self):
        """Part of `validate`: token types, expert pools and the sizes of the embeddings fit together."""
        names = [t.get("name") for t in self.token_types]
        for token_type in self.token_types:
            if set(token_type) != set(TOKEN_TYPE_KEYS):
                raise ValueError(
                    f"`token_types`: each entry must have exactly the keys {TOKEN_TYPE_KEYS}, got {token_type}."
                )
            if token_type["embeds_from"] not in EMBEDDING_SOURCES:
                raise ValueError(
                    f"`token_types`: `embeds_from` of '{token_type['name']}' must be one of {EMBEDDING_SOURCES}, "
                    f"got {token_type['embeds_from']!r}."
                )
        if len(set(names)) != len(names):
            raise ValueError(f"`token_types`: names must differ, got {names}.")
        if not self.token_types or self.token_types[0]["embeds_from"] != "input_ids":
            raise ValueError("`token_types`: the first token type is the foundation and must embed from 'input_ids'.")
        if self.expert_pools is None or set(self.expert_pools) != set(self.pools):
            raise ValueError(
                f"`expert_pools` must give a number of experts for each of {self.pools}, got {self.expert_pools}."
            )
        for pool, num_experts in self.expert_pools.items():
            if num_experts < self.num_experts_per_tok:
                raise ValueError(
                    f"`expert_pools`: '{pool}' has {num_experts} experts, fewer than the `num_experts_per_tok` = "
                    f"{self.num_experts_per_tok} that a token is routed to."
                )
        if self.token_type_index("pixel_values") is not None and (
            self.vision_config.out_hidden_size != self.hidden_size
        ):
            raise ValueError(
                f"`vision_config.out_hidden_size` must equal `hidden_size` = {self.hidden_size}, "
                f"got {self.vision_config.out_hidden_size}."
            )
        if 2 * sum(self.rope_parameters["mrope_section"]) != self.head_dim:
            raise ValueError(
                f"`rope_parameters['mrope_section']` must sum to `head_dim` / 2 = {self.head_dim // 2}, "
                f"got {self.rope_parameters['mrope_section']}."
            )


def _mrope_section(head_dim: int) -> list[int]:
    # Qwen3-VL's [24, 20, 20] at head_dim 128, in proportion at other sizes.
    spatial = head_dim * 20 // 128
    return [head_dim // 2 - 2 * spatial, spatial, spatial]


RosettaConfig.register_for_auto_class()

__all__ = ["RosettaConfig"]
