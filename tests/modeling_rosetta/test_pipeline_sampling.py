"""What the pipeline computes: flow matching with guidance, however the rows are batched and cached."""

import numpy as np
import pytest
import torch

from modeling_rosetta.prompts_rosetta import Prompts
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


@pytest.fixture(params=[True, False], ids=["timestep_token", "no_timestep_token"])
def pipe(request):
    return tiny_pipeline(latent_prefix=request.param)


def draw(pipe, prompt="a red stone", **kwargs) -> torch.Tensor:
    return pipe(prompt, output_type="latent", **{"num_inference_steps": 4, "guidance_scale": 2.0, **kwargs}).images


def euler(pipe, prompt: str, latents: torch.Tensor, steps: int, scale: float) -> torch.Tensor:
    """The method as it is written: whole sequences, one at a time, without a cache."""
    rows = pipe.processor.draw_prompt(prompt)
    sigmas = np.linspace(1, 0, steps + 1)
    for sigma, next_sigma in zip(sigmas, sigmas[1:], strict=False):
        conditional, unconditional = (
            pipe.transformer(
                **{key: value[row : row + 1] for key, value in rows.items()},
                noisy_latents=latents[0].flatten(1).T,
                timesteps=torch.tensor([sigma], dtype=torch.float32),
                use_cache=False,
            ).velocity
            for row in (0, 1)
        )
        velocity = unconditional + scale * (conditional - unconditional)
        latents = latents + (next_sigma - sigma) * velocity.T.unflatten(1, (4, 4))[None]
    return latents


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["rosetta", "moe", "mot"])
@pytest.mark.parametrize("latent_prefix", [True, False])
def test_cached_batched_guidance_equals_the_method_as_it_is_written(architecture, latent_prefix):
    pipe = tiny_pipeline(architecture, latent_prefix)
    expected = euler(pipe, "a red stone", noise(), steps=4, scale=3.0)
    torch.testing.assert_close(draw(pipe, latents=noise(), guidance_scale=3.0), expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_one_step_with_the_cache_equals_the_whole_sequence(pipe):
    """In float64, but for the routers, whose float32 depends on the number of rows."""
    pipe.transformer.double().set_experts_implementation("eager")
    rows = pipe.processor.draw_prompt(["a red stone", "x"])
    inputs = {"noisy_latents": noise(4).flatten(2).transpose(1, 2).flatten(0, 1), "timesteps": torch.full((4,), 0.7)}
    prompts = Prompts(pipe.transformer, rows, pipe.processor.vision_start_token_id)
    whole = pipe.transformer(**rows, **inputs, use_cache=False).velocity
    cached = pipe.transformer(**prompts.inputs(is_guided=True), **inputs).velocity
    torch.testing.assert_close(cached, whole, rtol=0, atol=2e-6)


def test_the_prompt_is_read_once_and_a_step_reads_only_the_image(pipe):
    lengths = []
    pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    draw(pipe)
    timestep_tokens = int(pipe.processor.latent_prefix)
    prompt_length = pipe.processor.draw_prompt("a red stone")["input_ids"].shape[1] - 16 - 2 - timestep_tokens
    assert lengths == [(2, prompt_length)] + [(2, 16 + timestep_tokens)] * 4


def test_a_batch_of_prompts_equals_single_runs(pipe):
    prompts = ["a red stone", "x", "seven white doves on a wire"]
    together = draw(pipe, prompts, latents=noise(6), num_images_per_prompt=2)
    apart = [draw(pipe, prompts[i // 2], latents=noise(6)[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=2e-5)


def test_a_negative_prompt_takes_the_place_of_the_unconditional_row(pipe):
    other = "a long description of something blue"
    conditional, unconditional = (
        draw(pipe, prompt, latents=noise(), guidance_scale=1.0, sigmas=[1.0]) for prompt in ("a red stone", other)
    )
    guided = draw(pipe, latents=noise(), negative_prompt=other, guidance_scale=2.0, sigmas=[1.0])
    torch.testing.assert_close(guided, 2 * conditional - unconditional, rtol=0, atol=2e-5)


def test_without_guidance_there_are_no_unconditional_rows(pipe):
    rows = []
    pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    draw(pipe, guidance_scale=1.0)
    assert set(rows) == {1}


def test_the_guidance_scale_is_read_at_every_step(pipe):
    after_first_step = []

    def stop_guiding(pipe, step, timestep, tensors):
        pipe._guidance_scale = 0.0
        after_first_step.append(tensors["latents"])
        return {}

    stopped = draw(pipe, latents=noise(), sigmas=[1.0, 0.5], callback_on_step_end=stop_guiding)
    unguided = draw(pipe, latents=after_first_step[0], sigmas=[0.5], guidance_scale=1.0)
    torch.testing.assert_close(stopped, unguided, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("first", "then"), [(1.0, 5.0), (5.0, 1.0), (2.0, 4.0)])
@pytest.mark.parametrize("negative_prompt", [None, "a long description of something blue"])
def test_a_callback_begins_and_ends_guidance_from_the_next_step_on(first, then, negative_prompt, pipe):
    rows, between = [], []
    pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def change(pipe, step, timestep, tensors):
        pipe._guidance_scale = then
        between.append(tensors["latents"])
        return {}

    asked = {"prompt": ["a red stone", "x"], "negative_prompt": negative_prompt}
    changed = draw(
        pipe, **asked, latents=noise(2), sigmas=[1.0, 0.5], guidance_scale=first, callback_on_step_end=change
    )
    rows_of_steps, rows[:] = rows[:], []
    start = draw(pipe, **asked, latents=noise(2), sigmas=[1.0, 0.5], guidance_scale=first, callback_on_step_end=stop)
    rest = draw(pipe, **asked, latents=between[0], sigmas=[0.5], guidance_scale=then)
    torch.testing.assert_close(between[0], start, rtol=0, atol=2e-5)
    torch.testing.assert_close(changed, rest, rtol=0, atol=2e-5)
    before, after = (2 if scale == 1 else 4 for scale in (first, then))
    others_first = [2] if before < after else []  # no row is read twice
    assert rows_of_steps == [before, before, *others_first, after]  # half the rows without guidance


def stop(pipe, step, timestep, tensors):
    pipe._interrupt = True
    return {}


def test_steps_at_the_default_times_are_steps_at_equal_distances(pipe):
    torch.testing.assert_close(
        draw(pipe, latents=noise(), num_inference_steps=4), draw(pipe, latents=noise(), sigmas=[1.0, 0.75, 0.5, 0.25])
    )
    assert not torch.allclose(draw(pipe, latents=noise()), draw(pipe, latents=noise(), sigmas=[1.0, 0.9, 0.5, 0.2]))
