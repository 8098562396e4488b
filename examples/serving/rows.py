"""Rows of several requests as one batch, with what is cached of them padded on the left to the longest."""

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache


def joined_caches(caches: list[DynamicCache], config) -> DynamicCache:
    """Their rows one after another."""
    length = max(cache.get_seq_length() for cache in caches)
    joined = DynamicCache(config=config)
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = (
            torch.cat([F.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])
            for parts in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        joined.update(keys, values, index)
    return joined


def joined_columns(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
    """Tensors `(B, S)` as one, padded on the left."""
    length = max(part.shape[1] for part in rows)
    return torch.cat([F.pad(part, (length - part.shape[1], 0), value=value) for part in rows])


def kept_rows(cache: DynamicCache, mask: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Leaves these rows in the cache, without the columns that none of them uses; returns their mask `(B, S)`."""
    index = torch.tensor(rows, device=mask.device)
    mask = mask[index]
    unused = int(mask.argmax(1).min())
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[index, :, unused:], layer.values[index, :, unused:]
    return mask[:, unused:]


__all__ = ["joined_caches", "joined_columns", "kept_rows"]
