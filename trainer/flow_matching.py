"""Targets of flow matching: timesteps, noisy latents and velocities (paper, C.1.3)."""

import torch

from modeling_rosetta.latent_roles_rosetta import is_drawn, with_copies
from modeling_rosetta.positions_rosetta import clip_index


def sample_timesteps(
    num_images: int,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """
    Timesteps whose logit is normal, t = sigmoid(mean + std * normal).

    Returns:
        `torch.FloatTensor` of shape `(num_images,)`, in (0, 1); 1 is noise.
    """
    normal = torch.randn(num_images, generator=generator, device=device, dtype=torch.float32)
    return (logit_mean + logit_std * normal).sigmoid()


def flow_matching_targets(
    latents: torch.Tensor,
    latent_grid_hw: torch.Tensor,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    generator: torch.Generator | None = None,
    one_by_one: bool = False,
    latent_roles: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Draws a timestep t for each image and mixes its latents with noise, x_t = (1 - t) x_0 + t noise. The velocity to
    predict is noise - x_0.

    Args:
        latents (`torch.Tensor` of shape `(L, C)`): clean latents x_0, the tokens of all images in order.
        latent_grid_hw (`torch.LongTensor` of shape `(I, 2)`): height and width of each image in tokens.
        logit_mean, logit_std (`float`): of the timesteps, see [`sample_timesteps`].
        generator (`torch.Generator`, *optional*): on the device of `latents`.
        one_by_one (`bool`): draw for one image after another, so that each gets the same in a batch of any size.
        latent_roles (`torch.LongTensor` of shape `(I,)`, *optional*): see `latent_roles_rosetta`; images that are not
            to draw stay clean, with a timestep of 0.

    Returns:
        noisy latents `(L, C)`, timesteps `(I,)` and velocities `(L, C)`, in fp32.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if latents.ndim != 2:
        raise ValueError(f"`latents` must have shape (L, C), got {tuple(latents.shape)}.")
    if latent_grid_hw.ndim != 2 or latent_grid_hw.shape[1] != 2:
        raise ValueError(f"`latent_grid_hw` must have shape (I, 2), got {tuple(latent_grid_hw.shape)}.")
    tokens_per_image = latent_grid_hw.prod(-1)
    if tokens_per_image.sum() != len(latents):
        raise ValueError(
            f"`latent_grid_hw` makes {int(tokens_per_image.sum())} tokens, but `latents` has {len(latents)}."
        )
    if one_by_one:
        timesteps, noise = _draw_one_by_one(tokens_per_image, latents, logit_mean, logit_std, generator)
    else:
        timesteps = sample_timesteps(len(latent_grid_hw), logit_mean, logit_std, generator, latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=torch.float32)
    if latent_roles is not None:
        timesteps = timesteps * is_drawn(latent_roles)
    t = timesteps.repeat_interleave(tokens_per_image, output_size=len(latents))[:, None]
    return (1 - t) * latents + t * noise, timesteps, noise - latents


def feature_flow_targets(
    features: torch.Tensor,
    clips: torch.Tensor,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    generator: torch.Generator | None = None,
    one_by_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    [`flow_matching_targets`] for features of a user's own token type: all tokens of a clip share a timestep.

    Args:
        features (`torch.Tensor` of shape `(L, C)`): clean.
        clips (`torch.LongTensor` of shape `(L,)`): the clip of each token, from 0, in order.

    Returns:
        noisy features `(L, C)`, timesteps `(L,)` and velocities `(L, C)`, in fp32.

    Raises:
        ValueError: if there is not one clip number for each token.
    """
    if len(clips) != len(features):
        raise ValueError(f"`clips` has {len(clips)} tokens, but `features` has {len(features)}.")
    if one_by_one:
        timesteps, noise = _draw_one_by_one(clips.bincount(), features, logit_mean, logit_std, generator)
    else:
        timesteps = sample_timesteps(len(features), logit_mean, logit_std, generator, features.device)
        noise = torch.randn(features.shape, generator=generator, device=features.device, dtype=torch.float32)
    timesteps = timesteps[clips]
    t = timesteps[:, None]
    return (1 - t) * features + t * noise, timesteps, noise - features


def _draw_one_by_one(
    sizes: torch.Tensor,
    clean: torch.Tensor,
    logit_mean: float,
    logit_std: float,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps `(N,)` and noise `(L, C)` of images or clips of these sizes."""
    timesteps, noise = [clean.new_empty(0, dtype=torch.float32)], [torch.empty_like(clean[:0], dtype=torch.float32)]
    for size in sizes.tolist():
        timesteps.append(sample_timesteps(1, logit_mean, logit_std, generator, clean.device))
        shape = (size, clean.shape[1])
        noise.append(torch.randn(shape, generator=generator, device=clean.device, dtype=torch.float32))
    return torch.cat(timesteps), torch.cat(noise)


def generated_feature_keys(config) -> dict[str, tuple[str, str, str]]:
    """For each generated token type that embeds from features, its batch keys: features, timesteps, velocities."""
    return {t["name"]: config.feature_keys(t) for t in config.feature_types.values() if config.is_generated(t)}


def noised_batch(
    batch: dict[str, torch.Tensor],
    config,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    generator: torch.Generator | None = None,
    one_by_one: bool = False,
) -> dict[str, torch.Tensor]:
    """
    A batch with noise drawn for its clean `latents` and features, as the model takes it. What a batch brings with
    noise already, as `noisy_latents` or with timesteps, is left alone.

    Args:
        batch (`dict[str, torch.Tensor]`): of the collator; it is not changed.
        config (`RosettaConfig`)
        logit_mean, logit_std, generator, one_by_one: as for [`flow_matching_targets`].
    """
    batch = dict(batch)
    latents = batch.pop("latents", None)
    if latents is not None:
        grids, roles = batch["latent_grid_hw"], batch.get("latent_roles")
        latents = with_copies(latents, grids, roles)
        batch["noisy_latents"], batch["timesteps"], batch["velocity_labels"] = flow_matching_targets(
            latents, grids, logit_mean, logit_std, generator, one_by_one, roles
        )
    indices = {t["name"]: index for index, t in config.feature_types.items()}
    for name, (source, timesteps, velocity_labels) in generated_feature_keys(config).items():
        if batch.get(source) is not None and batch.get(timesteps) is None:
            clips = clip_index(batch["token_type_ids"], indices[name], batch.get("sequence_ids"))
            batch[source], batch[timesteps], batch[velocity_labels] = feature_flow_targets(
                batch[source], clips[clips >= 0], logit_mean, logit_std, generator, one_by_one
            )
    return batch


__all__ = [
    "feature_flow_targets",
    "flow_matching_targets",
    "generated_feature_keys",
    "noised_batch",
    "sample_timesteps",
]
