"""Every scheduler of diffusers for flow matching draws; others are refused by name."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from modeling_rosetta.prompts_rosetta import Prompts
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
    "Euler, shifted": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Euler, shifted by size": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "Euler, stochastic": diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
    "LCM": diffusers.FlowMatchLCMScheduler(),
    "UniPC": diffusers.UniPCMultistepScheduler(**FLOW),
    "UniPC, shifted by size": diffusers.UniPCMultistepScheduler(**FLOW, use_dynamic_shifting=True),
    "DPM++": diffusers.DPMSolverMultistepScheduler(**FLOW),
    "DPM++, stochastic": diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
    "DPM++, single steps": diffusers.DPMSolverSinglestepScheduler(**FLOW),
    "DEIS": diffusers.DEISMultistepScheduler(**FLOW),
    "SA-Solver": diffusers.SASolverScheduler(**FLOW),
}
DATA = noise(1, seed=1)
STOCHASTIC = ["Euler, stochastic", "LCM", "DPM++, stochastic", "SA-Solver"]


@pytest.fixture(scope="module")
def shared():
    return tiny_pipeline()


@pytest.fixture
def pipe(shared, monkeypatch):
    monkeypatch.setattr(shared, "scheduler", shared.scheduler)
    return shared


@pytest.fixture
def steps(pipe, monkeypatch) -> list:
    """Stands in for the model: leads to `DATA` on a straight line; the latents and times that it was asked about."""
    seen = []

    def velocity(latents, sigma, prompt_inputs):
        seen.append((latents, sigma))
        return (latents - DATA) / sigma

    monkeypatch.setattr(Prompts, "inputs", lambda prompts, is_guided: {})
    monkeypatch.setattr(pipe, "predict_velocity", velocity)
    return seen


def draw(pipe, prompt="a red stone", **kwargs) -> torch.Tensor:
    return pipe(prompt, output_type="latent", **{"num_inference_steps": 3, "guidance_scale": 1.0, **kwargs}).images


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_path_to_known_data_is_followed(name, pipe, steps):
    pipe.scheduler = SCHEDULERS[name]
    start = noise()
    drawn = draw(pipe, latents=start, num_inference_steps=8)
    left = float(pipe.scheduler.sigmas[-1])  # DEIS and SA-Solver stop before 0
    torch.testing.assert_close(drawn, DATA, rtol=0, atol=0.01 + 6 * left)
    assert steps[0][1] > 0.998 and all(0 < float(sigma) <= 1 for _, sigma in steps)
    if name not in STOCHASTIC:  # the model is told the time that its latents are at
        for latents, sigma in steps:
            torch.testing.assert_close(latents, sigma * start + (1 - sigma) * DATA, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_decides_the_image(name, pipe, steps):
    pipe.scheduler = SCHEDULERS[name]
    for seed in (0, 0, 1):
        draw(pipe, latents=noise(), generator=torch.Generator().manual_seed(seed))
    first, again, other = (latents for latents, _ in steps[len(steps) // 3 - 1 :: len(steps) // 3])
    assert torch.equal(first, again)
    assert torch.equal(first, other) != (name in STOCHASTIC)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_generator_for_each_image_serves_its_steps_too(name, pipe, steps):
    pipe.scheduler = SCHEDULERS[name]
    draw(pipe, ["x", "x"], generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for seed in (1, 2):
        draw(pipe, "x", generator=torch.Generator().manual_seed(seed))
    together, first, second = (latents for latents, _ in steps[len(steps) // 3 - 1 :: len(steps) // 3])
    torch.testing.assert_close(together, torch.cat([first, second]))


def test_the_model_draws_with_others_than_the_default(pipe):
    """One that asks the model twice a step, and one that adds noise."""
    for name in ("Heun", "Euler, stochastic"):
        pipe.scheduler = SCHEDULERS[name]
        first, again = (draw(pipe, generator=torch.Generator().manual_seed(0), guidance_scale=2.0) for _ in range(2))
        assert torch.equal(first, again) and first.isfinite().all()
    assert pipe.num_timesteps == 3


@pytest.mark.parametrize("name", ["Heun", "DPM++", "DEIS"])
def test_sigmas_are_refused_by_diffusers_where_it_takes_none(name, pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    pipe.scheduler = SCHEDULERS[name]
    with pytest.raises(ValueError, match="does not support custom sigmas"):
        draw(pipe, sigmas=[1.0, 0.5])


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.tensor])
def test_sigmas_may_be_of_any_kind(kind, pipe, steps):
    for name in ("Euler", "UniPC"):
        pipe.scheduler = SCHEDULERS[name]
        draw(pipe, latents=noise(), sigmas=kind([1.0, 0.75, 0.5, 0.25]))
        draw(pipe, latents=noise(), num_inference_steps=4)
        assert torch.equal(steps[-5][0], steps[-1][0])


def test_the_scheduler_may_keep_its_sigmas_elsewhere(pipe, monkeypatch):
    """UniPC and others keep them on the CPU: the model gets its time on the device that it runs on."""
    seen = []
    pipe.scheduler = SCHEDULERS["UniPC"]
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("meta"))
    laid_out = SimpleNamespace(grid_hw=[4, 4], num_prompts=1, inputs=lambda is_guided: {})
    monkeypatch.setattr("modeling_rosetta.drawing_steps_rosetta.lay_out", lambda *args: laid_out)

    def velocity(latents, sigma, prompt_inputs):
        seen.append((latents.device.type, sigma.device.type))
        return latents

    monkeypatch.setattr(pipe, "predict_velocity", velocity)
    monkeypatch.setattr(pipe.scheduler, "step", lambda velocity, timestep, latents, return_dict: (latents,))
    draw(pipe, num_inference_steps=1)
    assert seen == [("meta", "meta")]


def test_the_shift_by_size_is_that_of_flux(pipe, steps):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=1, max_shift=2)
    draw(pipe, num_inference_steps=2)
    mu = 1 + (16 - 256) / (4096 - 256)
    expected = np.exp(mu) / (np.exp(mu) + (1 / np.array([1.0, 0.5]) - 1))
    np.testing.assert_allclose(pipe.scheduler.sigmas.numpy(), [*expected, 0.0], rtol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.EulerDiscreteScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        diffusers.IPNDMScheduler(),
        diffusers.CMStochasticIterativeScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_scheduler_that_is_not_for_flow_matching_is_refused(scheduler, pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=f"`scheduler` must be one for flow matching.*{type(scheduler).__name__}"):
        draw(pipe)
