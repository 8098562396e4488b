"""
Rosetta: one transformer that reads text, understands images and draws them (https://arxiv.org/abs/2607.00293).

Section 3.2.1 of the paper is [`RosettaAttention`], section 3.2.2 is [`RosettaComposableFFN`]. Shapes: B batch,
S sequence, T = B * S tokens, D hidden size, F expert width, E experts of a pool, K experts per token, L latent tokens
of all images to draw, I images, C latent channels.
"""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3MLP,
    Qwen3RMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding, Qwen3VLVisionModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, can_return_tuple, logging
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_blocks_rosetta import visible_blocks
from .cache_names_rosetta import CACHE, takes_cache
from .configuration_rosetta import RosettaConfig
from .continuation_rosetta import cached_length, holds_cached, keep_positions, new_part, positions_after
from .diffusers_methods_rosetta import DiffusersPreTrainedModel
from .experts_interface_rosetta import RosettaExpertsInterface
from .features_rosetta import FeatureIn, FeatureOut
from .generation_rosetta import RosettaGenerationMixin
from .input_checks_rosetta import check_arguments, check_inputs
from .latent_roles_rosetta import draft_index, is_drawn, seen_by_itself
from .latents_rosetta import LatentIn, LatentOut, TimestepEmbedder, grid_sizes
from .losses_rosetta import feature_flow_sum, flow_matching_sum, next_tokens, routing_losses, target_cross_entropy_sum
from .positions_rosetta import (
    clip_index,
    get_rope_index,
    image_index,
    packed_sequences,
    places_of,
    positions_in_sequence,
)
from .quantization_rosetta import is_packed, weight_of
from .token_layout_rosetta import TokenGroups, TokenLayout, token_layout


logger = logging.get_logger(__name__)


class RosettaRouter(nn.Module):
    """Router of one pool: softmax over its experts, top-k, renormalised. Always in fp32."""

    def __init__(self, config: RosettaConfig, num_experts: int):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, D) to logits (T, E), weights (T, K) and expert indices (T, K)."""
        device = hidden_states.device.type
        # Entering a context takes as long as the product of a single token: only where there is autocast to leave.
        in_fp32 = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with in_fp32:
            logits = F.linear(hidden_states.float(), self.weight.float())
        weights, index = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(-1, keepdim=True), index


@use_experts_implementation(experts_interface=RosettaExpertsInterface())
class RosettaExperts(nn.Module):
    """The experts of one pool, fused into two weights and run by the experts implementation of the configuration."""

    def __init__(self, config: RosettaConfig, num_experts: int):
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * config.intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, config.intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def __getattr__(self, name: str):
        packed = name in ("gate_up_proj", "down_proj") and is_packed(self, name)
        value = weight_of(self, name) if packed else super().__getattr__(name)
        if name in ("gate_up_proj", "down_proj") and value.device.type != "meta":
            # Grouped products are none that autocast knows (https://github.com/pytorch/pytorch/issues/174763).
            if torch.is_autocast_enabled(value.device.type):
                return value.to(torch.get_autocast_dtype(value.device.type))
        return value

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """(T, D), (T, K) and (T, K) to (T, D); the reference that `experts_implementation="eager"` runs."""
        output = torch.zeros_like(hidden_states)
        weights = zip(self.gate_up_proj, self.down_proj, strict=True)
        for expert, (gate_up, down) in enumerate(weights):  # also without tokens, so that every weight gets a gradient
            token, choice = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], gate_up).chunk(2, dim=-1)
            expert_output = F.linear(self.act_fn(gate) * up, down)
            expert_output = expert_output * top_k_weights[token, choice, None]
            output = output.index_add(0, token, expert_output.to(output.dtype))
        return output


class RosettaExpertPool(nn.Module):
    """A router and the experts that it alone routes to."""

    runs_idle_parts = False  # as in [`RosettaModel`]

    def __init__(self, config: RosettaConfig, num_experts: int):
        super().__init__()
        self.router = RosettaRouter(config, num_experts)
        self.experts = RosettaExperts(config, num_experts)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, D) to the weighted sum of the chosen experts (T, D) and the router's logits (T, E)."""
        if hidden_states.shape[0] == 0 and not (self.training or self.runs_idle_parts):
            return hidden_states, hidden_states.new_zeros(0, self.experts.num_experts, dtype=torch.float32)
        logits, weights, index = self.router(hidden_states)
        return self.experts(hidden_states, index, weights.to(hidden_states.dtype)), logits


