"""The noise of flow matching: new at each step and on each rank, as the arguments say, and drawn only if needed."""

import pytest
import torch

from trainer import RosettaTrainingArguments


@pytest.fixture
def forwards_of(tiny_model, trainer_of):
    """What the model gets in each forward pass of a training on one batch, over and over."""

    def train(dataset, **arguments):
        model, forwards = tiny_model(), []
        model.register_forward_pre_hook(lambda module, args, kwargs: forwards.append(kwargs), with_kwargs=True)
        trainer_of(model, dataset, **{"per_device_train_batch_size": len(dataset), **arguments}).train()
        return forwards

    return train


def test_each_step_has_noise_of_its_own(forwards_of, records):
    first, second = forwards_of(records(4), max_steps=2)
    assert torch.equal(first["input_ids"], second["input_ids"])
    for key in ("noisy_latents", "timesteps", "velocity_labels"):
        assert not torch.equal(first[key], second[key])


def test_each_micro_batch_has_noise_of_its_own(forwards_of, records):
    image = records(1)
    first, second = forwards_of(image * 2, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert not torch.equal(first["timesteps"], second["timesteps"])


def test_each_rank_has_noise_of_its_own(forwards_of, records, monkeypatch):
    (first,) = forwards_of(records(4), max_steps=1)
    monkeypatch.setattr(RosettaTrainingArguments, "process_index", 1)
    (second,) = forwards_of(records(4), max_steps=1)
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["timesteps"], second["timesteps"])


def test_timesteps_follow_the_arguments(forwards_of, records):
    (forward,) = forwards_of(records(4), max_steps=1, logit_mean=3.0, logit_std=1e-6)
    torch.testing.assert_close(forward["timesteps"], torch.full((2,), 3.0).sigmoid())


def test_noisy_latents_are_left_alone(forwards_of, records):
    dataset = records(1, noisy=True)
    (forward,) = forwards_of(dataset, max_steps=1)
    for key in ("noisy_latents", "timesteps", "velocity_labels"):
        assert torch.equal(forward[key], dataset[0][key])


def test_clean_latents_do_not_reach_the_model(forwards_of, records):
    (forward,) = forwards_of(records(4), max_steps=1)
    assert "latents" not in forward
    torch.testing.assert_close(
        forward["noisy_latents"] - forward["timesteps"].repeat_interleave(4)[:, None] * forward["velocity_labels"],
        torch.cat([record["latents"] for record in records(4) if "latents" in record]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_batch_is_left_as_it_was(tiny_model, records, trainer_of, collate):
    model, batch = tiny_model(), collate(records(4))
    before = dict(batch)
    trainer_of(model).compute_loss(model, batch)
    assert batch == before
