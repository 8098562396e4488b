"""The collator loses, cuts and mixes nothing, padded or packed."""

import pytest
import torch

from trainer.data.collator import RosettaDataCollator


PAD = 999


def sample(number: int, length: int, num_images: int = 0, num_latents: int = 0) -> dict:
    """All that belongs to sample `number` can be told by its values."""
    made = {
        "input_ids": [100 * number + i for i in range(length)],
        "token_type_ids": [0] * length,
        "labels": [100 * number + i for i in range(length)],
    }
    if num_images:
        made["pixel_values"] = torch.full((4 * num_images, 6), float(number))
        made["image_grid_thw"] = torch.tensor([[1, 2, 2]]).repeat(num_images, 1)
    if num_latents:
        made["latents"] = torch.full((3 * num_latents, 8), float(number))
        made["latent_grid_hw"] = torch.tensor([[1, 3]]).repeat(num_latents, 1)
    return made


# In rows of 10, samples 0, 2 and 4 come to stand before 1 and 3.
SAMPLES = [sample(0, 4), sample(1, 8, 2, 1), sample(2, 3, 1), sample(3, 9, 0, 2), sample(4, 2, 1, 1)]


def unpack(batch: dict) -> list[list[int]]:
    numbers = batch["sequence_ids"].unique().tolist()
    return [batch["input_ids"][batch["sequence_ids"] == number].tolist() for number in numbers if number >= 0]


def test_packing_keeps_every_sample_whole_and_in_one_row():
    batch = RosettaDataCollator(PAD, max_length=10, packed=True)(SAMPLES)
    assert len(batch["input_ids"]) == 3
    assert unpack(batch) == [s["input_ids"] for s in SAMPLES]
    for number in range(len(SAMPLES)):
        rows, columns = torch.where(batch["sequence_ids"] == number)
        assert len(rows.unique()) == 1 and (columns.diff() == 1).all()


def test_images_follow_their_tokens_when_samples_change_places():
    batch = RosettaDataCollator(PAD, max_length=10, packed=True)(SAMPLES)
    in_token_order = [n for n in batch["sequence_ids"].flatten().unique_consecutive().tolist() if n >= 0]
    assert in_token_order == [0, 2, 4, 1, 3]
    assert batch["pixel_values"][::4, 0].tolist() == [2, 4, 1, 1]
    assert batch["latents"][::3, 0].tolist() == [4, 1, 3, 3]
    assert len(batch["image_grid_thw"]) == len(batch["latent_grid_hw"]) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_only_the_first_label_of_each_sample_changes(packed):
    batch = RosettaDataCollator(PAD, max_length=10, packed=packed)(SAMPLES)
    real = batch["attention_mask"].bool()
    first = torch.isin(batch["input_ids"], torch.tensor([s["input_ids"][0] for s in SAMPLES]))
    assert batch["labels"][first | ~real].eq(-100).all()
    assert torch.equal(batch["labels"][real & ~first], batch["input_ids"][real & ~first])


def test_padded_rows_hold_one_sample_each():
    batch = RosettaDataCollator(PAD)(SAMPLES)
    assert "sequence_ids" not in batch
    assert batch["attention_mask"].sum(-1).tolist() == [4, 8, 3, 9, 2]
    for row, ids, mask in zip(SAMPLES, batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        assert ids[mask].tolist() == row["input_ids"]
        assert mask[: len(row["input_ids"])].all()
        assert ids[~mask].eq(PAD).all()
    assert batch["pixel_values"][::4, 0].tolist() == [1, 1, 2, 4]


def test_padding_of_a_packed_row():
    batch = RosettaDataCollator(PAD, max_length=10, packed=True)([sample(0, 4), sample(1, 7)])
    padding = batch["attention_mask"] == 0
    assert padding.tolist() == [[False] * 4 + [True] * 3, [False] * 7]
    assert batch["sequence_ids"][padding].eq(-1).all() and batch["input_ids"][padding].eq(PAD).all()


@pytest.mark.parametrize("packed", [False, True])
def test_row_length_is_a_multiple(packed):
    collator = RosettaDataCollator(PAD, max_length=16, packed=packed, pad_to_multiple_of=8)
    assert collator([sample(0, 3), sample(1, 8)])["input_ids"].shape[1] == (16 if packed else 8)


def test_tensors_and_lists_agree_and_are_left_alone():
    tensors = [{key: torch.as_tensor(value) for key, value in s.items()} for s in SAMPLES]
    collator = RosettaDataCollator(PAD, max_length=10, packed=True)
    from_tensors = collator(tensors)
    for key, value in collator(SAMPLES).items():
        assert torch.equal(from_tensors[key], value)
    for given, expected in zip(tensors, SAMPLES, strict=True):
        assert given["labels"].tolist() == expected["labels"]


def test_text_alone_brings_no_image_keys():
    assert set(RosettaDataCollator(PAD)([sample(0, 2)])) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


@pytest.mark.parametrize(
    "broken, message",
    [
        ([], "empty"),
        ([sample(0, 4), sample(1, 11)], "sample 1 has 11 tokens, `max_length` is 10"),
        ([{"input_ids": [1]}], r"sample 0 lacks \['token_type_ids', 'labels'\]"),
        ([sample(0, 2) | {"latent": 1}], "sample 0 has the unknown keys"),
        ([sample(0, 2) | {"labels": [1]}], "sample 0 must have one and the same length"),
        ([sample(0, 0)], "sample 0 must have one and the same length"),
        ([sample(0, 2) | {"latents": torch.zeros(3, 8)}], "`latents` and `latent_grid_hw`"),
        ([sample(0, 2, 1) | {"pixel_values": torch.zeros(3, 6)}], "`pixel_values` of sample 0 has 3 .* makes 4"),
    ],
)
def test_bad_samples_are_named(broken, message):
    with pytest.raises(ValueError, match=message):
        RosettaDataCollator(PAD, max_length=10, packed=True)(broken)


@pytest.mark.parametrize("arguments", [{"packed": True}, {"max_length": 10, "pad_to_multiple_of": 8}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="`max_length`"):
        RosettaDataCollator(PAD, **arguments)
