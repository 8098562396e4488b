"""What a log entry holds: figures of its interval, and of nothing else."""

import pytest
import torch


@pytest.fixture
def logs_of(tiny_model, records, trainer_of):
    def train(dataset=None, **arguments):
        trainer = trainer_of(tiny_model(), dataset or records(24), **arguments)
        trainer.train()
        return [log for log in trainer.state.log_history if "loss" in log]

    return train


def test_every_figure_is_there(logs_of):
    logs = logs_of(generation_learning_rate=2e-2)
    assert logs[-1].keys() >= {
        "text_loss",
        "flow_loss",
        "aux_loss",
        "capacity_rate_text",
        "capacity_rate_vae",
        "learning_rate_base",
        "learning_rate_base_no_decay",
        "learning_rate_shared_expert",
        "learning_rate_generation",
        "maop_fired_share",
        "maop_cosine",
        "maop_removed_share",
        "num_samples",
        "num_text_targets",
        "num_latent_images",
    }
    assert "capacity_rate_vit" not in logs[-1]  # no such token in the data


def test_means_are_over_the_targets_of_the_interval(logs_of):
    each, (together,) = logs_of(logging_steps=1), logs_of(logging_steps=4)
    for loss, count in (("text_loss", "num_text_targets"), ("flow_loss", "num_latent_images")):
        assert together[count] == sum(log[count] for log in each)
        mean = sum(log[loss] * log[count] for log in each) / together[count]
        assert together[loss] == pytest.approx(mean, rel=1e-5)
    for figure in ("aux_loss", "capacity_rate_text"):
        assert together[figure] == pytest.approx(sum(log[figure] for log in each) / 4, rel=1e-5)


def test_loss_is_the_sum_of_its_terms(logs_of):
    for log in logs_of():
        expected = log["text_loss"] + log["flow_loss"] + 0.01 * log["aux_loss"]
        assert log["loss"] == pytest.approx(expected, rel=1e-5)


def test_learning_rates_are_those_of_the_step(logs_of):
    logs = logs_of(
        learning_rate=1e-2,
        generation_learning_rate=1e-1,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
    )
    assert [log["learning_rate_base"] for log in logs] == pytest.approx([0.0, 5e-3, 1e-2, 1e-2])
    assert [log["learning_rate_generation"] for log in logs] == pytest.approx([0.0, 5e-2, 1e-1, 1e-1])
    assert all(log["learning_rate"] == log["learning_rate_base"] for log in logs)


def test_packed_samples_are_counted(logs_of, records):
    dataset = [record for record in records(24) if "latents" not in record][:4]
    packed = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -1, -1])
    for record in dataset:
        record["sequence_ids"] = packed
        record["labels"][10:] = -100
    (log,) = logs_of([{**record, "sequence_ids": packed} for record in dataset], max_steps=1)
    assert log["num_samples"] == 4 * 3
