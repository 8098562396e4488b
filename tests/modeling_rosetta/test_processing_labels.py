"""What a sample is trained on, and what dropping its prompt changes."""

import pytest
import torch
from PIL import Image


def targets(processor, sample: dict) -> str:
    return processor.decode(sample["labels"][sample["labels"] != -100])


def turn(role, *content):
    return {"role": role, "content": list(content)}


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image", "image": Image.new("RGB", (32, 32))}
LATENTS = {"type": "latents", "latents": torch.zeros(8, 2, 2)}


def test_document_is_trained_on_whole_but_for_its_first_token(processor):
    assert targets(processor, processor.training_sample("A document.")) == " document.<|im_end|>"


def test_chat_is_trained_on_its_responses(processor):
    conversation = [
        turn("system", text("s")),
        turn("user", text("a")),
        turn("assistant", text("b")),
        turn("user", IMAGE, text("c")),
        turn("assistant", text("d")),
    ]
    assert targets(processor, processor.training_sample(conversation)) == "b<|im_end|>d<|im_end|>"


def test_drawing_is_trained_on_the_turn_that_asks_for_it(processor):
    conversation = [
        turn("user", IMAGE, text("a")),
        turn("assistant", text("b")),
        turn("user", text("c")),
        turn("assistant", LATENTS),
    ]
    sample = processor.training_sample(conversation)
    assert targets(processor, sample) == "b<|im_end|><|im_start|>user\nc<|im_end|>\n"


def test_image_tokens_and_their_marks_are_no_targets(processor):
    slot = "<|vision_start|><|vision_pad|><|vision_end|>"
    batch = processor(text=f"ab{slot}cd", latent_sizes=[(32, 32)], return_labels=True, return_tensors="pt")
    assert targets(processor, {"labels": batch["labels"][0]}) == "bcd<|im_end|>"


def test_labels_are_aligned_with_the_tokens(processor):
    sample = processor.training_sample([turn("user", IMAGE, text("a")), turn("assistant", text("b"))])
    kept = sample["labels"] != -100
    assert torch.equal(sample["labels"][kept], sample["input_ids"][kept])


def test_dropped_prompt_is_the_unconditional_row_and_no_target(processor):
    sample = processor.training_sample([turn("user", text("cap")), turn("assistant", LATENTS)])
    dropped = processor.drop_prompt(sample)
    assert processor.decode(dropped["input_ids"]).startswith("<|im_start|>user\n" + 3 * "<｜cfg｜>" + "<|im_end|>\n")
    assert (dropped["input_ids"] != sample["input_ids"]).sum() == 3
    assert dropped["labels"].eq(-100).all()
    assert sample["labels"].ne(-100).any()
    drawn = processor.draw_prompt("cap", height=32, width=32)["input_ids"]
    assert dropped["input_ids"][:-1].tolist() == drawn[1].tolist()


def test_dropping_the_prompt_keeps_images_and_responses(processor):
    sample = processor.training_sample([turn("user", IMAGE, text("abc")), turn("assistant", text("d"))])
    dropped = processor.drop_prompt(sample)
    assert torch.equal(dropped["labels"], sample["labels"])
    assert (dropped["input_ids"] != sample["input_ids"]).sum() == 3


@pytest.mark.parametrize("as_list", [True, False])
def test_dropping_takes_lists_and_tensors(as_list, processor):
    sample = processor.training_sample([turn("user", text("cap")), turn("assistant", LATENTS)])
    given = {key: value.tolist() if as_list else value for key, value in sample.items()}
    assert torch.equal(processor.drop_prompt(given)["input_ids"], processor.drop_prompt(sample)["input_ids"])
