"""What the trainer cannot do is said before it starts."""

from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from trainer import RosettaTrainer, RosettaTrainingArguments


def test_other_arguments(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="`args` must be RosettaTrainingArguments, got TrainingArguments"):
        RosettaTrainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func"])
def test_functions_that_would_never_be_called(name, tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"`{name}` must be None"):
        RosettaTrainer(tiny_model(), arguments, **{name: lambda *_: {}})


def test_data_parallel(tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="`args.n_gpu` must be at most 1, got 2"):
        RosettaTrainer(tiny_model(), arguments)


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_parallelism_of_other_kinds(name, trainer_of, tiny_model, monkeypatch):
    trainer = trainer_of(tiny_model())
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(parallelism_config=SimpleNamespace(**{name: 2})))
    with pytest.raises(ValueError, match=f"`{name}` must be 1, got 2"):
        trainer._check_sharding()
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(ValueError, match="DeepSpeed was asked for"):
        trainer._check_sharding()


def test_nothing_to_predict(tiny_model, records, trainer_of):
    dataset = records(2)[1:]
    del dataset[0]["labels"]
    with pytest.raises(ValueError, match="`inputs` must hold at least one of .* got .*'input_ids'"):
        trainer_of(tiny_model(), eval_dataset=dataset).evaluate()


def test_fsdp1(tiny_model, trainer_of, monkeypatch):
    trainer = trainer_of(tiny_model())
    plugin = SimpleNamespace(fsdp_version=1)
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="`fsdp_version` must be 2, got 1"):
        trainer._check_sharding()
