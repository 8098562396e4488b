"""Prompts that are encoded once and drawn from again, and those that a callback replaces."""

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

from modeling_rosetta.pipeline import RosettaPipeline
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


NAMES = ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask")
PROMPTS = ["a red stone", "x"]


@pytest.fixture(scope="module", params=[True, False], ids=["timestep_token", "no_timestep_token"])
def pipe(request):
    return tiny_pipeline(latent_prefix=request.param)


def draw(pipe, prompt=None, **kwargs) -> torch.Tensor:
    return pipe(prompt, **{"output_type": "latent", "num_inference_steps": 2, "guidance_scale": 3.0, **kwargs}).images


def encode(pipe, *args, **kwargs) -> dict:
    return dict(zip(NAMES, pipe.encode_prompt(*args, **kwargs), strict=True))


@pytest.mark.parametrize("negative_prompt", [None, "a long description of something blue"])
def test_a_prompt_is_encoded_without_the_rest_of_the_pipeline(negative_prompt, pipe):
    alone = RosettaPipeline(transformer=pipe.transformer, processor=pipe.processor, vae=None, scheduler=None)
    encoded = encode(alone, PROMPTS, negative_prompt, system_prompt="You draw.")
    config = pipe.transformer.config
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert encoded["prompt_embeds"].shape[::2] == (2, size)
    asked = {"latents": noise(4), "num_images_per_prompt": 2}
    expected = draw(pipe, PROMPTS, negative_prompt=negative_prompt, system_prompt="You draw.", **asked)
    torch.testing.assert_close(draw(pipe, **encoded, **asked), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(expected, draw(pipe, PROMPTS, negative_prompt=negative_prompt, **asked), atol=1e-3)


def test_what_was_encoded_serves_any_size_and_one_row_by_itself(pipe):
    encoded = encode(pipe, PROMPTS)
    latents = torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    drawn = draw(pipe, **{name: value[1:] for name, value in encoded.items()}, height=48, width=80, latents=latents)
    torch.testing.assert_close(drawn, draw(pipe, "x", height=48, width=80, latents=latents), rtol=0, atol=2e-5)


def test_words_and_what_was_encoded_mix(pipe):
    """Of other lengths, and only one of the two kinds encoded."""
    expected = draw(pipe, "x", negative_prompt="something blue", latents=noise())
    positive = encode(pipe, "x", do_classifier_free_guidance=False)
    assert positive["negative_prompt_embeds"] is None
    drawn = draw(pipe, **positive, negative_prompt="something blue", latents=noise())
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)
    blue = pipe.encode_prompt("something blue", do_classifier_free_guidance=False)[:2]
    drawn = draw(pipe, "x", **dict(zip(NAMES[2:], blue, strict=True)), latents=noise())
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "x"}, "Exactly one of `prompt` and `prompt_embeds`"),
        ({"prompt_embeds": None, "prompt_embeds_mask": None}, "Exactly one of `prompt` and `prompt_embeds`"),
        ({"prompt_embeds_mask": None}, "`prompt_embeds` and `prompt_embeds_mask` go together"),
        ({"prompt_embeds": torch.zeros(1, 3, 5)}, "`prompt_embeds` must be a tensor"),
        ({"prompt_embeds": "x"}, "`prompt_embeds` must be a tensor"),
        ({"prompt_embeds_mask": torch.ones(2, 2)}, "`prompt_embeds_mask` must be a tensor"),
        ({"negative_prompt": "x"}, "Only one of `negative_prompt` and `negative_prompt_embeds`"),
        ({"negative_prompt_embeds": None, "negative_prompt_embeds_mask": None}, "`negative_prompt_embeds`"),
    ],
)
def test_what_does_not_go_together_is_named(change, message, pipe, monkeypatch):
    encoded = encode(pipe, "x")
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        draw(pipe, **{**encoded, **change})


def test_guidance_that_a_callback_begins_needs_what_it_leads_away_from(pipe):
    positive = encode(pipe, "x", do_classifier_free_guidance=False)

    def begin(pipe, step, timestep, tensors):
        pipe._guidance_scale = 5.0
        return {}

    with pytest.raises(ValueError, match="`negative_prompt_embeds`"):
        draw(pipe, **positive, guidance_scale=1.0, callback_on_step_end=begin)


@pytest.mark.parametrize("prompt", ["x", PROMPTS])
def test_guidance_ends_by_the_callback_of_diffusers(prompt, pipe):
    rows, number = [], 1 if prompt == "x" else 2
    hook = pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def end(pipe, step, timestep, tensors):
        pipe._guidance_scale = 0.0 if step == 1 else pipe._guidance_scale
        return {}

    asked = {"latents": noise(number), "num_inference_steps": 4}
    expected = draw(pipe, prompt, callback_on_step_end=end, **asked)
    rows.clear()
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    drawn = draw(pipe, prompt, callback_on_step_end=MultiPipelineCallbacks([callback]), **asked)
    hook.remove()
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)
    assert rows == [2 * number] * 3 + [number] * 2


def test_a_callback_may_replace_the_prompt(pipe):
    blue, between = pipe.encode_prompt("a blue one!")[0], []

    def replace(pipe, step, timestep, tensors):
        between.append(tensors["latents"])
        return {"prompt_embeds": blue} if step == 0 else {}

    asked = {"callback_on_step_end": replace, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    changed = draw(pipe, "a red stone", latents=noise(), guidance_scale=1.0, **asked)
    expected = draw(pipe, "a blue one!", latents=between[0], sigmas=[0.5], guidance_scale=1.0)
    torch.testing.assert_close(changed, expected, rtol=0, atol=2e-5)
