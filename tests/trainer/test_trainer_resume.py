"""The same run gives the same weights, to the bit on a CPU, also when it is interrupted."""

import pytest
import torch
from tiny_training import training_logs


STEPS = 6


def _equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.fixture
def run(tiny_model, records, trainer_of):
    """Trains a new model for `STEPS` steps, of which two are shielded, on images with noise drawn on the way."""

    def train(resume_from=None, **arguments):
        model = tiny_model()
        settings = {
            "max_steps": STEPS,
            "shield_steps": 2,
            "generation_learning_rate": 2e-2,
            "lr_scheduler_type": "cosine",
            "train_sampling_strategy": "random",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        }
        trainer = trainer_of(model, records(10), **{**settings, **arguments})
        trainer.train(resume_from_checkpoint=resume_from)
        return model, trainer

    return train


def test_same_seed_same_weights(run):
    (model, _), (again, _) = run(), run()
    assert _equal(model, again)


def test_other_seed_other_weights(run):
    (model, _), (other, _) = run(), run(seed=1, data_seed=42)  # the same data, other noise
    assert not _equal(model, other)


@pytest.mark.parametrize("step", [1, 2, 4], ids=["shielding", "when shielding ends", "MAOP, second epoch"])
def test_resumed_run_is_the_uninterrupted_one(step, run, tmp_path):
    model, trainer = run(save_strategy="steps", save_steps=step)
    resumed, other = run(resume_from=str(tmp_path / f"checkpoint-{step}"), output_dir=tmp_path / "resumed")
    assert _equal(model, resumed)
    expected, actual = ([log for log in training_logs(run) if log["step"] > step] for run in (trainer, other))
    assert actual == expected


def test_a_finished_run_that_is_resumed_stays_as_it_is(run, tmp_path):
    """As after an interruption between the last checkpoint and what is saved in the end."""
    model, _ = run(max_steps=5, save_strategy="steps", save_steps=5)  # in the middle of an epoch
    resumed, trainer = run(resume_from=str(tmp_path / "checkpoint-5"), max_steps=5, output_dir=tmp_path / "resumed")
    assert trainer.state.global_step == 5
    assert _equal(model, resumed)


def test_nothing_of_the_run_is_kept_in_the_model(run, tiny_model):
    model, _ = run()
    fresh = tiny_model()
    assert model.config.to_dict() == fresh.config.to_dict()
    assert model.state_dict().keys() == fresh.state_dict().keys()
