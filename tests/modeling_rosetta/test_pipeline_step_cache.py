"""Step caching: off it changes nothing, on it leaves layers out and little changes."""

import pytest
import torch

from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


@pytest.fixture(scope="module", params=[True, False], ids=["timestep_token", "no_timestep_token"])
def pipe(request):
    return tiny_pipeline(latent_prefix=request.param)


@pytest.fixture
def runs(pipe):
    """How many rows each run of the layers had, the prompt's first."""
    rows = []
    hook = pipe.transformer.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    hook.remove()


def draw(pipe, **kwargs) -> torch.Tensor:
    asked = {"output_type": "latent", "num_inference_steps": 20, "guidance_scale": 2.0, "latents": noise(2)}
    return pipe(["a red stone", "x"], **{**asked, **kwargs}).images


def test_without_a_threshold_or_with_a_tiny_one_every_step_runs(pipe, runs):
    assert torch.equal(draw(pipe, step_cache_threshold=1e-9), draw(pipe))
    assert runs == [4] * 42


def test_a_threshold_leaves_out_steps_and_changes_little(pipe, runs):
    expected = draw(pipe)
    errors, numbers = [], []
    for threshold in (0.3, 0.5):
        runs.clear()
        errors.append(float((draw(pipe, step_cache_threshold=threshold) - expected).norm() / expected.norm()))
        numbers.append(len(runs) - 1)
    assert 20 > numbers[0] > numbers[1] > 1 and numbers[1] < 20 / 1.5
    assert 0 < errors[0] < errors[1] < 0.2


def test_a_step_that_is_left_out_is_at_its_own_time_and_image(pipe, runs):
    """With all steps but the first left out, it is what the blocks around the layers make of each."""
    model, hidden = pipe.transformer, []
    hook = model.latent_out.register_forward_pre_hook(lambda _, inputs: hidden.append((inputs[0], inputs[1])))
    draw(pipe, num_inference_steps=2, step_cache_threshold=1e9)
    hook.remove()
    assert len(runs) == 2 and [float(times[0]) for _, times in hidden] == [1.0, 0.5]
    assert not torch.allclose(hidden[0][0], hidden[1][0])


def test_what_was_added_with_other_prompts_is_not_taken(pipe, runs):
    """Guidance that begins needs a run of its rows, and so does a second drawing."""
    draw(pipe, guidance_interval=(0.0, 0.6), step_cache_threshold=1e9)
    assert runs == [2, 2, 2, 4]
    runs.clear()
    assert torch.equal(draw(pipe, step_cache_threshold=0.1), draw(pipe, step_cache_threshold=0.1))
