"""From noisy VAE latents to token embeddings, and from hidden states to velocities, both conditioned on the time."""

import math
from collections.abc import Callable

import torch
from torch import nn


class TimestepEmbedder(nn.Module):
    """MLP over the sinusoidal embedding of a timestep."""

    frequency_dim = 256

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(self.frequency_dim, hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, timesteps: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`timesteps` (I,) are sigmas in [0, 1], 1 is noise. Returns (I, D), in the `dtype` that is computed in: the
        weights do not tell it, since they may be packed."""
        half = self.frequency_dim // 2
        exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
        angles = 1000 * timesteps.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        frequencies = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(self.act(self.linear_1(frequencies.to(dtype))))


class TimestepResnetBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the time scales and shifts its second norm."""

    def __init__(self, in_channels: int, out_channels: int, time_embedding_size: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_embedding_size, 2 * out_channels)
        self.norm2 = nn.GroupNorm(32, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.act = nn.SiLU()
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images: torch.Tensor, time_embedding: torch.Tensor) -> torch.Tensor:
        """`images` (n, C_in, h, w) and `time_embedding` (n, D) to (n, C_out, h, w)."""
        scale, shift = self.time_emb_proj(self.act(time_embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(self.act(self.norm1(images)))
        hidden = self.conv2(self.act(self.norm2(hidden) * (1 + scale) + shift))
        return self.conv_shortcut(images) + hidden


class LatentIn(nn.Module):
    """Embeds noisy latents: a 3x3 convolution, then a residual block conditioned on the time."""

    def __init__(self, config):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(config.hidden_size)
        self.conv_in = nn.Conv2d(config.latent_channels, config.latent_hidden_size, 3, padding=1)
        self.block = TimestepResnetBlock(config.latent_hidden_size, config.hidden_size, config.hidden_size)

    def forward(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, grids: list[list[int]]) -> torch.Tensor:
        """`noisy_latents` (L, C), `timesteps` (I,), `grids` I times (h, w). Returns embeddings (L, D)."""
        return _map_images(
            lambda images, time: self.block(self.conv_in(images), time),
            noisy_latents,
            self.timestep_embedder(timesteps, noisy_latents.dtype),
            grids,
        )


class LatentOut(nn.Module):
    """Velocity head: a residual block conditioned on the time, GroupNorm, SiLU and a 3x3 convolution."""

    def __init__(self, config):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(config.hidden_size)
        self.block = TimestepResnetBlock(config.hidden_size, config.latent_hidden_size, config.hidden_size)
        self.norm_out = nn.GroupNorm(32, config.latent_hidden_size)
        self.act = nn.SiLU()
        self.conv_out = nn.Conv2d(config.latent_hidden_size, config.latent_channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, timesteps: torch.Tensor, grids: list[list[int]]) -> torch.Tensor:
        """`hidden_states` (L, D) before the final norm, `timesteps` (I,), `grids` I times (h, w). Returns (L, C)."""
        return _map_images(
            lambda images, time: self.conv_out(self.act(self.norm_out(self.block(images, time)))),
            hidden_states,
            self.timestep_embedder(timesteps, hidden_states.dtype),
            grids,
        )


def grid_sizes(latent_grid_hw) -> list[list[int]]:
    """Grids (I, 2), a tensor or pairs, as pairs."""
    return latent_grid_hw.tolist() if torch.is_tensor(latent_grid_hw) else latent_grid_hw


def _map_images(
    function: Callable, tokens: torch.Tensor, time_embeddings: torch.Tensor, grids: list[list[int]]
) -> torch.Tensor:
    """Applies `function` ((n, C, h, w), (n, D)) -> (n, C', h, w) to images given as tokens (L, C), all images of one
    size at once, and returns tokens (L, C')."""
    images_of_grid: dict[tuple[int, int], list[int]] = {}
    for image, (height, width) in enumerate(grids):
        images_of_grid.setdefault((height, width), []).append(image)
    if not images_of_grid:  # keeps the parameters in the graph of a batch that draws nothing
        images_of_grid[(1, 1)] = []

    lengths = torch.tensor([height * width for height, width in grids], dtype=torch.long)
    starts = lengths.cumsum(0) - lengths
    outputs, places = [], []
    for (height, width), images in images_of_grid.items():
        place = (starts[images, None] + torch.arange(height * width)).to(tokens.device)
        batch = tokens.index_select(0, place.flatten()).view(-1, height, width, tokens.shape[1]).permute(0, 3, 1, 2)
        output = function(batch, time_embeddings[images])
        outputs.append(output.flatten(2).transpose(1, 2).flatten(0, 1))
        places.append(place.flatten())
    return torch.cat(outputs).index_select(0, torch.cat(places).argsort())


__all__ = ["LatentIn", "LatentOut", "TimestepEmbedder", "grid_sizes"]
