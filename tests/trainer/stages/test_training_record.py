"""`training.json` says what a model was trained with, and nothing of the machine."""

import json

import pytest
import torch

from modeling_rosetta import RosettaConfig
from trainer import MAOPAdamW, load_training_record, save_training_record, training_record


@pytest.fixture
def trained(trainer_of, tiny_model, records):
    trainer = trainer_of(tiny_model(RosettaConfig), records(16), max_steps=3, generation_learning_rate=0.02, seed=5)
    trainer.train()
    return trainer


def test_a_stage_is_recorded(trained):
    record = training_record(trained, "T2I", "stones", results={"recognised": 0.5})
    assert (record["stage"], record["data"], record["results"]) == ("T2I", "stones", {"recognised": 0.5})
    assert record["steps"] == 3 and record["processes"] == 1 and record["device"] == "cpu"
    assert record["hyperparameters"]["learning_rate"] == 0.01
    assert record["hyperparameters"]["generation_learning_rate"] == 0.02
    assert record["hyperparameters"]["seed"] == 5
    assert record["trained_parameters"] == sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    assert [log["step"] for log in record["log"]] == [1, 2, 3] and "text_loss" in record["log"][0]


def test_an_optimizer_of_ones_own_is_recorded_as_it_is(trainer_of, tiny_model, records):
    model = tiny_model(RosettaConfig)
    sgd = torch.optim.SGD([{"params": [p], "lr": 0.25} for p in model.parameters()])
    trainer = trainer_of(model, records(8), max_steps=2, maop=False)
    trainer.optimizer = sgd
    trainer.train()
    hyperparameters = training_record(trainer)["hyperparameters"]
    assert (hyperparameters["optim"], hyperparameters["learning_rate"]) == ("SGD", 0.25)
    assert hyperparameters["weight_decay"] == 0
    assert not {"adam_beta1", "generation_learning_rate", "maop"} & set(hyperparameters)


@pytest.mark.parametrize("optimizer_class", [MAOPAdamW, torch.optim.AdamW])
def test_an_adamw_of_ones_own_is_recorded_as_it_is(optimizer_class, trainer_of, tiny_model, records):
    model = tiny_model(RosettaConfig)
    trainer = trainer_of(model, records(8), max_steps=2, maop=False, weight_decay=0.3, adam_beta2=0.5)
    trainer.optimizer = optimizer_class(model.parameters(), lr=0.25, weight_decay=0.125, betas=(0.5, 0.75))
    trainer.train()
    hyperparameters = training_record(trainer)["hyperparameters"]
    told = [hyperparameters[name] for name in ("optim", "learning_rate", "weight_decay", "betas")]
    assert told == [optimizer_class.__name__, 0.25, 0.125, (0.5, 0.75)]
    assert "adam_beta2" not in hyperparameters


def test_nothing_of_the_machine_is_in_it(trained, tmp_path):
    trained.args.hub_token = "secret"
    text = json.dumps(training_record(trained))
    assert str(tmp_path) not in text and "secret" not in text and "output_dir" not in text


def test_the_last_evaluation_is_the_result_unless_another_is_given(trained):
    trained.state.log_history += [{"eval_loss": 2.0, "eval_runtime": 1.0}, {"eval_loss": 1.5, "eval_runtime": 1.0}]
    assert training_record(trained)["results"] == {"eval_loss": 1.5}


def test_long_logs_are_thinned_and_keep_the_last(trained):
    trained.state.log_history = [{"loss": 1 / 3, "step": step} for step in range(1, 1051)]
    log = training_record(trained)["log"]
    assert 50 < len(log) <= 100 and log[-1] == {"loss": 0.333333, "step": 1050}


def test_stages_are_saved_and_loaded(tmp_path):
    assert load_training_record(tmp_path) == []
    stages = [{"stage": "LM"}, {"stage": "MMU"}]
    save_training_record(tmp_path, stages, command="make it")
    assert load_training_record(tmp_path) == stages
    assert json.loads((tmp_path / "training.json").read_text())["command"] == "make it"
    assert [file.name for file in tmp_path.iterdir()] == ["training.json"]
