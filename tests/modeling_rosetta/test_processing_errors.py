"""Bad input is named before any work."""

import pytest
import torch
from PIL import Image


SLOT = "<|vision_start|><|vision_pad|><|vision_end|>"
IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE = Image.new("RGB", (32, 32))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": None}, "`text` must be"),
        ({"text": ["a", ""]}, "`text` must be"),
        ({"text": "a", "padding": "sideways"}, "`padding`"),
        ({"text": "a", "padding_side": "top"}, "`padding_side`"),
        ({"text": ["a", "bc"], "return_tensors": "pt"}, "`padding` must be True"),
        ({"text": IMAGE_SLOT}, "1 placeholders .* 0 images"),
        ({"text": "a", "images": IMAGE}, "0 placeholders .* 1 images"),
        ({"text": [IMAGE_SLOT, "a"], "images": [[], [IMAGE]]}, r"\[1, 0\] placeholders .* \[0, 1\] images"),
        ({"text": IMAGE_SLOT, "images": [3]}, "image 0 .* got int"),
        ({"text": SLOT}, "1 placeholders .* 0 latents"),
        ({"text": "a", "latent_sizes": [(32, 32)]}, "0 placeholders .* 1 latents"),
        ({"text": SLOT, "latent_sizes": [(32, 40)]}, "`width` .* multiple of 16 .* 40"),
        ({"text": SLOT, "latent_sizes": 32}, "`latent_sizes` must be a list, got 32"),
        ({"text": SLOT, "latent_sizes": [(32, 32, 3)]}, r"`latent_sizes`: size 0 .* \(32, 32, 3\)"),
        ({"text": SLOT, "latents": 3}, "`latents` must be a list, got 3"),
        ({"text": SLOT, "latent_sizes": [(0, 32)]}, "`height` .* multiple of 16 .* 0"),
        ({"text": SLOT, "latents": [torch.zeros(8, 4)]}, r"latent 0 .* \(8, 4\)"),
        ({"text": SLOT * 2, "latents": [torch.zeros(8, 2, 2), torch.zeros(4, 2, 2)]}, r"`latents` .* \[8, 4\]"),
        ({"text": SLOT, "latents": [torch.zeros(8, 2, 2)], "latent_sizes": [(32, 32)]}, "cannot be given together"),
        ({"text": "<|im_start|>tool\nx<|im_end|>", "return_labels": True}, "roles"),
    ],
)
def test_call(arguments, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.parametrize(
    "conversation, message",
    [
        ([], "must be a list of messages"),
        ("Hi", "must be a list of messages"),
        ([{"role": "tool", "content": "x"}], "message 0 .* 'tool'"),
        ([{"role": "user"}], "`content` of message 0 .* none"),
        ([{"role": "user", "content": 3}], "`content` of message 0 .* 3"),
        ([{"role": ["user"], "content": "x"}], "`role` of message 0"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "message 0 has `tool_calls`"),
        ([{"role": "user", "content": [{"type": "video"}]}], "message 0 .* 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "`text` of message 0"),
        ([{"role": "user", "content": [{"type": "latents"}]}], "message 0 of role 'user' .* 'latents'"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "message 0 of role 'assistant' .* 'image'"),
    ],
)
def test_conversation(conversation, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(conversation)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": 3}, "`prompt`"),
        ({"prompt": "a", "negative_prompt": [None]}, "`negative_prompt`"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "2 prompts, got 1"),
        ({"prompt": "a", "height": 33}, "`height` .* 33"),
    ],
)
def test_draw_prompt(arguments, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.draw_prompt(**arguments)


def test_image_to_draw(processor):
    with pytest.raises(ValueError, match="`image` .* dict"):
        processor.preprocess_vae_image({})


def test_token_type_that_the_model_lacks(make_processor):
    understanding = make_processor(embeds_from=["input_ids", "pixel_values"])
    with pytest.raises(ValueError, match="`latents`: no token type"):
        understanding.draw_prompt("a")
    with pytest.raises(ValueError, match="`images`: no token type"):
        make_processor(embeds_from=["input_ids"])(text=IMAGE_SLOT, images=IMAGE)
    with pytest.raises(ValueError, match="embeds_from"):
        make_processor(embeds_from=["pixel_values"])


def test_missing_special_tokens_are_listed(make_processor):
    with pytest.raises(ValueError, match="img_size_128") as error:
        make_processor(base_size=128, latent_prefix=True)
    assert "timestep" not in str(error.value)


def test_no_error_is_longer_than_a_few_lines(processor):
    noise = "x" * 10_000
    talk = [{"role": "user", "content": [{"type": "image", "image": noise}]}]
    for call in (
        lambda: processor.apply_chat_template(talk, tokenize=True),
        lambda: processor.apply_chat_template(noise),
        lambda: processor.apply_chat_template([{"role": noise, "content": "x"}]),
        lambda: processor.apply_chat_template([{"role": "user", "content": [{"type": noise}]}]),
        lambda: processor(text=[noise, 3]),
        lambda: processor(text=[IMAGE_SLOT] * 200, images=[[]] * 200),
        lambda: processor(text=["x" * i for i in range(1, 200)], return_tensors="pt"),
        lambda: processor(text="x", max_pixels=noise),
        lambda: processor.draw_prompt([noise, 3]),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert len(str(error.value)) < 400 and "\n" not in str(error.value)
