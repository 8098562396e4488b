"""A stage that starts with the optimizer state of the one before, for the parameters that live on."""

import pytest
import torch
from transformers import TrainerCallback

from modeling_rosetta import mount
from tests.modeling_rosetta.test_mounting import SPEECH
from trainer import MAOPAdamW, carry_over_optimizer_state, train_projectors, train_token_types


class StateAtTheStart(TrainerCallback):
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        names = {
            param: name
            for group in optimizer.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
        }
        self.states = {
            names[param]: {key: value.clone() for key, value in state.items()}
            for param, state in optimizer.state.items()
        }


@pytest.fixture
def stage(tiny_model, records, trainer_of, tmp_path):
    def train(model, dataset=None, collator=None, resume_from=None, **arguments):
        start = StateAtTheStart()
        settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
        trainer = trainer_of(model, dataset or records(24), callbacks=[start], **{**settings, **arguments})
        trainer.data_collator = collator or trainer.data_collator
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer, start.states

    return train


def _states(trainer) -> dict[str, dict]:
    optimizer = trainer.optimizer.optimizer
    return {
        name: {key: value.clone() for key, value in optimizer.state[param].items()}
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
    }


def _assert_equal(states, others):
    assert states.keys() == others.keys()
    for name, state in states.items():
        assert all(torch.equal(state[key], others[name][key]) for key in ("step", "exp_avg", "exp_avg_sq")), name


def test_state_starts_fresh_by_default(stage, tiny_model):
    model = tiny_model()
    stage(model)
    _, states = stage(model)
    assert states == {}


@pytest.mark.parametrize(
    ("optimizer_class", "kwargs", "message"),
    [
        (torch.optim.SGD, {"lr": 0.1}, "must be None with SGD: only the moments of Adam and AdamW"),
        (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}, "must be None with `amsgrad`"),
    ],
)
def test_an_optimizer_without_these_moments_is_refused_at_once(
    optimizer_class, kwargs, message, stage, tiny_model, tmp_path, trainer_of, records
):
    stage(tiny_model())
    with pytest.raises(ValueError, match=f"`optimizer_state_from` {message}"):
        trainer_of(
            tiny_model(),
            records(8),
            optimizer_state_from=str(tmp_path / "checkpoint-3"),
            optimizer_cls_and_kwargs=(optimizer_class, kwargs),
        )


def test_state_is_carried_over_by_name(stage, tiny_model, tmp_path, caplog):
    """The second stage mounts a type, freezes a layer, and splits its groups in another way."""
    model = tiny_model()
    before = _states(stage(model)[0])
    mount(model, SPEECH, 4)
    model.model.layers[0].requires_grad_(False)
    trainer, states = stage(
        model,
        optimizer_state_from=str(tmp_path / "checkpoint-3"),
        decay_all_parameters=True,
        learning_rate=1e-4,
        generation_learning_rate=1e-3,
        maop=False,
        output_dir=tmp_path / "second",
    )
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    _assert_equal(states, {name: before[name] for name in trained if name in before})
    assert any("audio" in name for name in trained - states.keys())
    assert len(states) > 20 and all(state["step"] == 3 for state in states.values())
    assert f"for {len(states)} parameters" in caplog.text and "audio" in caplog.text
    for group in trainer.optimizer.param_groups:  # its own, not those of the first stage
        assert group["weight_decay"] == 0.1 and not group["maop"]
        assert group["lr"] == (1e-3 if "generation" in group["name"] else 1e-4)
    assert all(state["step"] == 6 for name, state in _states(trainer).items() if name in states)


def test_carried_moments_are_the_anchor_of_the_first_step(stage, tiny_model, tmp_path):
    model = tiny_model()
    stage(model)
    logs = {}
    for source in (None, str(tmp_path / "checkpoint-3")):
        trainer, _ = stage(tiny_model(), optimizer_state_from=source, output_dir=tmp_path / "second")
        logs[source] = trainer.state.log_history[0]
    fresh, carried = logs.values()
    assert "maop_fired_share" not in fresh and "maop_fired_share" in carried


def test_of_another_shape_it_starts_fresh(stage, tiny_model, tmp_path, caplog):
    stage(tiny_model())
    _, states = stage(
        tiny_model(vocab_size=80),
        optimizer_state_from=str(tmp_path / "checkpoint-3"),
        output_dir=tmp_path / "second",
    )
    assert "model.embed_tokens.weight" not in states and len(states) > 20
    assert "Of another shape there, with a fresh state: ['model.embed_tokens.weight']" in caplog.text


def test_a_resumed_run_goes_on_with_its_own(stage, tiny_model, tmp_path):
    stage(tiny_model())
    second = {"optimizer_state_from": str(tmp_path / "checkpoint-3"), "output_dir": tmp_path / "second"}
    trainer, _ = stage(tiny_model(seed=1), **second, max_steps=4, save_steps=2)
    resumed, states = stage(
        tiny_model(seed=1), **second, max_steps=4, resume_from=str(tmp_path / "second/checkpoint-2")
    )
    assert all(state["step"] == 5 for state in states.values())
    _assert_equal(_states(resumed), _states(trainer))


def test_without_what_it_needs(stage, tiny_model, trainer_of, tmp_path):
    with pytest.raises(ValueError, match="`optimizer_state_from` must be a checkpoint with one of 'optimizer.pt'"):
        trainer_of(tiny_model(), optimizer_state_from=str(tmp_path))
    model = tiny_model()
    train_projectors(model)
    model.model.visual.requires_grad_(False)
    model.model.norm.requires_grad_(True)
    stage(model)
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match="none of the trained parameters"):
        stage(train_token_types(tiny_model(), "vae"), optimizer_state_from=checkpoint)
    with pytest.raises(ValueError, match="must have named parameters"):
        carry_over_optimizer_state(MAOPAdamW(model.parameters(), maop=False), checkpoint)
