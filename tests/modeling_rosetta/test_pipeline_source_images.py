"""Drawing from images: as clean latents, ViT tokens or both, read once; over them; and guided by them."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

from modeling_rosetta import RosettaPipeline, decode_latents, encode_images
from modeling_rosetta.latent_codec_rosetta import with_latents
from modeling_rosetta.latent_roles_rosetta import is_drawn
from tests.conftest import TINY, tiny_model
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_vae


BOTH = ["noisy_latents", "pixel_values"]
LAYOUTS = {
    "authors, training": {},
    "in order, latents": {"layout": "in_order", "image_embeds_from": ["noisy_latents"]},
    "in order, both": {"layout": "in_order", "image_embeds_from": BOTH, "latent_prefix": True},
    "authors, inference": {"layout": "authors_inference", "image_embeds_from": BOTH, "latent_prefix": True},
}
SIGMAS = [1.0, 0.4]


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module", params=LAYOUTS)
def pipe(request, make_processor) -> RosettaPipeline:
    return pipeline(make_processor(**LAYOUTS[request.param]))


@pytest.fixture(scope="module")
def in_order(make_processor) -> RosettaPipeline:
    return pipeline(make_processor(**LAYOUTS["in order, both"]))


def pipeline(processor) -> RosettaPipeline:
    marks = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "timestep_token_id")
    vision = {**TINY["vision_config"], "patch_size": 16}
    model = tiny_model(
        vocab_size=len(processor.tokenizer), vision_config=vision, **{mark: getattr(processor, mark) for mark in marks}
    )
    pipe = RosettaPipeline(model, tiny_vae(), FlowMatchEulerDiscreteScheduler(), processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, *args, **kwargs) -> torch.Tensor:
    return pipe(*args, **{"sigmas": SIGMAS, "output_type": "latent", **kwargs}).images


@torch.no_grad()
def by_hand(pipe, prompt, image, latents, scale: float, image_scale: float | None = None) -> torch.Tensor:
    """Every step a forward pass over whole rows, without a cache."""
    rows = pipe.processor.draw_prompt(prompt, 64, 64, images=[[image]], guides_by_images=image_scale is not None)
    rows = dict(with_latents(rows, pipe.vae))
    context, grids = rows.pop("latents", torch.zeros(0, 8)), rows["latent_grid_hw"]
    drawn = is_drawn(rows.pop("latent_roles", torch.ones(len(grids))))
    of_token = drawn.repeat_interleave(grids.prod(-1))
    for sigma, following in zip(SIGMAS, [*SIGMAS[1:], 0.0], strict=True):
        tokens = torch.zeros(len(of_token), 8)
        tokens[~of_token], number = context, int(drawn.sum())
        tokens[of_token] = latents[0].flatten(1).T.repeat(number, 1)
        velocity = pipe.transformer(**rows, noisy_latents=tokens, timesteps=sigma * drawn, use_cache=False).velocity
        conditional, unconditional, *without = velocity[of_token].view(number, -1, 8)
        velocity = unconditional + scale * (conditional - unconditional)
        if without:
            velocity = velocity + (image_scale - 1) * (unconditional - without[0])
        latents = latents + (following - sigma) * velocity.T.view_as(latents)
    return latents


@pytest.mark.parametrize("image_scale", [None, 1.7])
def test_each_step_is_that_of_an_uncached_forward(pipe, image_scale):
    drawn = draw(pipe, "ab", image=picture(1), latents=noise(), guidance_scale=3.0, image_guidance_scale=image_scale)
    expected = by_hand(pipe, "ab", picture(1), noise(), 3.0, image_scale)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-4)
    assert not torch.allclose(
        drawn, draw(pipe, "ab", image=picture(2), latents=noise(), guidance_scale=3.0), atol=1e-2
    )


def test_a_batch_draws_as_each_prompt_alone(pipe):
    """Of images in different numbers and shapes."""
    prompts, images = ["ab", "a longer one"], [picture(1), [picture(2), picture(3, 96, 32)]]
    size = {"height": 64, "width": 64}
    together = draw(pipe, prompts, image=images, latents=noise(2), **size)
    alone = [draw(pipe, prompts[i], image=images[i], latents=noise(2)[[i]], **size) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-4)
    several = draw(pipe, "ab", image=picture(1), latents=noise(2), num_images_per_prompt=2, **size)
    torch.testing.assert_close(several[0], alone[0][0], rtol=0, atol=2e-4)


def test_images_are_read_once(in_order, monkeypatch):
    seen = []
    visual, forward = in_order.transformer.model.visual, in_order.transformer.model.visual.forward
    monkeypatch.setattr(visual, "forward", lambda *args, **kwargs: seen.append(args) or forward(*args, **kwargs))
    draw(in_order, "ab", image=picture(1), sigmas=[1.0, 0.7, 0.4, 0.2])
    assert len(seen) == 1  # both rows of guidance at once


def test_the_size_is_that_of_the_image(in_order):
    assert draw(in_order, "ab", image=picture(1, 128, 32)).shape[2:] == (2, 8)
    assert draw(in_order, "ab", image=[picture(1), picture(2, 32, 128)]).shape[2:] == (8, 2)
    assert draw(in_order, "ab", image=picture(1, 128, 32), height=64, width=64).shape[2:] == (4, 4)
    with pytest.raises(ValueError, match="`height` and `width` must be given for images of several shapes"):
        draw(in_order, ["a", "b"], image=[picture(1), picture(2, 32, 128)])


def test_guidance_by_the_image_of_scale_1_is_none(in_order):
    given = {"image": picture(1), "latents": noise()}
    one = draw(in_order, "ab", **given, image_guidance_scale=1.0)
    torch.testing.assert_close(one, draw(in_order, "ab", **given), rtol=0, atol=2e-4)
    assert not torch.allclose(one, draw(in_order, "ab", **given, image_guidance_scale=3.0), atol=1e-2)


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_strength_starts_from_the_image(in_order, scheduler):
    pipe = RosettaPipeline(**{**in_order.components, "scheduler": scheduler()})
    pipe.set_progress_bar_config(disable=True)
    steps = []

    def record(pipe, step, timestep, tensors):
        steps.append(float(timestep) / 1000)
        return {}

    image = picture(1)
    kept = {"image": image, "latents": noise(), "output_type": "latent", "callback_on_step_end": record}
    drawn = pipe("ab", **kept, strength=0.5, num_inference_steps=10).images
    assert max(steps) == pytest.approx(0.5, abs=0.06) and len(steps) >= 5
    clean = encode_images(pipe.vae, pipe.processor.preprocess_vae_image(image)[None])
    nearly = pipe("ab", **kept, strength=0.02, num_inference_steps=50).images
    torch.testing.assert_close(nearly, 0.98 * clean + 0.02 * noise(), rtol=0, atol=0.3)
    assert (drawn - clean).abs().mean() > (nearly - clean).abs().mean()


def test_strength_of_one_step_is_the_formula(in_order):
    """From 0.4 of the noise, one Euler step with the velocity of the prompt alone."""
    seen = []
    model = in_order.transformer
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    given = {"image": picture(1), "latents": noise(), "guidance_scale": 1.0}
    draw(in_order, "ab", **given, strength=0.4)
    hook.remove()
    clean = encode_images(in_order.vae, in_order.processor.preprocess_vae_image(picture(1))[None])
    started = seen[-1]["noisy_latents"]
    torch.testing.assert_close(started, (0.6 * clean + 0.4 * noise())[0].flatten(1).T, rtol=0, atol=1e-5)
    assert seen[0].get("pixel_values") is None and len(seen) == 2  # the prompt, and one step


def test_images_are_decoded_as_usual(in_order):
    images = in_order("ab", image=picture(1), sigmas=SIGMAS, latents=noise(), output_type="pt").images
    latents = draw(in_order, "ab", image=picture(1), latents=noise())
    expected = (decode_latents(in_order.vae, latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image": "nowhere.png"}, "`image` of prompt 0 cannot be read"),
        ({"image": 3}, "`image` of prompt 0 must be a PIL image"),
        ({"image": []}, "`image` has none for prompt 0"),
        ({"prompt": ["a", "b"], "image": [picture(1)]}, "`image` must be one or one list for each of the 2 prompts"),
        ({"strength": 0.5}, "`strength` needs `image`"),
        ({"image_guidance_scale": 2.0}, "`image_guidance_scale` needs `image`"),
        ({"image": picture(1), "strength": 1.5}, "`strength` must be above 0 and at most 1"),
        ({"image": picture(1), "strength": "x"}, "`strength` must be a finite number"),
        ({"image": [picture(1)] * 2, "strength": 0.5}, "`image` must be one for each prompt with `strength`"),
        ({"image": picture(1), "strength": 0.5, "image_guidance_scale": 2.0}, "cannot be given together"),
        ({"image": picture(1), "height": 60, "width": 64}, "`height` .* multiple of 16"),
    ],
)
def test_what_does_not_fit_is_named(in_order, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(in_order, **{"prompt": "a", **arguments})


def test_latents_of_an_image_need_a_vae(in_order):
    pipe = RosettaPipeline(**{**in_order.components, "vae": None})
    with pytest.raises(ValueError, match="`image` becomes latents, for which `vae`"):
        draw(pipe, "a", image=picture(1))
