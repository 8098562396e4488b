"""What is changed when a run goes on takes effect or is refused, and the record tells what steps were trained with."""

import json

import pytest
import torch
from data_files import file_model, file_processor, write_texts
from torch.optim.lr_scheduler import ExponentialLR

from trainer import (
    DataSource,
    RosettaDataCollator,
    RosettaDataStream,
    RosettaTrainingArguments,
    training_record,
)
from trainer.stages.run_description import changes, training_facts


STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def go_on(tiny_model, records, trainer_of, tmp_path, capsys):
    """Trains, and goes on after step 2 with other arguments; gives the trainer and what was said."""

    def train(model=None, **changes):
        trainer_of(tiny_model(), records(32), **STEPS).train()
        capsys.readouterr()
        trainer = trainer_of(model or tiny_model(), records(32), **{**STEPS, **changes})
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        return trainer, capsys.readouterr().out

    return train


def test_it_says_that_it_goes_on_and_from_where(go_on, tmp_path):
    _, said = go_on()
    assert said.splitlines()[0] == f"The run goes on from {tmp_path / 'checkpoint-2'}, after step 2."
    assert "From now on" not in said


def test_a_changed_rate_is_said_and_holds_from_now_on(go_on, tiny_model, records, trainer_of):
    trainer, said = go_on(learning_rate=5e-3, generation_learning_rate=2e-3, weight_decay=0.5, adam_beta2=0.9)
    assert "From now on `learning_rate` is 0.005, it was 0.01." in said
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["learning_rate_base"] for log in logs] == [0.01, 0.01, 0.005, 0.005]
    assert [log["learning_rate_generation"] for log in logs] == [0.01, 0.01, 0.002, 0.002]
    for group in trainer.optimizer.param_groups:
        assert group["betas"][1] == 0.9 and group["weight_decay"] in (0.5, 0.0)
    hyperparameters = training_record(trainer)["hyperparameters"]
    assert hyperparameters["learning_rate"] == "0.01, after step 2 0.005"
    assert hyperparameters["generation_learning_rate"] == "None, after step 2 0.002"
    assert hyperparameters["adam_beta2"] == "0.95, after step 2 0.9" and hyperparameters["adam_beta1"] == 0.9


def test_a_changed_schedule_holds_from_the_next_step_on(go_on):
    trainer, said = go_on(lr_scheduler_type="linear", max_steps=8)
    rates = [log["learning_rate_base"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([0.01, 0.01, *(0.01 * (8 - step) / 8 for step in range(2, 8))])
    assert "`lr_scheduler_type` is 'linear'" in said and "`max_steps` is 8, it was 4" in said


def test_how_often_it_logs_and_saves_can_be_changed(go_on, tmp_path):
    trainer, _ = go_on(max_steps=6, save_steps=3, logging_steps=2)
    assert (tmp_path / "checkpoint-3").is_dir() and not (tmp_path / "checkpoint-5").exists()
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"data_seed": 5}, "data_seed"),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy"),
        ({"per_device_train_batch_size": 2}, "rows of a step"),
        ({"decay_all_parameters": True}, "decay_all_parameters"),
    ],
)
def test_what_cannot_be_changed_is_refused(changed, name, go_on):
    with pytest.raises(ValueError, match=f"`{name}` must be what it was when the run was started"):
        go_on(**changed)


def test_rates_that_are_the_state_of_a_schedule_cannot_be_changed(tmp_path):
    def facts(**arguments):
        evaluated = {"eval_strategy": "steps", "eval_steps": 1, "use_cpu": True, "report_to": "none"}
        return training_facts(RosettaTrainingArguments(str(tmp_path), **evaluated, **arguments))

    plateau = facts(lr_scheduler_type="reduce_lr_on_plateau")
    for other in (facts(), facts(lr_scheduler_type="reduce_lr_on_plateau", learning_rate=1e-3)):
        with pytest.raises(ValueError, match="`rates that the schedule keeps` must be what it was"):
            changes(plateau, other)
    assert changes(facts(), facts(lr_scheduler_type="cosine")) == [
        "From now on `lr_scheduler_type` is 'cosine', it was 'linear'."
    ]


