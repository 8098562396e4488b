"""Padded batches of texts, of prompts to draw, and what comes back as text."""

import numpy as np
import pytest
import torch
from PIL import Image


def image(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (side, 0, 0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side, processor):
    texts = ["abcdef", "xy"]
    batch = processor(text=texts, padding=True, padding_side=side, return_labels=True, return_tensors="pt")
    for i, value in enumerate(texts):
        alone = processor(text=value, return_labels=True)
        real = batch["attention_mask"][i].bool()
        length = len(alone["input_ids"][0])
        assert real.sum() == length
        assert real[:length].all() if side == "right" else real[-length:].all()
        for key, padding in (("input_ids", processor.tokenizer.pad_token_id), ("token_type_ids", 0), ("labels", -100)):
            assert batch[key][i][real].tolist() == alone[key][0]
            assert batch[key][i][~real].eq(padding).all()


def test_images_of_a_batch_are_in_the_order_of_their_rows(processor):
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image(side)}, {"type": "text", "text": "?"}]}]
        for side in (64, 32)
    ]
    batch = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 2]]
    assert batch["token_type_ids"].eq(1).sum(-1).tolist() == [4, 1]
    assert len(batch["pixel_values"]) == 16 + 4


def test_images_may_be_given_to_the_call(processor):
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    inside = [{"role": "user", "content": [{"type": "image", "image": image(32)}, {"type": "text", "text": "?"}]}]
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    given = processor.apply_chat_template(conversation, processor_kwargs={"images": [image(32)]}, **arguments)
    for key, value in processor.apply_chat_template(inside, **arguments).items():
        assert torch.equal(given[key], value)


def test_lists_arrays_and_tensors_agree(processor):
    arguments = {
        "text": "<|vision_start|><|image_pad|><|vision_end|>x<|vision_start|><|vision_pad|><|vision_end|>",
        "images": image(32),
        "latents": [torch.ones(8, 1, 2)],
    }
    lists, arrays, tensors = (processor(**arguments, return_tensors=kind) for kind in (None, "np", "pt"))
    assert lists.keys() == arrays.keys() == tensors.keys()
    assert isinstance(lists["input_ids"], list)
    for key in tensors:
        assert isinstance(arrays[key], np.ndarray) and isinstance(tensors[key], torch.Tensor)
        assert torch.equal(torch.as_tensor(lists[key]), tensors[key])
        assert torch.equal(torch.as_tensor(arrays[key]), tensors[key])


def test_prompts_of_different_lengths_are_padded_on_the_left(processor):
    batch = processor.draw_prompt(["a", "long prompt"], height=32, width=48)
    drawn = batch["token_type_ids"] == 2
    assert drawn.sum(-1).tolist() == [6] * 4
    assert (drawn == drawn[0]).all()
    assert torch.equal(batch["attention_mask"][:2], batch["attention_mask"][2:])
    assert batch["attention_mask"].sum(-1).diff().tolist() == [10, -10, 10]
    assert batch["latent_grid_hw"].tolist() == [[2, 3]] * 4
    cfg = batch["input_ids"] == processor.cfg_token_id
    assert cfg.sum(-1).tolist() == [0, 0, 1, 11]


@pytest.mark.parametrize("negative", ["ugly", ["ugly", "grey sky"]])
def test_negative_prompts_take_the_place_of_unconditional_rows(negative, processor):
    batch = processor.draw_prompt(["a", "long prompt"], negative_prompt=negative)
    expected = [negative] * 2 if isinstance(negative, str) else negative
    alone = processor.draw_prompt(expected, do_classifier_free_guidance=False)
    for row, other in zip((2, 3), (0, 1), strict=True):
        assert torch.equal(
            batch["input_ids"][row][batch["attention_mask"][row].bool()],
            alone["input_ids"][other][alone["attention_mask"][other].bool()],
        )


def test_an_empty_negative_prompt_is_a_prompt(processor):
    batch = processor.draw_prompt("a", negative_prompt="")
    assert batch["attention_mask"].sum(-1).diff().tolist() == [-1]
    assert (batch["input_ids"] != processor.cfg_token_id).all()


def test_without_guidance_there_are_no_unconditional_rows(processor):
    batch = processor.draw_prompt(["a", "b"], do_classifier_free_guidance=False)
    assert len(batch["input_ids"]) == len(batch["latent_grid_hw"]) == 2


def test_size_defaults_to_the_base_size(processor):
    assert processor.draw_prompt("a")["latent_grid_hw"].tolist() == [[4, 4]] * 2


def test_decoding(processor):
    ids = processor.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=True)
    assert processor.decode(ids[0]) == "<|im_start|>user\nHi<|im_end|>\n"
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["user\nHi\n"]
    assert processor.post_process_image_text_to_text(ids) == ["user\nHi\n"]
