"""A conversation that goes on: positions after what is cached, and inputs without what is cached."""

from typing import NamedTuple

import torch
from transformers.cache_utils import Cache

from .positions_rosetta import get_rope_index


def cached_length(cache: Cache | None) -> int:
    """How many tokens of each row are cached."""
    return 0 if cache is None else int(cache.get_seq_length())


def positions_after(
    cache: Cache | None,
    token_type_ids: torch.Tensor,
    image_grids: dict[int, torch.Tensor],
    attention_mask: torch.Tensor | None,
    drafts: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    M-RoPE positions `(3, B, S)` of the tokens that come after what is cached, if anything is; see [`get_rope_index`].

    Args:
        cache (`Cache`, *optional*)
        token_type_ids (`torch.LongTensor` of shape `(B, S)`): of the new tokens.
        image_grids (`dict[int, torch.LongTensor]`): of the images among them.
        attention_mask (`torch.Tensor`, *optional*): if it has shape `(B, cached + S)`, padding (0) does not advance.
        drafts (`torch.LongTensor` of shape `(B, S)`, *optional*): of the new tokens, see [`get_rope_index`].
    """
    past_length, (batch_size, length) = cached_length(cache), token_type_ids.shape
    padding = None
    if attention_mask is not None and attention_mask.ndim == 2:
        padding = attention_mask[:, past_length : past_length + length]
    positions = get_rope_index(token_type_ids, image_grids, padding, drafts)
    if past_length == 0:
        return positions
    return positions + next_positions(cache, past_length, batch_size, attention_mask).to(positions.device)[:, None]


def next_positions(
    cache: Cache, past_length: int, batch_size: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The M-RoPE position `(B,)` of the token that comes after the `past_length` cached ones of each row. It is kept with
    the cache, since images advance by less than their tokens and padding not at all: also what `attention_mask` makes
    padding now, such as the tokens after an answer that ended before others. What was cached without positions (a
    tuned prefix) advances like text.

    Raises:
        ValueError: if the cache does not have the rows of the batch.
    """
    reached = getattr(cache, "next_positions", None)
    if reached is None:
        return torch.full((batch_size,), past_length)
    if batch_size % len(reached) or reached.shape[1] < past_length:
        raise ValueError(
            f"`past_key_values` holds {len(reached)} rows of {reached.shape[1]} tokens with positions, but there "
            f"are {batch_size} rows after {past_length} tokens."
        )
    reached = reached[:, :past_length].repeat_interleave(batch_size // len(reached), dim=0)
    if attention_mask is not None and attention_mask.ndim == 2:
        reached = reached.masked_fill(attention_mask[:, :past_length].to(reached.device) == 0, 0)
    return reached.amax(-1)


def keep_positions(
    cache: Cache, past_length: int, position_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> None:
    """
    Keeps with the cache where a token after each of the new ones would stand, 0 after padding.

    Args:
        cache (`Cache`)
        past_length (`int`): tokens that it held before.
        position_ids (`torch.LongTensor` of shape `(3, B, S)`): of the new tokens.
        attention_mask (`torch.Tensor`, *optional*): of shape `(B, past_length + S)`, padding (0) does not advance.
    """
    reached = position_ids.amax(0) + 1
    batch_size, length = reached.shape
    if attention_mask is not None and attention_mask.ndim == 2:
        real = attention_mask[:, past_length : past_length + length] != 0
        reached = reached.masked_fill(~real.to(reached.device), 0)
    if past_length > 0:
        before = getattr(cache, "next_positions", torch.arange(1, past_length + 1)[None])[:, :past_length]
        if batch_size % len(before) or before.shape[1] < past_length:
            return  # rows were picked out of the cache: whoever did it goes on giving positions
        if len(before) < batch_size:
            before = before.repeat_interleave(batch_size // len(before), dim=0)
        before = before.to(reached.device)
        reached = torch.cat([before, reached], dim=1)
    cache.next_positions = reached  # type: ignore[attr-defined]


class Source(NamedTuple):
    """What the tokens of one type are embedded from: batch keys with entries for each token, and for each image."""

    token_type: int
    of_tokens: tuple[str, ...]
    of_images: tuple[str, ...] = ()  # the grids first
    entries_per_token: int = 1


def sources(config) -> list[Source]:
    """The images and features that a batch may hold (see [`RosettaConfig`])."""
    found = [Source(index, config.feature_keys(token_type)) for index, token_type in config.feature_types.items()]
    if (index := config.token_type_index("pixel_values")) is not None:
        patches = config.vision_config.spatial_merge_size**2
        found.append(Source(index, ("pixel_values",), ("image_grid_thw", "image_is_causal"), patches))
    if (index := config.token_type_index("noisy_latents")) is not None:
        found.append(Source(index, ("noisy_latents", "latents"), ("latent_grid_hw", "timesteps", "latent_roles")))
    return found


def holds_cached(inputs: dict, attention_mask: torch.Tensor | None, cache: Cache | None) -> bool:
    """Whether `inputs` are a whole conversation and not its new part: they have as many tokens as the mask."""
    if cached_length(cache) == 0 or attention_mask is None or attention_mask.ndim != 2:
        return False
    tokens = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
    return tokens is not None and tokens.shape[1] == attention_mask.shape[1]


def new_part(config, inputs: dict, past_length: int) -> dict:
    """The `inputs` of a whole conversation without those of its first `past_length` tokens, which are cached."""
    new, types = {}, inputs["token_type_ids"]
    if isinstance(types, int):
        tokens = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"][..., 0]
        inputs = {**inputs, "token_type_ids": torch.full_like(tokens, types, dtype=torch.long)}
    if types is not None:
        new = without_cached(config, inputs["token_type_ids"], inputs, past_length)
    for key in ("input_ids", "token_type_ids", "position_ids"):
        new[key] = None if inputs[key] is None else inputs[key][..., past_length:]
    embeds = inputs["inputs_embeds"]
    return {**inputs, **new, "inputs_embeds": None if embeds is None else embeds[:, past_length:]}


def without_cached(config, token_type_ids: torch.Tensor, inputs: dict, num_cached: int) -> dict:
    """
    The images and features of a whole conversation without those whose tokens are cached. If there are only as many
    as its new part has places for, they are new.

    Args:
        config (`RosettaConfig`)
        token_type_ids (`torch.LongTensor` of shape `(B, S)`): of all tokens, cached or not.
        inputs (`dict`): a batch.
        num_cached (`int`): how many of the S columns are cached.

    Returns:
        `dict`: what changes; `None` for what is cached altogether.

    Raises:
        ValueError: if they fit neither the conversation nor its new part, or the cache ends inside an image.
    """
    changed = {}
    columns = torch.arange(token_type_ids.shape[1], device=token_type_ids.device)
    is_new = (columns >= num_cached).expand_as(token_type_ids)
    for source in sources(config):
        new_tokens = is_new[token_type_ids == source.token_type]
        given = {k: inputs[k] for k in (*source.of_tokens, *source.of_images) if inputs.get(k) is not None}
        if not given or new_tokens.all() or (source.of_images and source.of_images[0] not in given):
            continue
        name = next(iter(given))
        if source.of_images:
            sizes = given[source.of_images[0]].prod(-1).to(new_tokens.device) // source.entries_per_token
        else:
            sizes = torch.ones(len(given[name]), dtype=torch.long, device=new_tokens.device)
        if sizes.sum() == new_tokens.sum():
            continue
        if sizes.sum() != len(new_tokens):
            raise ValueError(
                f"`{name}` is for {int(sizes.sum())} tokens, but the conversation has {len(new_tokens)} places for "
                f"them, {int(new_tokens.sum())} of which are not in `past_key_values`."
            )
        ends = sizes.cumsum(0)
        new_images = new_tokens[ends - 1]
        if not torch.equal(new_images, new_tokens[ends - sizes]):
            raise ValueError(f"`past_key_values` must not end inside an image of `{name}`.")
        new_entries = new_tokens.repeat_interleave(source.entries_per_token)
        for key, value in given.items():
            kept = new_entries if key in source.of_tokens else new_images
            if len(value) != len(kept):
                raise ValueError(f"`{key}` has {len(value)} entries, but the conversation needs {len(kept)}.")
            changed[key] = value[kept.to(value.device)] if kept.any() else None
    return changed


__all__ = ["cached_length", "keep_positions", "positions_after", "sources", "without_cached"]
