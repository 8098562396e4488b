"""What a batch holds and what is to be predicted of it, counted on the device."""

from typing import NamedTuple

import torch

from modeling_rosetta.latent_roles_rosetta import is_drawn

from ..flow_matching import generated_feature_keys


class BatchCounts(NamedTuple):
    """
    Without padding: `samples`, `attention_pairs` (the squares of their lengths, added up) and `vit_pairs` (of the
    images' numbers of patches) are scalars; `tokens` and `samples_with` have an entry for each token type.
    """

    samples: torch.Tensor
    tokens: torch.Tensor
    samples_with: torch.Tensor
    attention_pairs: torch.Tensor
    vit_pairs: torch.Tensor


def count_batch(batch: dict[str, torch.Tensor], num_token_types: int) -> BatchCounts:
    """Counts a batch of the collator, packed or not. It never waits for the device."""
    input_ids, types = batch["input_ids"], batch.get("token_type_ids")
    types = torch.zeros_like(input_ids) if types is None else types
    sequence_ids, mask = batch.get("sequence_ids"), batch.get("attention_mask")
    if sequence_ids is None:
        sequence_ids = torch.zeros_like(input_ids) if mask is None or mask.ndim != 2 else mask.long() - 1
    is_real = sequence_ids >= 0
    is_start = is_real & (torch.diff(sequence_ids, prepend=torch.full_like(sequence_ids[:, :1], -1)) != 0)
    sample_in_row = (is_start.cumsum(-1) - 1).clamp(min=0)
    is_of_type = is_real[..., None] & (types[..., None] == torch.arange(num_token_types, device=types.device))
    lengths = torch.zeros(is_of_type.shape, dtype=torch.long, device=types.device)  # of a sample, by type
    lengths.scatter_add_(1, sample_in_row[..., None].expand_as(lengths), is_of_type.long())
    grids = batch.get("image_grid_thw")
    return BatchCounts(
        samples=is_start.sum(),
        tokens=lengths.sum((0, 1)),
        samples_with=(lengths > 0).sum((0, 1)),
        attention_pairs=lengths.sum(-1).square().sum(),
        vit_pairs=torch.zeros_like(is_start.sum()) if grids is None else grids.prod(-1).square().sum(),
    )


def count_targets(batch: dict[str, torch.Tensor], config) -> torch.Tensor:
    """
    Numbers of text targets, of images to draw, and of tokens of each generated type that embeds from features.

    Args:
        batch (`dict[str, torch.Tensor]`): of the collator.
        config (`RosettaConfig`)

    Returns:
        `torch.LongTensor` of shape `(2 + F,)`.
    """
    labels, grids = batch.get("labels"), batch.get("latent_grid_hw")
    # The first position of a row is nobody's target: the model predicts the next token.
    text = (labels[:, 1:] != -100).sum() if labels is not None else torch.tensor(0)
    features = [batch.get(source) for source, _, _ in generated_feature_keys(config).values()]
    images, *others = (0 if entries is None else len(entries) for entries in (grids, *features))
    images = is_drawn(batch["latent_roles"]).sum() if batch.get("latent_roles") is not None else images
    return torch.stack([text, *(torch.as_tensor(number, device=text.device) for number in (images, *others))])


__all__ = ["BatchCounts", "count_batch", "count_targets"]
