"""Arguments of the model that are missing, unknown, or do not fit together: refused before any work."""

import torch
from transformers.generation.continuous_batching import PagedAttentionCache

from .configuration_rosetta import RosettaConfig
from .continuation_rosetta import cached_length, sources
from .latents_rosetta import grid_sizes


# What transformers may give to any model, beside the parameters of `forward`.
ARGUMENTS_OF_ALL_MODELS = (
    "num_items_in_batch",
    "output_hidden_states",
    "output_attentions",
    "output_router_logits",
    "cache_position",
)


def check_arguments(config: RosettaConfig, arguments: dict):
    """`arguments` that no parameter took: features, and what transformers gives to all models."""
    attention = config._attn_implementation
    unknown = [k for k, value in arguments.items() if value is not None and k not in ARGUMENTS_OF_ALL_MODELS]
    if unknown:
        features = {key for source in sources(config) for key in source.of_tokens}
        unknown = [key for key in unknown if key not in features]
    if unknown and not isinstance(arguments.get("cache"), PagedAttentionCache):  # which brings its own
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}.")
    if arguments.get("output_attentions", config.output_attentions) and attention != "eager":
        raise ValueError(f"`output_attentions` needs `attn_implementation` 'eager', got {attention!r}.")


def check_inputs(
    config: RosettaConfig,
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
):
    """
    The arguments are those of [`~modeling_rosetta.RosettaModel.forward`].

    Raises:
        ValueError: if inputs are missing or do not fit together.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
    for source, given, companions in (
        ("pixel_values", pixel_values, {"image_grid_thw": image_grid_thw}),
        ("noisy_latents", noisy_latents, {"latent_grid_hw": latent_grid_hw, "timesteps": timesteps}),
    ):
        grid_key, grid = next(iter(companions.items()))
        if given is None and input_ids is not None and grid is not None and len(grid) > 0:
            raise ValueError(f"`{grid_key}` needs `{source}` beside it, which is missing.")
        if given is None or len(given) == 0:
            continue
        if config.token_type_index(source) is None:
            raise ValueError(f"`{source}` was given, but no token type of this model embeds from it.")
        for name, value in {"token_type_ids": token_type_ids, **companions}.items():
            if value is None:
                raise ValueError(f"`{source}` needs `{name}` beside it, which is missing.")
    if pixel_values is not None and len(pixel_values) > 0 and not torch.compiler.is_compiling():
        patches = int(image_grid_thw.prod(-1).sum())
        if len(pixel_values) != patches:
            raise ValueError(
                f"`pixel_values` must have {patches} patches, as `image_grid_thw` says, got {len(pixel_values)}."
            )
    if noisy_latents is not None:
        images, latents = len(latent_grid_hw), sum(height * width for height, width in grid_sizes(latent_grid_hw))
        if tuple(noisy_latents.shape) != (latents, config.latent_channels):
            raise ValueError(
                f"`noisy_latents` must have shape ({latents}, {config.latent_channels}), as `latent_grid_hw` "
                f"and the configuration say, got {tuple(noisy_latents.shape)}."
            )
        if tuple(timesteps.shape) != (images,):
            raise ValueError(f"`timesteps` must have shape ({images},), got {tuple(timesteps.shape)}.")
    tokens = tuple((inputs_embeds if input_ids is None else input_ids).shape[:2])
    if isinstance(token_type_ids, int):
        if not 0 <= token_type_ids < len(config.token_types):
            raise ValueError(f"`token_type_ids` must be below {len(config.token_types)}, got {token_type_ids}.")
    elif token_type_ids is not None and tuple(token_type_ids.shape) != tokens:
        raise ValueError(f"`token_type_ids` must have shape {tokens}, got {tuple(token_type_ids.shape)}.")
    if position_ids is not None:
        shape = tuple(position_ids.shape)
        if shape not in {(*axes, rows, tokens[1]) for axes in ((), (3,)) for rows in (1, tokens[0])}:
            raise ValueError(f"`position_ids` must have shape {tokens} or {(3, *tokens)}, got {shape}.")
    past_length = 0 if torch.compiler.is_compiling() else cached_length(past_key_values)
    if past_length > 0 and attention_mask is not None and attention_mask.ndim == 2:
        if attention_mask.shape[1] < past_length + tokens[1]:
            raise ValueError(
                f"`attention_mask` must cover the {past_length} tokens in `past_key_values` and the {tokens[1]} "
                f"new ones, got {attention_mask.shape[1]} columns."
            )
    if sequence_ids is not None and past_key_values is not None:
        raise ValueError("`sequence_ids` (packed rows) cannot be combined with `past_key_values`.")


__all__ = ["check_arguments", "check_inputs"]
