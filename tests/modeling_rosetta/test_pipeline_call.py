"""What users of a diffusers pipeline rely on: seeds, output types, callbacks, errors."""

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SD3CFGCutoffCallback
from PIL import Image

from modeling_rosetta.latent_codec_rosetta import decode_latents
from modeling_rosetta.pipeline import RosettaPipeline
from tests.conftest import tiny_model
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline, tiny_vae


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, prompt="a red stone", **kwargs):
    return pipe(prompt, **{"output_type": "latent", "num_inference_steps": 2, "guidance_scale": 2.0, **kwargs}).images


def test_a_seed_decides_the_image(pipe):
    first, again, other = (draw(pipe, generator=seeded(seed)[0]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_generator_for_each_image_gives_each_its_own_seed(pipe):
    images = draw(pipe, ["x", "x"], generator=seeded(1, 2))
    for image, generator in zip(images, seeded(1, 2), strict=True):
        torch.testing.assert_close(image[None], draw(pipe, "x", generator=generator), rtol=0, atol=2e-5)


def test_output_types_show_the_same_images(pipe):
    latents = draw(pipe, ["x", "y"], latents=noise(2))
    pt, array, pil = (draw(pipe, ["x", "y"], latents=noise(2), output_type=kind) for kind in ("pt", "np", "pil"))
    assert latents.shape == (2, 8, 4, 4) and pt.shape == (2, 3, 64, 64) and array.shape == (2, 64, 64, 3)
    assert torch.equal(pt, (decode_latents(pipe.vae, latents) / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) for image in pil)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in pil]), (array * 255).round())


def test_sizes_are_in_pixels(pipe):
    assert draw(pipe, height=48, width=80, output_type="pil")[0].size == (80, 48)


def test_a_tuple_on_request(pipe):
    (images,) = pipe("x", num_inference_steps=1, output_type="latent", latents=noise(), return_dict=False)
    assert torch.equal(images, draw(pipe, "x", num_inference_steps=1, guidance_scale=5.0, latents=noise()))


def test_callbacks_see_every_step_and_may_replace_the_latents(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe and torch.equal(timestep, pipe.current_timestep)
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = draw(pipe, callback_on_step_end=callback, num_inference_steps=4)
    assert seen == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    assert pipe.num_timesteps == 4 and not images.any()


def test_an_interrupt_ends_the_steps(pipe):
    steps = []

    def callback(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1
        return {}

    draw(pipe, callback_on_step_end=callback, num_inference_steps=5)
    assert steps == [0, 1]


def test_without_a_vae_it_draws_latents(pipe):
    blind = RosettaPipeline(pipe.transformer, None, pipe.scheduler, pipe.processor)
    blind.set_progress_bar_config(disable=True)
    assert torch.equal(draw(blind, latents=noise()), draw(pipe, latents=noise()))
    with pytest.raises(ValueError, match="output_type"):
        draw(blind, output_type="pil")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prompt", 3),
        ("prompt", []),
        ("prompt", ["x", None]),
        ("negative_prompt", ["x", "y"]),
        ("negative_prompt", 3),
        ("height", 50),
        ("width", 0),
        ("num_inference_steps", 0),
        ("num_images_per_prompt", 1.5),
        ("sigmas", []),
        ("sigmas", [0.5, 1.0]),
        ("sigmas", [1.0, 0.0]),
        ("sigmas", [1.5, 0.5]),
        ("sigmas", 0.5),
        ("sigmas", ["high"]),
        ("guidance_scale", "high"),
        ("guidance_scale", float("nan")),
        ("generator", seeded(1, 2)),
        ("generator", 0),
        ("generator", [0]),
        ("latents", noise().numpy()),
        ("latents", noise(2)),
        ("output_type", "jpeg"),
        ("callback_on_step_end", 3),
        ("callback_on_step_end_tensor_inputs", ["noise_pred"]),
        ("max_sequence_length", 10),
        ("max_sequence_length", None),
        ("max_sequence_length", "10"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(pipe, monkeypatch, argument, value):
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"`{argument}`"):
        draw(pipe, **{"prompt": "a red stone", argument: value})


def test_a_wrong_negative_prompt_is_named_also_before_guidance_begins(pipe):
    for wrong in (3, ["x", "y"]):
        with pytest.raises(ValueError, match="`negative_prompt`"):
            draw(pipe, negative_prompt=wrong, guidance_scale=1.0)


def test_callbacks_may_be_given_no_tensors(pipe):
    given = []
    expected = draw(pipe, latents=noise(), num_inference_steps=2)
    for inputs in (None, []):
        arguments = {"callback_on_step_end_tensor_inputs": inputs, "num_inference_steps": 2}
        assert torch.equal(draw(pipe, latents=noise(), **arguments), expected)
        callback = lambda _pipe, _step, _time, tensors: given.append(tensors) or {}  # noqa: E731
        assert torch.equal(draw(pipe, latents=noise(), callback_on_step_end=callback, **arguments), expected)
    assert given == [{}] * 4


def test_callbacks_of_diffusers_run_or_name_what_they_lack(pipe, monkeypatch):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    def halve(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2}

    expected = draw(pipe, latents=noise(), callback_on_step_end=halve)
    for callback in (Halve(), MultiPipelineCallbacks([Halve()])):
        assert torch.equal(draw(pipe, latents=noise(), callback_on_step_end=callback), expected)
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="tensor_inputs.*'pooled_prompt_embeds'.*`pipe._guidance_scale`"):
        draw(pipe, callback_on_step_end=SD3CFGCutoffCallback())


@pytest.mark.parametrize("name", ["transformer", "scheduler", "processor"])
def test_a_part_that_is_missing_is_named(pipe, name):
    blind = RosettaPipeline(**{**pipe.components, name: None})
    with pytest.raises(ValueError, match=f"`{name}` must be part of the pipeline"):
        draw(blind)


def test_a_model_that_does_not_draw_is_named(pipe, monkeypatch):
    monkeypatch.setattr(type(pipe.transformer.config), "token_type_index", lambda config, source: None)
    with pytest.raises(ValueError, match="`transformer` must have a token type that is drawn"):
        draw(pipe)


def test_a_model_in_training_mode_is_refused():
    pipe = tiny_pipeline()
    pipe.transformer.train()
    with pytest.raises(ValueError, match="training mode"):
        draw(pipe)


def test_parts_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ValueError, match="latent_channels"):
        RosettaPipeline(tiny_model(latent_channels=16), tiny_vae(), pipe.scheduler, pipe.processor)
    processor = type(pipe.processor)(
        pipe.processor.image_processor, pipe.processor.tokenizer, base_size=64, latent_patch_size=8
    )
    with pytest.raises(ValueError, match="latent_patch_size"):
        RosettaPipeline(pipe.transformer, tiny_vae(), pipe.scheduler, processor)


def test_latents_are_decoded_as_at_the_end_of_a_call(pipe):
    latents = draw(pipe, latents=noise())
    assert torch.equal(pipe.decode_latents(latents, "pt"), draw(pipe, latents=noise(), output_type="pt"))
    np.testing.assert_array_equal(pipe.decode_latents(latents)[0], draw(pipe, latents=noise(), output_type="pil")[0])
    blind = RosettaPipeline(pipe.transformer, None, pipe.scheduler, pipe.processor)
    with pytest.raises(ValueError, match="`vae` must be part of the pipeline"):
        blind.decode_latents(latents)
