"""What the trainer cannot do is said before it starts."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from trainer import RosettaTrainer, RosettaTrainingArguments
from trainer.checks import check_parallelism


def test_other_arguments(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="`args` must be RosettaTrainingArguments, got TrainingArguments"):
        RosettaTrainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_functions_that_would_never_be_called(name, tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"`{name}` must be None"):
        RosettaTrainer(tiny_model(), arguments, **{name: lambda *_: {}})


@pytest.mark.parametrize(
    "chosen",
    [torch.optim.SGD, (lambda: None, {}), ("adamw", {}), (torch.optim.SGD,)],
    ids=["a class", "a function", "a name", "one thing"],
)
def test_no_class_of_optimizers(chosen, tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="`optimizer_cls_and_kwargs` must be a class of torch optimizers"):
        RosettaTrainer(tiny_model(), arguments, optimizer_cls_and_kwargs=chosen)


def test_data_parallel(tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="`args.n_gpu` must be at most 1, got 2"):
        RosettaTrainer(tiny_model(), arguments)


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_parallelism_of_other_kinds(name):
    accelerator = SimpleNamespace(distributed_type="NO", parallelism_config=SimpleNamespace(**{name: 2}))
    with pytest.raises(ValueError, match=f"`{name}` must be 1, got 2"):
        check_parallelism(accelerator, is_fsdp_enabled=False)
    accelerator.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(ValueError, match="DeepSpeed was asked for"):
        check_parallelism(accelerator, is_fsdp_enabled=False)


def test_nothing_to_predict(tiny_model, records, trainer_of):
    dataset = records(2)[1:]
    del dataset[0]["labels"]
    with pytest.raises(ValueError, match="`inputs` must hold at least one of .* got .*'input_ids'"):
        trainer_of(tiny_model(), eval_dataset=dataset).evaluate()


def _accelerator(**settings):
    return SimpleNamespace(**{"distributed_type": "DistributedType.NO", "num_processes": 1, **settings})


def test_other_sharding():
    plugin = SimpleNamespace(fsdp_version=1)
    with pytest.raises(ValueError, match="`fsdp_version` must be 2, got 1"):
        check_parallelism(_accelerator(state=SimpleNamespace(fsdp_plugin=plugin)), is_fsdp_enabled=True)
    with pytest.raises(ValueError, match="DeepSpeed was asked for"):
        check_parallelism(_accelerator(distributed_type=DistributedType.DEEPSPEED), is_fsdp_enabled=False)
    for name in ("tp_size", "cp_size", "sp_size"):
        mesh = SimpleNamespace(**{name: 2})
        with pytest.raises(ValueError, match=f"`parallelism_config`: `{name}` must be 1, got 2"):
            check_parallelism(_accelerator(parallelism_config=mesh), is_fsdp_enabled=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim_args", "momentum=0.5"),
        ("optim_target_modules", "all-linear"),
        ("average_tokens_across_devices", False),
        ("use_liger_kernel", True),
        ("batch_eval_metrics", True),
        ("include_for_metrics", ["loss"]),
    ],
)
def test_arguments_that_nothing_would_heed(name, value, tiny_model, trainer_of):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, as it has no effect here; got "):
        trainer_of(tiny_model(), **{name: value})


def test_rates_of_groups_that_are_ones_own(tmp_path, tiny_model):
    arguments = RosettaTrainingArguments(str(tmp_path), use_cpu=True, generation_learning_rate=0.1)
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    for given in (
        {"optimizers": (optimizer, None)},
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"params": model.parameters(), "lr": 0.25})},
    ):
        with pytest.raises(ValueError, match="`generation_learning_rate` must be None with parameter groups of one's"):
            RosettaTrainer(model, arguments, **given)
