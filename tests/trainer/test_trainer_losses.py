"""Each loss is a mean over its own targets in the global batch, however the batch is accumulated."""

import pytest
from transformers import TrainerCallback


RECORDS = 8


class _Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def _one_step(trainer_of, model, dataset, accumulation):
    gradients = _Gradients()
    trainer = trainer_of(
        model,
        dataset,
        callbacks=[gradients],
        max_steps=1,
        per_device_train_batch_size=RECORDS // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
    )
    trainer.train()
    return gradients.of, trainer.state.log_history[0]


def _assert_close(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name in expected:
        assert (gradients[name] - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_accumulation_is_the_large_batch(accumulation, tiny_model, records, trainer_of, collate):
    dataset = records(RECORDS, noisy=True)
    model = tiny_model(router_aux_loss_coef=0.0)
    gradients, logs = _one_step(trainer_of, model, dataset, accumulation)

    reference = tiny_model(router_aux_loss_coef=0.0).train()
    outputs = reference(**collate(dataset))
    outputs.loss.backward()
    _assert_close(gradients, {name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    expected = {name: outputs[name].item() for name in ("loss", "text_loss", "flow_loss")}
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert (logs["num_samples"], logs["num_latent_images"]) == (RECORDS, 3)
    assert logs["num_text_targets"] == sum(3 + index % 5 for index in range(RECORDS))


@pytest.mark.parametrize("accumulation", [2, 8])
def test_balance_loss_is_the_mean_over_micro_batches(accumulation, tiny_model, records, trainer_of, collate):
    dataset = records(RECORDS, noisy=True)
    settings = {"router_aux_loss_coef": 0.5, "flow_loss_coef": 2.0}
    gradients, logs = _one_step(trainer_of, tiny_model(**settings), dataset, accumulation)

    reference = tiny_model(**settings).train()
    whole = reference(**collate(dataset))
    balances = [
        reference(**collate(dataset[start : start + RECORDS // accumulation])).aux_loss
        for start in range(0, RECORDS, RECORDS // accumulation)
    ]
    balance = sum(balances) / accumulation
    loss = whole.text_loss + 2.0 * whole.flow_loss + 0.5 * balance
    loss.backward()
    _assert_close(gradients, {name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logs["aux_loss"] == pytest.approx(balance.item(), rel=1e-5)


def test_global_batch_without_an_image_trains(tiny_model, records, trainer_of):
    dataset = [record for record in records(12) if "latents" not in record]
    gradients, logs = _one_step(trainer_of, tiny_model(), dataset, 2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert "flow_loss" not in logs and logs["num_latent_images"] == 0