@pytest.mark.parametrize("brought", [None, ExponentialLR])
def test_what_a_schedule_does_not_keep_can_be_changed(brought, tiny_model, records, trainer_of, tmp_path):
    settings = {**STEPS, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1}

    def train(resume_from=None, **changes):
        arguments = {**(settings if brought is None else STEPS), **changes}
        trainer = trainer_of(tiny_model(), records(32), records(4), **arguments)
        if brought is not None:
            trainer.lr_scheduler = brought(trainer.create_optimizer(), 0.5)
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    train()
    trainer = train(str(tmp_path / "checkpoint-2"), weight_decay=0.5, adam_beta2=0.9)
    rates = [log["learning_rate_base"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([0.01] * 4 if brought is None else [0.01, 0.005, 0.0025, 0.00125])
    for group in trainer.optimizer.param_groups:
        assert group["betas"][1] == 0.9 and group["weight_decay"] in (0.5, 0.0)
    with pytest.raises(ValueError, match="`rates that the schedule keeps` must be what it was"):
        train(str(tmp_path / "checkpoint-2"), learning_rate=5e-3)


def test_another_optimizer_is_refused(tiny_model, records, trainer_of, tmp_path):
    trainer_of(tiny_model(), records(32), **STEPS).train()
    sgd = trainer_of(tiny_model(), records(32), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}), **STEPS)
    with pytest.raises(ValueError, match="`optimizer` must be what it was .* 'MAOPAdamW', got 'SGD'"):
        sgd.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_steps_that_are_done_cannot_be_asked_away(go_on):
    with pytest.raises(ValueError, match="`max_steps` must be at least 2, which are done in .*checkpoint-2, got 1"):
        go_on(max_steps=1)


def test_another_model_is_refused(go_on, tiny_model):
    with pytest.raises(ValueError, match=r"`config\.num_hidden_layers` must be what it was .* 2, got 1"):
        go_on(model=tiny_model(num_hidden_layers=1))
    frozen = tiny_model()
    frozen.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match="`trained parameters` must be what it was"):
        go_on(model=frozen)


def test_rows_of_a_step_may_be_split_otherwise(go_on):
    trainer, _ = go_on(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert trainer.state.global_step == 4


def test_what_trained_no_step_is_not_recorded(go_on, tiny_model, records, trainer_of, tmp_path):
    trainer_of(tiny_model(), records(32), **STEPS).train()
    finished = trainer_of(tiny_model(), records(32), **{**STEPS, "learning_rate": 1e-5})
    finished.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert training_record(finished)["hyperparameters"]["learning_rate"] == 0.01


def test_an_old_checkpoint_goes_on(go_on, tiny_model, records, trainer_of, tmp_path, capsys):
    trainer_of(tiny_model(), records(32), **STEPS).train()
    (tmp_path / "checkpoint-2" / "run.json").unlink()
    trainer = trainer_of(tiny_model(), records(32), **STEPS)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "whether anything was changed cannot be told" in capsys.readouterr().out
    assert trainer.state.global_step == 4


def _without_the_clock(record: dict) -> dict:
    clock = ("tokens_per_second", "time_left")
    return {**record, "log": [{k: v for k, v in log.items() if k not in clock} for log in record["log"]]}


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_record_of_a_resumed_run_is_that_of_an_undisturbed_one(
    is_stream, tiny_model, records, trainer_of, tmp_path
):
    processor = file_processor()
    (tmp_path / "texts").mkdir()
    sources = [DataSource("lm", str(write_texts(tmp_path / "texts", 40)))]

    def train(output_dir, resume=None):
        arguments = {**STEPS, "output_dir": tmp_path / output_dir}
        if is_stream:
            collator = RosettaDataCollator(processor.tokenizer.pad_token_id)
            model, data = file_model(processor), RosettaDataStream(sources, processor, 60)
            trainer = trainer_of(model, data, data_collator=collator, **arguments)
        else:
            trainer = trainer_of(tiny_model(), records(32), **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, resumed = train("whole"), train("resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (_without_the_clock(training_record(trainer)) for trainer in (whole, resumed))
    assert one == other and one["epochs"] == (None if is_stream else 0.5)
    states = [tmp_path / name / "checkpoint-4" / "trainer_state.json" for name in ("whole", "resumed")]
    assert len({json.loads(state.read_text())["epoch"] for state in states}) == 1
    if is_stream:
        assert one["hyperparameters"]["packed"] is True and one["hyperparameters"]["max_length"] == 60
