"""Evaluation: each loss on its own, exact, with the same noise each time."""

import math

import pytest
import torch

from modeling_rosetta import RosettaConfig


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


@pytest.mark.parametrize("noisy", [True, False], ids=["noise in the data", "noise drawn"])
def test_losses_do_not_depend_on_the_batch_size(noisy, tiny_model, records, trainer_of):
    model, dataset = tiny_model(flow_loss_coef=10.0, router_aux_loss_coef=0.5), records(10, noisy=noisy)
    dataset[9]["labels"][:] = -100  # an image alone
    each = [
        _losses(trainer_of(model, eval_dataset=dataset, per_device_eval_batch_size=size).evaluate())
        for size in (1, 3, 4, 10)
    ]
    assert each[:3] == [pytest.approx(each[3], rel=1e-5)] * 3
    total = each[3]["eval_text_loss"] + 10 * each[3]["eval_flow_loss"] + 0.5 * each[3]["eval_aux_loss"]
    assert each[3]["eval_loss"] == pytest.approx(total)


@pytest.mark.parametrize("variant", [RosettaConfig, RosettaConfig.moe, RosettaConfig.mot])
def test_balance_loss_is_that_of_all_tokens_but_padding(variant, tiny_model, records, trainer_of, collate):
    model, dataset = tiny_model(variant), records(8, noisy=True)
    batch = collate(dataset)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1::3, -4:] = 0
    batch["labels"][1::3, -4:] = -100
    with torch.no_grad():
        outputs = model.eval()(**batch)
    rows = [{"row": row} for row in range(8)]

    def collated(samples):
        chosen = [sample["row"] for sample in samples]
        images = [row // 3 for row in chosen if row % 3 == 0]
        picked = {key: batch[key][chosen] for key in ("input_ids", "token_type_ids", "labels", "attention_mask")}
        if images:
            tokens = [4 * image + token for image in images for token in range(4)]
            picked |= {key: batch[key][tokens] for key in ("noisy_latents", "velocity_labels")}
            picked |= {key: batch[key][images] for key in ("timesteps", "latent_grid_hw")}
        return picked

    for size in (1, 3, 8):
        trainer = trainer_of(model, eval_dataset=rows, data_collator=collated, per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        assert metrics["eval_aux_loss"] == pytest.approx(outputs.aux_loss.item(), rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
        assert trainer.evaluate()["eval_aux_loss"] == metrics["eval_aux_loss"]


def test_a_loss_that_is_not_finite_is_seen(tiny_model, records, trainer_of):
    dataset = records(8, noisy=True)
    dataset[3]["velocity_labels"][0, 0] = math.inf
    metrics = trainer_of(tiny_model(), eval_dataset=dataset, per_device_eval_batch_size=2).evaluate()
    assert not math.isfinite(metrics["eval_loss"])


def test_an_evaluation_that_failed_leaves_nothing_behind(tiny_model, records, trainer_of):
    dataset = records(8, noisy=True)
    trainer = trainer_of(tiny_model(), eval_dataset=dataset, per_device_eval_batch_size=4)
    expected = _losses(trainer.evaluate())
    with pytest.raises(ValueError, match="input_ids"):
        trainer.evaluate([*dataset[4:], {"labels": dataset[0]["labels"]}])
    assert _losses(trainer.evaluate()) == expected


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
