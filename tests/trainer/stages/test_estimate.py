"""A recipe's memory and time, from its text and the configuration of its model."""

import pytest
from tiny_training import SIZES

from modeling_rosetta import RosettaConfig
from trainer import DataSource, RosettaTrainingArguments
from trainer.stages.estimate import estimate_recipe, planned_config
from trainer.stages.recipe import StageArguments


def stage_of(model, **fields):
    return StageArguments(stage="x", model=str(model), **{"max_length": 64, "global_batch_size": 4, **fields})


def training():
    return RosettaTrainingArguments("unused", use_cpu=True, report_to="none", per_device_train_batch_size=1)


@pytest.fixture
def text_only(tmp_path):
    types = RosettaConfig().token_types[:1]
    RosettaConfig(**{**SIZES, "token_types": types, "expert_pools": {"text": 4}}).save_pretrained(tmp_path)
    return tmp_path


def test_what_is_missing_is_mounted(text_only):
    config, assumed = planned_config(stage_of(text_only), ["lm", "mmu"])
    assert (config.expert_pools, config.hidden_size) == ({"text": 4, "vit": 3}, 32)
    assert not assumed


def test_what_cannot_be_read_is_said(tmp_path):
    config, (said,) = planned_config(stage_of(tmp_path / "none"), ["t2i"])
    assert config.expert_pools == RosettaConfig().expert_pools and config.hidden_size == 1024
    assert "`model`: '" in said and "none' cannot be read" in said


def test_an_estimate(text_only):
    estimate = estimate_recipe(stage_of(text_only), [DataSource("lm", "nowhere")], training(), 1)
    assert (estimate.num_parameters, estimate.accumulation) == (estimate.num_trained, 4)
    assert estimate.peak == estimate.tasks["lm"].memory.peak > 4 * 4 * estimate.num_parameters
    seconds = [estimate.seconds_a_step({"lm": 1.0}, 4, 1e9, recomputes) for recomputes in (False, True)]
    assert seconds[0] == pytest.approx(4 * estimate.tasks["lm"].flops / 1e9)
    assert seconds[1] == pytest.approx(4 / 3 * seconds[0])


def test_rows_that_do_not_divide(text_only):
    with pytest.raises(ValueError, match="`global_batch_size` must be a multiple of .* = 1 x 3, got 4"):
        estimate_recipe(stage_of(text_only), [DataSource("lm", "nowhere")], training(), 3)
