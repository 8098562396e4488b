"""Guidance: where it is computed, and how."""

import pytest
import torch

from modeling_rosetta.guidance_rosetta import guided
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


CONDITIONAL, UNCONDITIONAL = noise(2, seed=1), noise(2, seed=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def draw(pipe, prompt="a red stone", **kwargs) -> torch.Tensor:
    asked = {"output_type": "latent", "num_inference_steps": 4, "guidance_scale": 3.0, "latents": noise()}
    return pipe(prompt, **{**asked, **kwargs}).images


def test_rescaled_velocities_have_the_deviation_of_the_conditional_ones():
    plain = guided(CONDITIONAL, UNCONDITIONAL, 5.0)
    torch.testing.assert_close(plain, UNCONDITIONAL + 5 * (CONDITIONAL - UNCONDITIONAL))
    rescaled = guided(CONDITIONAL, UNCONDITIONAL, 5.0, rescale=1.0)
    torch.testing.assert_close(rescaled.flatten(1).std(1), CONDITIONAL.flatten(1).std(1))
    torch.testing.assert_close(guided(CONDITIONAL, UNCONDITIONAL, 5.0, rescale=0.3), 0.3 * rescaled + 0.7 * plain)


def test_zero_star_adds_only_what_is_not_in_line_with_the_unconditional_velocity():
    for scale in (1.0, 5.0):  # guidance between velocities in line changes nothing
        torch.testing.assert_close(guided(CONDITIONAL, 0.3 * CONDITIONAL, scale, use_zero_star=True), CONDITIONAL)
    added = guided(CONDITIONAL, UNCONDITIONAL, 5.0, use_zero_star=True) - CONDITIONAL
    torch.testing.assert_close((added * UNCONDITIONAL).flatten(1).sum(1), torch.zeros(2), rtol=0, atol=1e-3)


def test_guidance_is_computed_in_its_interval_only(pipe):
    rows, between = [], []

    def keep(pipe, step, timestep, tensors):
        between.append(tensors["latents"])
        return {}

    hook = pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    drawn = draw(pipe, guidance_interval=(0.4, 0.8), callback_on_step_end=keep)  # of 1, 0.75, 0.5, 0.25
    hook.remove()
    assert rows == [1, 1, 1, 2, 2, 1]  # the prompt and a step, the other prompt and two steps, a step
    torch.testing.assert_close(
        between[2], draw(pipe, latents=between[0], sigmas=[0.75, 0.5, 0.25], callback_on_step_end=until(0.25))
    )
    torch.testing.assert_close(drawn, draw(pipe, latents=between[2], sigmas=[0.25], guidance_scale=1.0))
    assert torch.equal(draw(pipe, guidance_interval=(0.0, 1.0)), draw(pipe))


def until(sigma: float):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = pipe.scheduler.sigmas[step + 1] == sigma
        return {}

    return stop


@pytest.mark.parametrize("how", [{"guidance_rescale": 0.7}, {"use_zero_star": True}])
def test_each_way_of_guidance_reaches_the_image(how, pipe):
    assert not torch.allclose(draw(pipe, **how), draw(pipe), atol=1e-4)
    assert torch.equal(draw(pipe, **how, guidance_scale=1.0), draw(pipe, guidance_scale=1.0))


@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [0.9, 0.6, 0.1]])
def test_timesteps_are_sigmas_in_the_units_of_the_scheduler(sigmas, pipe):
    assert torch.equal(draw(pipe, timesteps=[1000 * sigma for sigma in sigmas]), draw(pipe, sigmas=sigmas))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("guidance_rescale", -0.1),
        ("guidance_rescale", "much"),
        ("guidance_interval", 0.5),
        ("guidance_interval", (0.8, 0.4)),
        ("guidance_interval", (0.0, 2.0)),
        ("use_zero_star", 1),
        ("timesteps", [1.0, 0.5, 0.7]),
        ("timesteps", [2000.0]),
        ("timesteps", [float("nan")]),
        ("step_cache_threshold", -1),
        ("step_cache_threshold", None),
        ("system_prompt", 3),
        ("attention_kwargs", {"mask": None}),
        ("attention_kwargs", "scale"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(argument, value, pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"`{argument}`"):
        draw(pipe, **{argument: value})
    with pytest.raises(ValueError, match="`sigmas` and `timesteps`"):
        draw(pipe, sigmas=[1.0], timesteps=[1000.0])
