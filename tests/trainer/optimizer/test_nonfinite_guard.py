"""Steps that are not finite leave no trace but their count, and too many of them stop the run."""

import math

import pytest
import torch
from tiny_training import training_logs
from transformers import TrainerCallback


STEPS = 6


class Snapshots(TrainerCallback):
    """Weights and optimizer state after each step."""

    def __init__(self):
        self.taken = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        weights = {name: param.detach().clone() for name, param in model.named_parameters()}
        moments = [
            {key: value.clone() for key, value in optimizer.state[param].items()}
            for group in optimizer.param_groups
            for param in group["params"]
        ]
        self.taken.append((weights, moments))


@pytest.fixture
def run(tiny_model, records, trainer_of):
    """Trains with velocities that are not finite in some steps."""

    def train(broken_steps=(), value=math.nan, micro_batches=1, resume_from=None, model=None, **arguments):
        dataset, rows = records(4 * STEPS, noisy=True), 4 // micro_batches
        for step in broken_steps:
            record = next(record for record in dataset[4 * step : 4 * step + 4] if "velocity_labels" in record)
            record["velocity_labels"] = torch.full_like(record["velocity_labels"], value)
        snapshots = Snapshots()
        settings = {
            "max_steps": STEPS,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": micro_batches,
            "shield_steps": 1,
            "lr_scheduler_type": "cosine",
            "use_cpu": True,
        }
        trainer = trainer_of(model or tiny_model(), dataset, callbacks=[snapshots], **{**settings, **arguments})
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer, snapshots.taken

    return train


def _equal(one, other) -> bool:
    weights, moments = (
        all(torch.equal(a, b) for a, b in zip(_tensors(x), _tensors(y), strict=True))
        for x, y in zip(one, other, strict=True)
    )
    return weights and moments


def _tensors(part) -> list:
    states = [part] if isinstance(part, dict) else part
    return [tensor for state in states for tensor in state.values()]


@pytest.mark.parametrize(
    ("optim", "value", "micro_batches"),
    [("adamw_torch_fused", math.nan, 1), ("adamw_torch_fused", math.inf, 2), ("adamw_torch", math.nan, 1)],
)
def test_a_step_is_skipped(optim, value, micro_batches, run):
    trainer, taken = run([3], value, micro_batches, optim=optim)
    assert _equal(taken[2], taken[3])
    assert not any(_equal(taken[step], taken[step + 1]) for step in (0, 1, 3, 4))
    assert all(tensor.isfinite().all() for part in taken[-1] for tensor in _tensors(part))
    logs = training_logs(trainer)
    assert [log["nonfinite_steps"] for log in logs] == [0, 0, 0, 1, 1, 1]
    # The schedule moves on.
    rates = [log["learning_rate_base"] for log in logs]
    assert len(set(rates)) == STEPS
    # The other micro-batch draws an image, too.
    assert math.isnan(logs[3]["loss"]) == ("flow_loss" not in logs[3]) == (micro_batches == 1)
    assert all(math.isfinite(log["loss"]) for log in logs[4:])
    assert "maop_fired_share" not in logs[3] or optim == "adamw_torch"
    assert all(math.isfinite(log["maop_cosine"]) for log in logs[4:])
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_what_follows_is_as_if_the_step_had_no_gradient(run):
    """The next step's moments are those after two good steps and a bad one between them, MAOP's anchor among them."""
    _, taken = run([0])
    for state in taken[0][1]:
        assert state["step"] == 0 and not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    assert all(state["step"] == 1 for state in taken[1][1])


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too(run, tiny_model, monkeypatch):
    model = tiny_model()
    forward = model.forward

    def overflowing(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.loss = outputs.loss + math.inf
        return outputs

    monkeypatch.setattr(model, "forward", overflowing)
    trainer, taken = run(model=model, max_steps=2)
    assert _equal(taken[0], taken[1]) and training_logs(trainer)[-1]["nonfinite_steps"] == 2


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_too_many_in_a_row_stop_the_run(logging_steps, run, tmp_path):
    arguments = {"logging_steps": logging_steps, "save_strategy": "steps", "save_steps": 5}
    trainer, _ = run([0, 1, 3, 4], max_nonfinite_steps=3, **arguments)
    assert trainer.state.global_step == STEPS
    with pytest.raises(FloatingPointError, match=r"3 steps in a row \(`max_nonfinite_steps` is 3\), 4 in all"):
        run([0, 2, 3, 4], max_nonfinite_steps=3, output_dir=tmp_path / "stopped", **arguments)
    assert not (tmp_path / "stopped" / "checkpoint-5").exists()


def test_a_resumed_run_goes_on_counting(run, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_nonfinite_steps": 3}
    whole, _ = run([0, 3], **arguments)
    resumed, _ = run([0, 3], **arguments, resume_from=str(tmp_path / "checkpoint-4"), output_dir=tmp_path / "again")
    for trainer in (whole, resumed):
        assert [log["nonfinite_steps"] for log in training_logs(trainer)] == [1, 1, 1, 2, 2, 2]
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        run([2, 3, 4], **{**arguments, "save_steps": 4}, output_dir=tmp_path / "stopped")
    with pytest.raises(FloatingPointError, match="3 steps in a row"):  # two before the checkpoint, one after it
        run([2, 3, 4], **arguments, resume_from=str(tmp_path / "stopped" / "checkpoint-4"))


def test_bad_arguments(trainer_of, tiny_model):
    with pytest.raises(ValueError, match="`max_nonfinite_steps` must be at least 1, got 0"):
        trainer_of(tiny_model(), max_nonfinite_steps=0)
