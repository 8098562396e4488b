"""What servers and peers ask of a model beside `forward` and `generate`, by the names that Qwen3-VL gives it."""

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from modeling_rosetta import unmount
from tests.conftest import VIT, sample, tiny_model
from tests.modeling_rosetta.test_generation import left_padded, prompt


@torch.no_grad()
def test_image_features_are_what_the_model_embeds(rosetta):
    images = {key: prompt("utut")[key] for key in ("pixel_values", "image_grid_thw")}
    features = rosetta.get_image_features(**images)
    whole, deepstack = rosetta.model._embed_images(**images)
    assert [len(image) for image in features.pooler_output] == [2, 2]
    assert torch.equal(torch.cat(features.pooler_output), whole)
    assert torch.equal(torch.cat(features.deepstack_features[0]), deepstack[0])
    assert features.hidden_states is None
    assert len(rosetta.get_image_features(**images, output_hidden_states=True).hidden_states) == 3
    assert isinstance(rosetta.get_image_features(**images, return_dict=False), tuple)
    unmount(rosetta, "vit")
    with pytest.raises(ValueError, match="`pixel_values` was given, but no token type"):
        rosetta.get_image_features(**images)


def test_rope_index_is_that_of_qwen3_vl(rosetta):
    batch = left_padded([prompt("tutu", 1), prompt("t", 2)])
    rest = {key: batch[key] for key in ("image_grid_thw", "attention_mask")}
    images = (batch["token_type_ids"] == VIT).int()
    positions, deltas = rosetta.get_rope_index(batch["input_ids"], batch["token_type_ids"], **rest)
    for own in ((positions, deltas), rosetta.get_rope_index(batch["input_ids"], mm_token_type_ids=images, **rest)):
        qwen = Qwen3VLModel.get_rope_index(QwenOfSameVision(rosetta), batch["input_ids"], images, **rest)
        real = batch["attention_mask"].bool()
        assert torch.equal(own[0][:, real], qwen[0][:, real])
        assert torch.equal(own[1], qwen[1])


class QwenOfSameVision:
    get_vision_position_ids = Qwen3VLModel.get_vision_position_ids

    def __init__(self, model):
        self.config = model.config


@torch.no_grad()
def test_given_positions_are_those_that_are_computed(model):
    drawing = prompt("tgt")
    positions, deltas = model.get_rope_index(
        drawing["input_ids"], drawing["token_type_ids"], latent_grid_hw=drawing["latent_grid_hw"]
    )
    assert deltas.tolist() == [[3 - 6]]
    assert torch.equal(model(**drawing, position_ids=positions).logits, model(**drawing).logits)
    ids = prompt("t")["input_ids"]
    flat = torch.arange(ids.shape[1])[None]
    for given in (flat, flat.expand(3, 1, -1)):
        assert torch.equal(model(ids, position_ids=given).logits, model(ids).logits)
    assert not torch.equal(model(ids, position_ids=2 * flat + 1).logits, model(ids).logits)


@pytest.mark.parametrize("shape", [(4,), (1, 5), (2, 4), (4, 1, 4), (3, 2, 4)], ids=str)
def test_positions_of_a_wrong_shape_are_named(rosetta, shape):
    with pytest.raises(ValueError, match=r"`position_ids` must have shape \(1, 4\) or \(3, 1, 4\), got"):
        rosetta(sample("t")["input_ids"], position_ids=torch.zeros(shape, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("kinds", ["t", "tut", "tgtg"])
def test_embeddings_equal_ids(kinds):
    model, batch = tiny_model(timestep_token_id=111), prompt(kinds)
    if "g" in kinds:
        batch["input_ids"][0, [3, 13]] = 111
    expected = model(**batch)
    output = model(**batch | {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "input_ids": None})
    torch.testing.assert_close(output.logits, expected.logits)
    if "g" in kinds:
        torch.testing.assert_close(output.velocity, expected.velocity)
