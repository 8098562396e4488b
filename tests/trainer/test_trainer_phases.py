"""The two phases of protecting the shared expert: shielding, then MAOP."""

import pytest


@pytest.fixture
def phases_of(tiny_model, records, trainer_of):
    """Trains and gives the phase of each forward pass (shielding or not), that of each optimizer step (MAOP enabled
    or not) and the logs."""

    def train(**arguments):
        model = tiny_model()
        trainer = trainer_of(model, records(24), records(2), **arguments)
        shielding, maop = [], []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: shielding.append(kwargs["shield_shared_expert"]), with_kwargs=True
        )
        trainer.create_optimizer().register_step_pre_hook(
            lambda optimizer, args, kwargs: maop.append({group["maop_enabled"] for group in optimizer.param_groups})
        )
        trainer.train()
        return shielding, maop, [log for log in trainer.state.log_history if "loss" in log]

    return train


def test_maop_begins_when_shielding_ends(phases_of):
    shielding, maop, logs = phases_of(shield_steps=2, max_steps=4)
    assert shielding == [True, True, False, False]
    assert maop == [{False}, {False}, {True}, {True}]
    assert ["maop_fired_share" in log for log in logs] == [False, False, True, True]


def test_phases_count_optimizer_steps(phases_of):
    shielding, maop, _ = phases_of(shield_steps=1, max_steps=2, gradient_accumulation_steps=3)
    assert shielding == [True] * 3 + [False] * 3
    assert maop == [{False}, {True}]


def test_no_shielding_by_default(phases_of):
    shielding, maop, _ = phases_of(max_steps=2)
    assert shielding == [False, False]
    assert maop == [{True}, {True}]


def test_evaluation_is_not_shielded(phases_of):
    shielding, _, _ = phases_of(shield_steps=4, max_steps=2, eval_strategy="steps", eval_steps=1)
    assert shielding == [True, False, True, False]


def test_without_maop_nothing_is_projected(phases_of):
    _, _, logs = phases_of(shield_steps=1, max_steps=3, maop=False)
    assert not any("maop_fired_share" in log for log in logs)
