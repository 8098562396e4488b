"""Evaluation: each loss on its own, exact, with the same noise each time."""

import pytest
import torch


def _losses(metrics):
    return {name: value for name, value in metrics.items() if name.endswith("_loss")}


@pytest.mark.parametrize("batch_size", [2, 8])
def test_losses_are_means_over_all_targets(batch_size, tiny_model, records, trainer_of, collate):
    model, dataset = tiny_model(), records(8, noisy=True)
    metrics = trainer_of(model, eval_dataset=dataset, per_device_eval_batch_size=batch_size).evaluate()
    with torch.no_grad():
        outputs = model.eval()(**collate(dataset))
    assert metrics["eval_text_loss"] == pytest.approx(outputs.text_loss.item(), rel=1e-5)
    assert metrics["eval_flow_loss"] == pytest.approx(outputs.flow_loss.item(), rel=1e-5)
    assert (metrics["eval_num_samples"], metrics["eval_num_latent_images"]) == (8, 3)


def test_loss_is_the_models(tiny_model, records, trainer_of, collate):
    model, dataset = tiny_model(), records(8, noisy=True)
    metrics = trainer_of(model, eval_dataset=dataset, per_device_eval_batch_size=8).evaluate()
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(model.eval()(**collate(dataset)).loss.item(), rel=1e-5)


def test_noise_is_the_same_each_time(tiny_model, records, trainer_of):
    trainer = trainer_of(tiny_model(), eval_dataset=records(8))
    first = _losses(trainer.evaluate())
    torch.manual_seed(1)
    assert _losses(trainer.evaluate()) == first


def test_noise_follows_the_seed(tiny_model, records, trainer_of):
    first, second = (
        _losses(trainer_of(tiny_model(), eval_dataset=records(8), seed=seed).evaluate()) for seed in (0, 1)
    )
    assert first["eval_text_loss"] != second["eval_text_loss"]  # text comes after the noisy image
    assert first["eval_flow_loss"] != second["eval_flow_loss"]


def test_text_alone(tiny_model, records, trainer_of):
    dataset = [record for record in records(9) if "latents" not in record]
    metrics = trainer_of(tiny_model(), eval_dataset=dataset).evaluate()
    assert metrics["eval_text_loss"] > 0
    assert "eval_flow_loss" not in metrics


def test_images_alone(tiny_model, records, trainer_of):
    dataset = [record for record in records(9) if "latents" in record]
    for record in dataset:
        del record["labels"]
    metrics = trainer_of(tiny_model(), eval_dataset=dataset).evaluate()
    assert metrics["eval_flow_loss"] > 0
    assert "eval_text_loss" not in metrics


def test_prefix_and_predict(tiny_model, records, trainer_of):
    trainer = trainer_of(tiny_model(), eval_dataset={"held_out": records(4)})
    assert "eval_held_out_text_loss" in trainer.evaluate()
    assert "test_text_loss" in trainer.predict(records(4)).metrics


def test_evaluating_does_not_change_the_training(tiny_model, records, trainer_of):
    runs = []
    for strategy in ("no", "steps"):
        model = tiny_model()
        trainer = trainer_of(model, records(24), records(8), eval_strategy=strategy, eval_steps=1)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        runs.append(([log["text_loss"] for log in logs], model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