class RosettaComposableFFN(nn.Module):
    """Composable FFN (paper, 3.2.2): each token type has its pool of experts, the shared expert sees every token."""

    def __init__(self, config: RosettaConfig):
        super().__init__()
        self.pools = nn.ModuleDict(
            {pool: RosettaExpertPool(config, config.expert_pools[pool]) for pool in config.pools}
        )
        self.shared_experts = nn.ModuleDict({name: Qwen3MLP(config) for name in config.shared_experts})

    def forward(
        self, hidden_states: torch.Tensor, layout: TokenLayout
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Equation (2). (T, D) to (T, D) and the router logits (T_pool, E) of each pool."""
        routed, router_logits = [], {}
        for (name, pool), tokens in zip(self.pools.items(), layout.pools.split(hidden_states), strict=True):
            output, router_logits[name] = pool(tokens)
            routed.append(output)
        routed = layout.pools.merge(routed)

        parts = layout.shared_experts.split(hidden_states)
        shared = [expert(tokens) for expert, tokens in zip(self.shared_experts.values(), parts, strict=False)]
        shared += [torch.zeros_like(tokens) for tokens in parts[len(shared) :]]  # token types without shared expert
        shared = layout.shared_experts.merge(shared)
        if layout.shielded is not None:
            shared = torch.where(layout.shielded, shared.detach(), shared)  # Warmup Gradient Shielding, B.1
        return shared + routed, router_logits


class RosettaAttentionStream(nn.Module):
    """Projections and query/key norms of one attention stream."""

    def __init__(self, config: RosettaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        query_size, kv_size = (n * self.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, D) to queries (T, H, d), keys and values (T, H_kv, d)."""
        per_head = (-1, self.head_dim)
        return (
            self.q_norm(self.q_proj(hidden_states).unflatten(-1, per_head)),
            self.k_norm(self.k_proj(hidden_states).unflatten(-1, per_head)),
            self.v_proj(hidden_states).unflatten(-1, per_head),
        )


class RosettaAttention(nn.Module):
    """Unified attention (paper, 3.2.1): all tokens attend together; with one stream they share the projections too."""

    def __init__(self, config: RosettaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.streams = nn.ModuleDict({name: RosettaAttentionStream(config) for name in config.attention_streams})

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask,
        layout: TokenLayout,
        past_key_values: Cache | None = None,
        attention_blocks: list[tuple[slice, slice]] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) to (B, S, D) and, from eager attention, its weights (B, H, S, K); `attention_blocks` are the
        [`visible_blocks`] of `attention_mask`."""
        batch_and_length = hidden_states.shape[:2]
        projected = layout.streams.map(self.streams.values(), hidden_states.flatten(0, 1))
        query, key, value = (part.unflatten(0, batch_and_length).transpose(1, 2) for part in projected)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        elif CACHE == "cache" and kwargs.get("cache") is not None:  # paged; before, the attention function did it
            key, value = kwargs["cache"].update(key, value, self.layer_idx, kwargs=kwargs)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = partial(attention, self, dropout=dropout, scaling=self.scaling, **kwargs)
        if attention_blocks is None:
            output, weights = attend(query, key, value, attention_mask)
        else:
            weights = None
            output = torch.cat(
                [
                    attend(query[:, :, q], key[:, :, k], value[:, :, k], attention_mask[:, :, q, k])[0]
                    for q, k in attention_blocks
                ],
                dim=1,
            )
        output_projections = [stream.o_proj for stream in self.streams.values()]
        output = layout.streams.map(output_projections, output.flatten(0, 1).flatten(1))
        return output.unflatten(0, batch_and_length), weights


class RosettaDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: RosettaConfig, layer_idx: int):
        super().__init__()

        def norms() -> nn.ModuleDict:
            return nn.ModuleDict(
                {name: Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for name in config.attention_streams}
            )

        self.input_layernorm = norms()
        self.self_attn = RosettaAttention(config, layer_idx)
        self.post_attention_layernorm = norms()
        self.mlp = RosettaComposableFFN(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        deepstack_features: torch.Tensor | None,
        layout: TokenLayout,
        vision_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, ...]:
        """(B, S, D) to (B, S, D), with DeepStack features (L_vit, D) added at `vision_positions` (L_vit,), and the
        router logits (T_pool, E) of each pool. What has a gradient goes in by position and comes out in one tuple of
        tensors: reentrant checkpointing loses all else."""
        normed = self._norm(self.input_layernorm, hidden_states, layout.streams)
        hidden_states = hidden_states + self.self_attn(normed, layout=layout, **kwargs)[0]
        normed = self._norm(self.post_attention_layernorm, hidden_states, layout.streams)
        output, router_logits = self.mlp(normed.flatten(0, 1), layout)
        hidden_states = hidden_states + output.view_as(hidden_states)
        if deepstack_features is not None:
            added = hidden_states.flatten(0, 1).index_add(
                0, vision_positions, deepstack_features.to(hidden_states.dtype)
            )
            hidden_states = added.view_as(hidden_states)
        return hidden_states, *router_logits.values()

    @staticmethod
    def _norm(norms: nn.ModuleDict, hidden_states: torch.Tensor, streams: TokenGroups) -> torch.Tensor:
        if len(norms) == 1:
            (norm,) = norms.values()
            return norm(hidden_states)
        return streams.map(norms.values(), hidden_states.flatten(0, 1)).view_as(hidden_states)


class RosettaVisionModel(Qwen3VLVisionModel):
    # The library's list also names a decoder layer that this model does not have, which FSDP cannot find.
    _no_split_modules = ["Qwen3VLVisionBlock"]

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        # Flex attention is for the masks of the decoder, which the ViT does without.
        requested_attention = "sdpa" if requested_attention == "flex_attention" else requested_attention
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


class RosettaPreTrainedModel(DiffusersPreTrainedModel):
    config: RosettaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["RosettaDecoderLayer"]  # and those of the ViT, where there is one
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # its kernels ignore the full attention inside images
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(RosettaComposableFFN, index=1),
        "hidden_states": RosettaDecoderLayer,
        "attentions": RosettaAttention,
    }

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        implementation = super().get_correct_experts_implementation(requested_experts)
        rows = {name: getattr(self.config, name, 0) for name in ("hidden_size", "intermediate_size")}
        if implementation == "grouped_mm" and any(size % 8 for size in rows.values()):
            logger.warning_once(f"Experts run one by one: grouped products need multiples of 8, got {rows}.")
            return "eager"
        return implementation

    @wraps(PreTrainedModel.save_pretrained)
    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs):
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        # Of an earlier save, transformers leaves the one file beside shards, which it would load, and the reverse.
        whole, index = Path(save_directory, SAFE_WEIGHTS_NAME), Path(save_directory, SAFE_WEIGHTS_INDEX_NAME)
        if is_main_process and whole.is_file() and index.is_file():
            shards = set(json.loads(index.read_text())["weight_map"].values())
            earlier = whole if all(whole.with_name(shard).is_file() for shard in shards) else index
            earlier.unlink(missing_ok=True)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, RosettaRouter):
            init.normal_(module.weight, std=std)
        elif isinstance(module, RosettaExperts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        elif isinstance(module, LatentIn | LatentOut | TimestepEmbedder):
            # PyTorch's own scale, as the authors have it, or the time would hardly be heard. Only the latents stay as
            # quiet as the token embeddings: louder, they attend to one another and not to the prompt.
            for name, layer in module.named_modules():
                if isinstance(layer, nn.Conv2d | nn.Linear) and name != "conv_in":
                    init.kaiming_uniform_(layer.weight, a=5**0.5)
            if not isinstance(module, TimestepEmbedder):
                init.zeros_(module.block.conv2.weight)


class Routing(NamedTuple):
    """Which tokens belong to which pool and, for each layer and pool, the router logits `(T_pool, E)`. They have their
    gradient, unlike recorded ones, which reentrant checkpointing computes without."""

    layout: TokenLayout
    router_logits: tuple[dict[str, torch.Tensor], ...]


@dataclass
class RosettaModelOutput(BaseModelOutputWithPast):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, S, D)`): after the final norm.
        latent_hidden_states (`torch.Tensor` of shape `(L, D)`, *optional*): at the positions of the latents, before
            the final norm; what the velocity is read from.
        feature_hidden_states (`dict[str, torch.Tensor]`): the same `(L, D)` for features of a user's own, by the name
            of their token type.
        past_key_values (`Cache`, *optional*): `cache` from transformers 5.24 on.
        router_logits (`tuple[dict[str, torch.Tensor]]`, *optional*): for each layer and pool, logits `(T_pool, E)`.
        hidden_states (`tuple[torch.Tensor]`, *optional*): the input of each layer and `last_hidden_state`,
            `(B, S, D)`; of layers that were not asked for, `None`.
        attentions (`tuple[torch.Tensor]`, *optional*): of each layer, `(B, H, S, K)`.
        routing (`Routing`, *optional*): what the balance loss is computed from, with `return_routing`.
    """

    latent_hidden_states: torch.Tensor | None = None
    feature_hidden_states: dict[str, torch.Tensor] | None = None
    router_logits: tuple[dict[str, torch.Tensor], ...] | None = None
    routing: Routing | None = None


class RosettaModel(RosettaPreTrainedModel):
    """The transformer: embeds every token type, runs the decoder layers, returns hidden states."""

    _keys_to_ignore_on_load_unexpected = ["latent_out", "feature_out"]
    # Whether the ViT and the routers run in evaluation, too, where no token needs them: they do in training. Whoever
    # shards them sets it.
    runs_idle_parts = False

    def __init__(self, config: RosettaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        # Slots that stay empty until their token type is mounted keep the order of the parameters the same.
        for name in ("visual", "latent_in", "timestep_embedder"):
            self.register_module(name, None)
        if self.vision_type is not None:
            self.visual = RosettaVisionModel._from_config(config.vision_config)
        if self.latent_type is not None:
            self.latent_in = LatentIn(config)
            if config.timestep_token_id is not None:
                self.timestep_embedder = TimestepEmbedder(config.hidden_size)
        self.feature_in = nn.ModuleDict({t["name"]: FeatureIn(config, t) for t in config.feature_types.values()})
        self.layers = nn.ModuleList([RosettaDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def vision_type(self) -> int | None:
        """Index of the token type that embeds from `"pixel_values"`, if there is one."""
        return self.config.token_type_index("pixel_values")

    @property
    def latent_type(self) -> int | None:
        """Index of the token type that embeds from `"noisy_latents"`, if there is one."""
        return self.config.token_type_index("noisy_latents")

    def image_grids(
        self, image_grid_thw: torch.Tensor | None = None, latent_grid_hw: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Grids (I, 2) in tokens of the images of each token type that is given."""
        grids = {}
        if image_grid_thw is not None:
            grids[self.vision_type] = image_grid_thw[:, 1:] // self.config.vision_config.spatial_merge_size
        if latent_grid_hw is not None:
            grids[self.latent_type] = torch.as_tensor(latent_grid_hw)
        return grids

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.LongTensor, **kwargs):
        """
        What the ViT makes of images to understand.

        Args:
            pixel_values, image_grid_thw: as for Qwen3-VL.
            kwargs: of the ViT, e.g. `output_hidden_states`.

        Returns:
            `BaseModelOutputWithDeepstackFeatures`: as in Qwen3-VL, `pooler_output` is the embeddings `(L_i, D)` of the
            tokens of each image, `deepstack_features` for each of the first layers the same.

        Raises:
            ValueError: if no token type of this model embeds from `"pixel_values"`.
        """
        if self.vision_type is None:
            raise ValueError("`pixel_values` was given, but no token type of this model embeds from it.")
        output = self.visual(pixel_values, grid_thw=image_grid_thw, **{**kwargs, "return_dict": True})
        sizes = (image_grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2).tolist()
        output.pooler_output = output.pooler_output.split(sizes)
        output.deepstack_features = [features.split(sizes) for features in output.deepstack_features]
        return output

    def get_rope_index(
        self,
        input_ids: torch.LongTensor,
        token_type_ids: torch.LongTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        latent_grid_hw: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        The M-RoPE positions that `forward` computes, for servers that give them.

        Args:
            input_ids, token_type_ids, image_grid_thw, latent_grid_hw, attention_mask: as for `forward`.
            mm_token_type_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): in place of `token_type_ids`, 1 at
                the tokens of images to understand.

        Returns:
            The positions `(3, B, S)`, and by how much the position `(B, 1)` of the next token exceeds S, as in
            Qwen3-VL.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
            if mm_token_type_ids is not None:
                token_type_ids = token_type_ids.masked_fill(mm_token_type_ids == 1, self.vision_type)
        grids = self.image_grids(image_grid_thw, latent_grid_hw)
        positions = get_rope_index(token_type_ids, grids, attention_mask)
        reached = positions.amax(0)
        length = torch.full_like(reached[:, :1], input_ids.shape[1])
        if attention_mask is not None:
            reached, length = reached.masked_fill(attention_mask == 0, -1), attention_mask.sum(-1, keepdim=True)
        return positions, reached.amax(-1, keepdim=True) + 1 - length

    @capture_outputs
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        noisy_latents: torch.Tensor | None = None,
        latent_grid_hw: torch.LongTensor | None = None,
        timesteps: torch.Tensor | None = None,
        image_is_causal: torch.Tensor | None = None,
        latent_roles: torch.Tensor | None = None,
        shield_shared_expert: bool = False,
        use_cache: bool | None = None,
        return_routing: bool = False,
        **kwargs,
    ) -> RosettaModelOutput:
        """See [`RosettaForCausalLMAndImageGeneration.forward`]."""
        check_arguments(self.config, kwargs)
        check_inputs(
            self.config,
            input_ids,
            token_type_ids,
            inputs_embeds,
            pixel_values,
            image_grid_thw,
            noisy_latents,
            latent_grid_hw,
            timesteps,
            attention_mask,
            sequence_ids,
            position_ids,
            past_key_values,
        )
        if sequence_ids is None and attention_mask is None and past_key_values is None and position_ids is not None:
            sequence_ids = packed_sequences(position_ids)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        type_of_all = 0 if token_type_ids is None else token_type_ids if isinstance(token_type_ids, int) else None
        if type_of_all is not None:
            token_type_ids = inputs_embeds.new_full(inputs_embeds.shape[:2], type_of_all, dtype=torch.long)
        token_types = token_type_ids.flatten()

        embeds = inputs_embeds.flatten(0, 1)
        vision_positions, deepstack_features = None, []
        if pixel_values is not None or ((self.training or self.runs_idle_parts) and self.vision_type is not None):
            features, deepstack_features = self._embed_images(pixel_values, image_grid_thw)
            vision_positions = places_of(token_types == self.vision_type, len(features), "pixel_values")
            embeds = self._place(embeds, vision_positions, features)
        latent_positions = None
        if noisy_latents is not None:
            embeds, latent_positions = self._place_latents(
                embeds, token_types, input_ids, noisy_latents, latent_grid_hw, timesteps
            )
        embeds, feature_positions, clips = self._place_features(embeds, token_type_ids, sequence_ids, kwargs)
        hidden_states = embeds.view_as(inputs_embeds)

        if use_cache and past_key_values is None and sequence_ids is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        grids = self.image_grids(image_grid_thw, latent_grid_hw)
        drafts = None
        if latent_roles is not None:
            is_time = self._timestep_tokens(input_ids, embeds)
            drafts = draft_index(token_type_ids, self.latent_type, latent_grid_hw, latent_roles, is_time)
        if position_ids is None:
            position_ids = positions_after(past_key_values, token_type_ids, grids, attention_mask, drafts)
        position_ids = position_ids.expand(3, *token_type_ids.shape)
        if past_key_values is not None and not torch.compiler.is_compiling():
            keep_positions(past_key_values, cached_length(past_key_values), position_ids, attention_mask)
        mask = self._attention_mask(
            hidden_states,
            token_type_ids,
            attention_mask,
            sequence_ids,
            grids,
            past_key_values,
            clips,
            drafts,
            image_is_causal,
        )
        attention_blocks = visible_blocks(mask)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        layout = token_layout(self.config, token_types, type_of_all, shield_shared_expert)

        if self.gradient_checkpointing and self.training:
            hidden_states.requires_grad_()  # or reentrant checkpointing leaves all out that comes after it
        router_logits = []
        for index, layer in enumerate(self.layers):
            hidden_states, *logits = layer(
                hidden_states,
                deepstack_features[index] if index < len(deepstack_features) else None,
                layout=layout,
                vision_positions=vision_positions,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                attention_blocks=attention_blocks,
                past_key_values=past_key_values,
                **kwargs,
            )
            if return_routing:
                router_logits.append(dict(zip(self.config.pools, logits, strict=True)))

        return RosettaModelOutput(
            last_hidden_state=self.norm(hidden_states),
            latent_hidden_states=(
                hidden_states.flatten(0, 1).index_select(0, latent_positions) if latent_positions is not None else None
            ),
            feature_hidden_states={
                name: hidden_states.flatten(0, 1).index_select(0, positions)
                for name, positions in feature_positions.items()
            },
            **{CACHE: past_key_values},
            routing=Routing(layout, tuple(router_logits)) if return_routing else None,
        )

    def _embed_images(self, pixel_values, image_grid_thw) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features (L_vit, D) at the ViT positions, and the DeepStack features of the same shape."""
        if pixel_values is not None:
            if (
                self.gradient_checkpointing
                and self.training
                and any(p.requires_grad for p in self.visual.parameters())
            ):
                pixel_values = pixel_values.float().detach().requires_grad_()  # as for the decoder's hidden states
            output = self.visual(pixel_values, grid_thw=image_grid_thw, return_dict=True)
            return output.pooler_output, output.deepstack_features
        # No image in this batch: one of a single token, then dropped, keeps the ViT's parameters in the graph.
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, merge, merge]], device=self.device)
        pixels = torch.zeros(merge**2, patch_size, device=self.device)
        output = self.visual(pixels, grid_thw=grid, return_dict=True)
        return output.pooler_output[:0], [features[:0] for features in output.deepstack_features]

    def _place_latents(
        self, embeds, token_types, input_ids, noisy_latents, latent_grid_hw, timesteps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the embedded latents, and the time where there is a timestep token, into `embeds` (T, D)."""
        features = self.latent_in(noisy_latents.to(embeds.dtype), timesteps, grid_sizes(latent_grid_hw))
        positions = places_of(token_types == self.latent_type, len(features), "noisy_latents")
        is_time = self._timestep_tokens(input_ids, embeds)
        embeds = self._place(embeds, positions, features)
        if self.timestep_embedder is None or is_time is None:
            return embeds, positions
        if torch.compiler.is_compiling():  # without knowing how many there are
            times = self.timestep_embedder(timesteps, embeds.dtype)[
                (is_time.cumsum(0) - 1).clamp(0, len(timesteps) - 1)
            ]
            return torch.where(is_time[:, None], times, embeds), positions
        given = len(timesteps) > 0 and bool(is_time.any())
        if given or self.training:
            times = self.timestep_embedder(timesteps if given else timesteps[:0], embeds.dtype)
            time_positions = places_of(is_time & given, len(times), "timesteps")
            embeds = self._place(embeds, time_positions, times)
        return embeds, positions

    def _place_features(
        self, embeds, token_type_ids, sequence_ids, inputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
        """Puts the embedded features of a user's own token types, which it takes out of `inputs`, into `embeds`
        (T, D). Also returns where those of generated types are, by name, and which clip (B, S) each is of."""
        positions, clips = {}, []
        for index, token_type in self.config.feature_types.items():
            source, timesteps_key, _ = self.config.feature_keys(token_type)
            features, timesteps = inputs.pop(source, None), inputs.pop(timesteps_key, None)
            if features is None and not self.training:
                continue
            if features is None:  # keeps the parameters in the graph of a batch without this type
                features, timesteps = torch.zeros(0, token_type["feature_size"], device=embeds.device), None
            if features.ndim != 2 or features.shape[1] != token_type["feature_size"]:
                raise ValueError(
                    f"`{source}` must have shape (L, {token_type['feature_size']}), got {tuple(features.shape)}."
                )
            if timesteps is not None and tuple(timesteps.shape) != (len(features),):
                raise ValueError(
                    f"`{timesteps_key}` must have shape ({len(features)},), got {tuple(timesteps.shape)}."
                )
            places = places_of(token_type_ids.flatten() == index, len(features), source)
            embedded = self.feature_in[token_type["name"]](features.to(embeds.dtype), timesteps)
            embeds = self._place(embeds, places, embedded)
            if self.config.is_generated(token_type):
                positions[token_type["name"]] = places
                if len(features) > 0:
                    clips.append(clip_index(token_type_ids, index, sequence_ids))
        return embeds, positions, clips

    @staticmethod
    def _place(embeds: torch.Tensor, positions: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return embeds.index_copy(0, positions, features.to(embeds.dtype))

    def _timestep_tokens(self, input_ids: torch.Tensor | None, embeds: torch.Tensor) -> torch.Tensor | None:
        """Which of the T tokens are timestep tokens: by their ids or, without ids, by their embeddings."""
        token_id = self.config.timestep_token_id
        if token_id is None:
            return None
        if input_ids is not None:
            return input_ids.flatten() == token_id
        embedding = self.embed_tokens(torch.tensor(token_id, device=embeds.device))
        return (embeds == embedding.to(embeds.dtype)).all(-1)

    def _attention_mask(
        self,
        hidden_states,
        token_type_ids,
        attention_mask,
        sequence_ids,
        grids,
        past_key_values,
        clips=(),
        drafts=None,
        image_is_causal=None,
    ):
        """Causal, with full attention inside each image and each clip that is generated, none between packed samples,
        and none on drafts but their own."""
        blocks = None
        images = {t: image_index(token_type_ids, t, grid.prod(-1)) for t, grid in grids.items() if len(grid) > 0}
        if image_is_causal is not None and (image := images.get(self.vision_type)) is not None:
            images[self.vision_type] = image.masked_fill(image_is_causal.bool()[image.clamp(min=0)], -1)
        for block in (*images.values(), *clips):
            first = 0 if blocks is None else blocks.max() + 1  # images of two types are not one block
            block = torch.where(block >= 0, block + first, -1)
            blocks = block if blocks is None else torch.maximum(blocks, block)
        if blocks is not None and past_key_values is not None:
            # An image or clip never spans two calls, so nothing in the cache is in a block.
            blocks, drafts = (
                index if index is None else F.pad(index, (cached_length(past_key_values), 0), value=-1)
                for index in (blocks, drafts)
            )
        positions = None
        if sequence_ids is not None:
            attention_mask = None  # padding has a sequence of its own
            positions = positions_in_sequence(sequence_ids)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            **{CACHE: past_key_values},
            position_ids=positions,
            and_mask_function=None if drafts is None else seen_by_itself(drafts),
            block_sequence_ids=blocks,
        )


@dataclass
class RosettaOutput(CausalLMOutputWithPast):
    """
    Args:
        loss (`torch.Tensor`, *optional*): `text_loss + flow_loss_coef * (flow_loss + sum of feature_losses) +
            router_aux_loss_coef * aux_loss`.
        logits (`torch.Tensor` of shape `(B, S, V)`, *optional*)
        velocity (`torch.Tensor` of shape `(L, C)`, *optional*): predicted noise - data of each latent token.
        feature_velocities (`dict[str, torch.Tensor]`): the same for generated token types of a user's own, by name.
        text_loss, flow_loss, aux_loss (`torch.Tensor`, *optional*): cross-entropy in nats a target, squared error of
            the velocity an image, and balance loss.
        feature_losses (`dict[str, torch.Tensor]`): squared error of the velocity a token, for generated token types
            of a user's own, by name.
        capacity_rate (`dict[str, torch.Tensor]`, *optional*): for each pool, see `routing_losses`.
        past_key_values (`Cache`, *optional*): `cache` from transformers 5.24 on.
        router_logits: on request; for each layer and pool, logits `(T_pool, E)`.
        hidden_states: on request; the input of each layer and the last hidden state.
        attentions: on request; of each layer, `(B, H, S, K)`.
    """

    velocity: torch.Tensor | None = None
    feature_velocities: dict[str, torch.Tensor] | None = None
    text_loss: torch.Tensor | None = None
    flow_loss: torch.Tensor | None = None
    feature_losses: dict[str, torch.Tensor] | None = None
    aux_loss: torch.Tensor | None = None
    capacity_rate: dict[str, torch.Tensor] | None = None
    router_logits: tuple[dict[str, torch.Tensor], ...] | None = None


class RosettaForCausalLMAndImageGeneration(RosettaPreTrainedModel, RosettaGenerationMixin):
    """Rosetta with its two heads: the next token, and the velocity of the images to draw."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = False  # the losses are means, each over targets of its own

    def __init__(self, config: RosettaConfig):
        super().__init__(config)
        self.model = RosettaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_module("latent_out", None)
        if config.token_type_index("noisy_latents") is not None:
            self.latent_out = LatentOut(config)
        self.feature_out = nn.ModuleDict(
            {t["name"]: FeatureOut(config, t) for t in config.feature_types.values() if config.is_generated(t)}
        )
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.LongTensor, **kwargs):
        """See [`RosettaModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def get_rope_index(self, *args, **kwargs) -> tuple[torch.LongTensor, torch.LongTensor]:
        """See [`RosettaModel.get_rope_index`]."""
        return self.model.get_rope_index(*args, **kwargs)

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        noisy_latents: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latent_grid_hw: torch.LongTensor | None = None,
        timesteps: torch.Tensor | None = None,
        velocity_labels: torch.Tensor | None = None,
        image_is_causal: torch.Tensor | None = None,
        latent_roles: torch.Tensor | None = None,
        shield_shared_expert: bool = False,
        num_text_targets: torch.Tensor | int | None = None,
        num_latent_images: torch.Tensor | int | None = None,
        num_feature_targets: dict[str, torch.Tensor | int] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs,
    ) -> RosettaOutput:
        r"""
        Args:
            input_ids (`(B, S)`): placeholders at image positions.
            token_type_ids (`(B, S)`, or one `int` for all): index into `config.token_types`; text where absent.
            attention_mask (`(B, S)`): 1 real, 0 padding, and after `past_key_values` of what is cached, too; or a
                boolean mask `(B, 1, S, S)`, used as it is.
            sequence_ids (`(B, S)`): packed sample number, -1 for padding; absent if a row holds one sample.
            position_ids (`(3, B, S)`, or `(B, S)` for text): M-RoPE positions; computed where absent. Without
                `attention_mask`, `sequence_ids` and `past_key_values`, positions that start anew start a new sample,
                as transformers' padding-free collators pack a row.
            past_key_values: a conversation so far, which goes on with new tokens alone, or with all tokens and an
                `attention_mask` of them: what is cached is left out, images and features included.
            labels (`(B, S)`): text targets aligned with `input_ids`, -100 elsewhere.
            shift_labels (`(B, S)`): in their place, text targets aligned with the logits, as for rows that are split
                among devices.
            pixel_values, image_grid_thw: images to understand, as for Qwen3-VL.
            noisy_latents (`(L, C)`): tokens of all images to draw, normalised and patchified, row-major, in order.
            latents (`(L, C)`): in their place, clean images that are context, as the processor gives them.
            latent_grid_hw (`(I, 2)`): their grids; pairs of `int` for graphs that are compiled.
            timesteps (`(I,)`): their sigmas in [0, 1]; 1 is noise, 0 makes a clean image that is context.
            velocity_labels (`(L, C)`): noise - data.
            image_is_causal (`(I,)`): which images to understand have causal attention among their tokens, as in the
                authors' inference; by default none.
            latent_roles (`(I,)`): what the images among the latents are for, a value of `latent_roles_rosetta`: some
                are context, of which no velocity is learnt, some drafts, which only themselves see; by default all
                are to draw.
            shield_shared_expert (`bool`): detach the shared expert's output for all tokens that are not routed to the
                foundation's experts (paper, B.1, stage 1).
            num_text_targets, num_latent_images, num_feature_targets (by name of the type): what the sums of the text
                loss, the flow loss and the feature losses are divided by; default to the numbers in this batch. Give
                the numbers in the global batch to accumulate gradients.
            logits_to_keep: how many logits to compute, counted from the end, or at which positions; 0 for all.
                Default: all without `labels`, none with them.
            kwargs: for each token type of a user's own, e.g. one that embeds from `"audio_features"`, all its features
                `audio_features` `(L, C)` in the order of their tokens; if it is generated, also their sigmas
                `audio_timesteps` `(L,)` (absent: clean) and `audio_velocity_labels` `(L, C)`, noise - data. Beside
                them what transformers gives to all models, e.g. `output_hidden_states` and `output_attentions`.

        Returns:
            [`RosettaOutput`]

        Raises:
            ValueError: if inputs are missing or do not fit together.
            TypeError: if there is no such argument.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        targets = shift_labels
        if labels is not None and targets is None:
            targets = next_tokens(labels)
        if velocity_labels is not None and (noisy_latents is None or velocity_labels.shape != noisy_latents.shape):
            given = "missing" if noisy_latents is None else f"of shape {tuple(noisy_latents.shape)}"
            raise ValueError(
                f"`velocity_labels` of shape {tuple(velocity_labels.shape)} need `noisy_latents` of the same shape, "
                f"which are {given}."
            )
        if latents is not None:
            if noisy_latents is not None or timesteps is not None:
                raise ValueError(
                    "`latents` are clean images, which need no `noisy_latents` and `timesteps` beside them: give all "
                    "as `noisy_latents`, the clean ones with a timestep of 0."
                )
            if latent_grid_hw is None:
                raise ValueError("`latents` needs `latent_grid_hw` beside it, which is missing.")
            noisy_latents, timesteps = latents, torch.zeros(len(latent_grid_hw), device=latents.device)
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "noisy_latents": noisy_latents,
            "latent_grid_hw": latent_grid_hw,
            "timesteps": timesteps,
            "image_is_causal": image_is_causal,
            "latent_roles": latent_roles,
            **kwargs,
        }
        if not torch.compiler.is_compiling() and holds_cached(inputs, attention_mask, past_key_values):
            past_length = cached_length(past_key_values)
            inputs = new_part(self.config, inputs, past_length)
            targets = None if targets is None else targets[:, past_length:]
        if inputs["noisy_latents"] is None and self.training and self.model.latent_type is not None:
            # A batch that draws nothing still has the parameters of drawing in its graph.
            inputs["noisy_latents"] = velocity_labels = torch.zeros(0, self.config.latent_channels, device=self.device)
            inputs["latent_grid_hw"] = torch.zeros(0, 2, dtype=torch.long, device=self.device)
            inputs["timesteps"] = torch.zeros(0, device=self.device)
        latent_grid_hw, timesteps = inputs["latent_grid_hw"], inputs["timesteps"]
        feature_labels, feature_timesteps = self._take_feature_labels(inputs)
        has_targets = targets is not None or velocity_labels is not None or len(feature_labels) > 0
        outputs = self.model(
            **inputs,
            attention_mask=attention_mask,
            sequence_ids=sequence_ids,
            past_key_values=past_key_values,
            shield_shared_expert=shield_shared_expert,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            output_router_logits=False,
            return_routing=output_router_logits or has_targets,
            return_dict=True,
        )

        logits = None
        if logits_to_keep is not None or targets is None:
            keep = slice(-(logits_to_keep or 0), None) if not torch.is_tensor(logits_to_keep) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        velocity = None
        if outputs.latent_hidden_states is not None:
            velocity = self.latent_out(outputs.latent_hidden_states, timesteps, grid_sizes(latent_grid_hw))
        feature_velocities = {
            name: self.feature_out[name](hidden_states, feature_timesteps[name])
            for name, hidden_states in outputs.feature_hidden_states.items()
        }

        loss = text_loss = flow_loss = aux_loss = capacity_rate = None
        feature_losses = {}
        if has_targets:
            loss = 0.0
            if targets is not None:
                count = (targets != -100).sum() if num_text_targets is None else num_text_targets
                text_sum = target_cross_entropy_sum(outputs.last_hidden_state, self.lm_head.weight, targets)
                text_loss = text_sum / _at_least_one(count)
                loss = loss + text_loss
            if velocity_labels is not None:
                roles = inputs["latent_roles"]
                is_target = None if roles is None else is_drawn(roles)
                count = len(latent_grid_hw) if is_target is None else is_target.sum()
                count = count if num_latent_images is None else num_latent_images
                flow_sum = flow_matching_sum(velocity, velocity_labels, torch.as_tensor(latent_grid_hw), is_target)
                flow_loss = flow_sum / _at_least_one(count)
                loss = loss + self.config.flow_loss_coef * flow_loss
            for name, feature_velocity in feature_velocities.items():
                if name in feature_labels or len(feature_velocity) == 0:
                    targets = feature_labels.get(name, feature_velocity.detach())
                    count = len(targets) if num_feature_targets is None else num_feature_targets[name]
                    feature_losses[name] = feature_flow_sum(feature_velocity, targets) / _at_least_one(count)
                    loss = loss + self.config.flow_loss_coef * feature_losses[name]
            layout, router_logits = outputs.routing
            real_tokens = self._real_tokens(outputs.last_hidden_state, attention_mask, sequence_ids, layout)
            aux_loss, capacity_rate = routing_losses(
                router_logits, real_tokens, self.config.pools_of_stream, self.config.num_experts_per_tok
            )
            loss = loss + self.config.router_aux_loss_coef * aux_loss

        return RosettaOutput(
            loss=loss,
            logits=logits,
            velocity=velocity,
            feature_velocities=feature_velocities,
            text_loss=text_loss,
            flow_loss=flow_loss,
            feature_losses=feature_losses,
            aux_loss=aux_loss,
            capacity_rate=capacity_rate,
            **{CACHE: getattr(outputs, CACHE)},
            router_logits=outputs.routing.router_logits if output_router_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _take_feature_labels(self, inputs: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]:
        """Takes the velocity labels of generated features out of `inputs`; returns them and the timesteps, by name."""
        labels, timesteps = {}, {}
        for token_type in self.config.feature_types.values():
            if not self.config.is_generated(token_type):
                continue
            name, (source, timesteps_key, labels_key) = token_type["name"], self.config.feature_keys(token_type)
            timesteps[name], velocity_labels = inputs.get(timesteps_key), inputs.pop(labels_key, None)
            if velocity_labels is not None:
                features = inputs.get(source)
                if features is None or features.shape != velocity_labels.shape:
                    given = "missing" if features is None else f"of shape {tuple(features.shape)}"
                    raise ValueError(
                        f"`{labels_key}` of shape {tuple(velocity_labels.shape)} need `{source}` of the same shape, "
                        f"which are {given}."
                    )
                labels[name] = velocity_labels
        return labels, timesteps

    def _real_tokens(self, hidden_states, attention_mask, sequence_ids, layout) -> dict[str, torch.Tensor]:
        """For each pool, which of its tokens count in the balance loss."""
        real = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        if not self.config.balance_padding:
            if sequence_ids is not None:
                real = sequence_ids >= 0
            elif attention_mask is not None and attention_mask.ndim == 2:
                real = attention_mask.bool()
        return dict(zip(self.config.pools, layout.pools.split_mask(real.flatten()), strict=True))


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    return count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)


RosettaForCausalLMAndImageGeneration.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["RosettaForCausalLMAndImageGeneration", "RosettaModel", "RosettaPreTrainedModel"]
