"""From samples to a batch: one sample a row, or several packed into each."""

import math
from dataclasses import dataclass

import torch

from modeling_rosetta.latent_roles_rosetta import COPY, DRAWN

from .packing import FirstFit


ROW_KEYS = ("input_ids", "token_type_ids", "labels")
# The entries of each pair come together: one line of the second for each image of the first.
IMAGE_KEYS = (("pixel_values", "image_grid_thw"), ("latents", "latent_grid_hw"))
# With an entry for each image of a grid, and what it is where a sample does not say.
IMAGE_ROLES = (("image_is_causal", "image_grid_thw", 0), ("latent_roles", "latent_grid_hw", DRAWN))
PIXELS = "latent_pixels"  # in place of latents, all pixels of an image for one of its grid


@dataclass
class RosettaDataCollator:
    """
    Batches the samples of `RosettaProcessor.training_sample`. Nothing is cut off or left out.

    Args:
        pad_token_id (`int`): `input_ids` of padding, which is on the right.
        max_length (`int`, *optional*): most tokens of a row.
        packed (`bool`, defaults to `False`): put each sample into the first row that has room for it, rather than
            into a row of its own. Needs `max_length`.
        pad_to_multiple_of (`int`, *optional*): make the row length a multiple of it; a divisor of `max_length`.
        feature_keys (`tuple[str, ...]`): what token types of a user's own embed from, e.g. `"audio_features"`.
    """

    pad_token_id: int
    max_length: int | None = None
    packed: bool = False
    pad_to_multiple_of: int | None = None
    feature_keys: tuple[str, ...] = ()

    def __post_init__(self):
        if self.packed and self.max_length is None:
            raise ValueError("`max_length` must be given with `packed`: it is the room in a row.")
        if self.max_length is not None and self.pad_to_multiple_of and self.max_length % self.pad_to_multiple_of:
            raise ValueError(
                f"`max_length` must be a multiple of `pad_to_multiple_of` = {self.pad_to_multiple_of}, "
                f"got {self.max_length}."
            )

    def __call__(self, samples: list[dict] | list[list[dict]]) -> dict[str, torch.Tensor]:
        """
        Args:
            samples (`list[dict]`): N samples with `input_ids`, `token_type_ids`, `labels` `(S_n,)`, lists or tensors,
                and, for their images in token order, `pixel_values` and `image_grid_thw`, `latents` `(L_n, C)` and
                `latent_grid_hw` `(I_n, 2)`, or in place of `latents` `latent_pixels` `(P_n, 3)`, with
                `latent_roles` `(I_n,)` if not all are to draw, and `image_is_causal`; features under
                `feature_keys`, `(L_n, C)`. Or lists of samples, each a row that is packed already.

        Returns:
            `dict[str, torch.Tensor]`: the same keys, rows as `(B, S)` and images concatenated in the order of their
            tokens, row after row; `attention_mask` `(B, S)`; if packed, `sequence_ids` `(B, S)`: which of the
            `samples` a token is of, -1 at padding. The first label of each sample is -100: what stands before it is
            none of its own.

        Raises:
            ValueError: if there are no samples, or one is longer than `max_length`, lacks a key, has an unknown one or
                entries that do not fit together, or some have `latents` and others `latent_pixels`.
        """
        are_rows = bool(samples) and isinstance(samples[0], list)
        if are_rows:
            numbers = iter(range(sum(map(len, samples))))
            rows = [[next(numbers) for _ in row] for row in samples]
            samples = [sample for row in samples for sample in row]
        samples = [{key: torch.as_tensor(value) for key, value in sample.items()} for sample in samples]
        self._check(samples)
        lengths = [len(sample["input_ids"]) for sample in samples]
        if not are_rows:
            rows = self._packed(lengths) if self.packed else [[i] for i in range(len(samples))]

        order = [i for row in rows for i in row]
        places = _places([[lengths[i] for i in row] for row in rows])
        width = max(sum(lengths[i] for i in row) for row in rows)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of

        def fill(values: list[torch.Tensor], padding: int) -> torch.Tensor:
            filled = torch.full((len(rows), width), padding)
            filled[places] = torch.cat(values).long()
            return filled

        batch = {
            "input_ids": fill([samples[i]["input_ids"] for i in order], self.pad_token_id),
            "token_type_ids": fill([samples[i]["token_type_ids"] for i in order], 0),
            "attention_mask": fill([torch.ones(lengths[i]) for i in order], 0),
            "labels": fill([_without_first(samples[i]["labels"]) for i in order], -100),
        }
        if self.packed or are_rows:
            batch["sequence_ids"] = fill([torch.full((lengths[i],), i) for i in order], -1)
        for key in (*(key for pair in IMAGE_KEYS for key in pair), PIXELS, *self.feature_keys):
            if images := [samples[i][key] for i in order if key in samples[i]]:
                batch[key] = torch.cat(images)
        for key, grids, default in IMAGE_ROLES:
            if any(key in sample for sample in samples):
                roles = [samples[i].get(key, torch.full((len(samples[i].get(grids, ())),), default)) for i in order]
                batch[key] = torch.cat(roles)
        return batch

    def _packed(self, lengths: list[int]) -> list[list[int]]:
        packer = FirstFit(self.max_length)
        for i, length in enumerate(lengths):
            packer.add(i, length)
        return packer.rows

    def _check(self, samples: list[dict[str, torch.Tensor]]):
        if not samples:
            raise ValueError("`samples` is empty.")
        known = {*ROW_KEYS, *(key for pair in IMAGE_KEYS for key in pair), PIXELS, *self.feature_keys}
        known |= {key for key, *_ in IMAGE_ROLES}
        sources = {key for sample in samples for key in ("latents", PIXELS) if key in sample}
        if len(sources) > 1:
            raise ValueError(f"`samples` must have all `latents` or all `{PIXELS}`, got both.")
        for i, sample in enumerate(samples):
            if missing := [key for key in ROW_KEYS if key not in sample]:
                raise ValueError(f"`samples`: sample {i} lacks {missing}.")
            if unknown := sorted(set(sample) - known):
                raise ValueError(f"`samples`: sample {i} has the unknown keys {unknown}, known are {sorted(known)}.")
            length = len(sample["input_ids"])
            if any(sample[key].shape != (length,) for key in ROW_KEYS) or not length:
                shapes = {key: tuple(sample[key].shape) for key in ROW_KEYS}
                raise ValueError(f"`samples`: the rows of sample {i} must have one and the same length, got {shapes}.")
            if self.max_length is not None and length > self.max_length:
                raise ValueError(f"`samples`: sample {i} has {length} tokens, `max_length` is {self.max_length}.")
            for values, grids in IMAGE_KEYS:
                values = PIXELS if values == "latents" and PIXELS in sample else values
                if (values in sample) != (grids in sample):
                    raise ValueError(f"`samples`: sample {i} must have `{values}` and `{grids}`, or neither.")
                if values not in sample:
                    continue
                sizes = sample[grids].prod(-1)
                if grids == "latent_grid_hw" and "latent_roles" in sample:
                    sizes = sizes[sample["latent_roles"] != COPY]  # which are those of their drafts
                entries, places = len(sample[values]), int(sizes.sum())
                side = math.isqrt(entries // max(1, places)) if values == PIXELS else 1
                if entries != places * max(1, side) ** 2:
                    raise ValueError(
                        f"`samples`: `{values}` of sample {i} has {entries} entries, but `{grids}` makes {places}."
                    )


def _places(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every token, for rows of samples of the given lengths that stand one after another."""
    totals = torch.tensor([sum(row) for row in rows])
    row = torch.arange(len(rows)).repeat_interleave(totals)
    return row, torch.arange(len(row)) - (totals.cumsum(0) - totals)[row]


def _without_first(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([labels.new_tensor([-100]), labels[1:]])
