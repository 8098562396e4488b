"""Token types of a user's own: from continuous features to embeddings, and from hidden states to velocities."""

import torch
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from .latents_rosetta import TimestepEmbedder


class TimeModulation(nn.Module):
    """Scales and shifts each token by its time."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(hidden_size)
        self.act = nn.SiLU()
        self.proj = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, hidden_states: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`hidden_states` (L, D) and `timesteps` (L,), sigmas in [0, 1], to (L, D)."""
        scale, shift = self.proj(self.act(self.timestep_embedder(timesteps, hidden_states.dtype))).chunk(2, dim=-1)
        return hidden_states * (1 + scale) + shift


class FeatureIn(nn.Module):
    """Embeds features: a linear projection, modulated by the time if the type is generated."""

    def __init__(self, config, token_type: dict):
        super().__init__()
        self.proj = nn.Linear(token_type["feature_size"], config.hidden_size)
        self.modulation = TimeModulation(config.hidden_size) if config.is_generated(token_type) else None

    def forward(self, features: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """`features` (L, C) and `timesteps` (L,), by default 0, that is clean features, to embeddings (L, D)."""
        embeds = self.proj(features)
        if self.modulation is None:
            return embeds
        return self.modulation(embeds, embeds.new_zeros(len(embeds)) if timesteps is None else timesteps)


class FeatureOut(nn.Module):
    """Velocity head: a norm, modulated by the time, and a linear projection."""

    def __init__(self, config, token_type: dict):
        super().__init__()
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.modulation = TimeModulation(config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, token_type["feature_size"])

    def forward(self, hidden_states: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden_states` (L, D) before the final norm and `timesteps` (L,), by default 0, to velocities (L, C)."""
        timesteps = hidden_states.new_zeros(len(hidden_states)) if timesteps is None else timesteps
        return self.proj(self.modulation(self.norm(hidden_states), timesteps))


__all__ = ["FeatureIn", "FeatureOut"]
