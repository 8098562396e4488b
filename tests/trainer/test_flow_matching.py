"""Timesteps, noisy latents and velocities."""

import pytest
import torch

from trainer import flow_matching_targets, sample_timesteps
from trainer.flow_matching import feature_flow_targets


GRIDS = torch.tensor([[2, 3], [1, 1], [4, 2]])
TOKENS = [6, 1, 8]
LATENTS = torch.arange(15 * 4, dtype=torch.float32).reshape(15, 4)


def _generator():
    return torch.Generator().manual_seed(0)


def test_the_path_is_straight_from_data_to_noise():
    noisy, timesteps, velocity = flow_matching_targets(LATENTS, GRIDS, generator=_generator())
    t = torch.cat([timestep.repeat(tokens) for timestep, tokens in zip(timesteps, TOKENS, strict=True)])[:, None]
    torch.testing.assert_close(noisy - t * velocity, LATENTS, rtol=1e-5, atol=1e-5)
    noise = velocity + LATENTS
    torch.testing.assert_close(noisy, (1 - t) * LATENTS + t * noise, rtol=1e-5, atol=1e-5)


def test_noise_is_standard_normal():
    grids = torch.tensor([[64, 64]])
    _, _, velocity = flow_matching_targets(torch.zeros(4096, 16), grids, generator=_generator())
    assert abs(velocity.mean()) < 0.02 and abs(velocity.std() - 1) < 0.02


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.0, 0.5), (2.0, 0.1)])
def test_timesteps_are_logit_normal(mean, std):
    logits = sample_timesteps(20000, mean, std, _generator()).double().logit()
    assert abs(logits.mean() - mean) < 0.03 and abs(logits.std() - std) < 0.03


def test_targets_use_mean_and_std():
    _, timesteps, _ = flow_matching_targets(LATENTS, GRIDS, 3.0, 1e-6, _generator())
    torch.testing.assert_close(timesteps, torch.full((3,), 3.0).sigmoid())


def test_same_generator_same_draw():
    first, second = (flow_matching_targets(LATENTS, GRIDS, generator=_generator()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = flow_matching_targets(LATENTS, GRIDS, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first[0], other[0])


def test_one_by_one_each_gets_the_same_in_any_company():
    settings = {"logit_mean": 0.5, "logit_std": 2.0, "one_by_one": True}
    together = flow_matching_targets(LATENTS, GRIDS, generator=_generator(), **settings)
    generator = _generator()
    apart = [
        flow_matching_targets(latents, grid[None], generator=generator, **settings)
        for latents, grid in zip(LATENTS.split(TOKENS), GRIDS, strict=True)
    ]
    assert all(torch.equal(whole, torch.cat(parts)) for whole, *parts in zip(together, *apart, strict=True))
    assert together[1].unique().numel() == 3
    clips = torch.tensor([0] * 6 + [1] + [2] * 8)
    noisy, timesteps, velocity = feature_flow_targets(LATENTS, clips, generator=_generator(), **settings)
    assert torch.equal(noisy, together[0]) and torch.equal(velocity, together[2])
    assert torch.equal(timesteps, together[1][clips])
    none = flow_matching_targets(LATENTS[:0], GRIDS[:0], **settings)
    assert [tuple(part.shape) for part in none] == [(0, 4), (0,), (0, 4)]


def test_low_precision_latents_give_fp32():
    outputs = flow_matching_targets(LATENTS.bfloat16(), GRIDS, generator=_generator())
    assert {output.dtype for output in outputs} == {torch.float32}


def test_no_image():
    noisy, timesteps, velocity = flow_matching_targets(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.long))
    assert noisy.shape == velocity.shape == (0, 4) and timesteps.shape == (0,)


@pytest.mark.parametrize(
    ("latents", "grids", "message"),
    [
        (torch.zeros(1, 15, 4), GRIDS, r"`latents` must have shape \(L, C\), got \(1, 15, 4\)"),
        (LATENTS, torch.tensor([[1, 2, 3]]), r"`latent_grid_hw` must have shape \(I, 2\), got \(1, 3\)"),
        (LATENTS[1:], GRIDS, "`latent_grid_hw` makes 15 tokens, but `latents` has 14"),
    ],
)
def test_shapes_that_do_not_fit(latents, grids, message):
    with pytest.raises(ValueError, match=message):
        flow_matching_targets(latents, grids)
