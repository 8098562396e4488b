"""Arguments of the trainer: the authors' defaults, bad values named, help for each."""

from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from trainer import RosettaTrainingArguments


def test_defaults_are_the_authors(tmp_path):
    arguments = RosettaTrainingArguments(str(tmp_path))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (arguments.weight_decay, arguments.max_grad_norm) == (0.1, 1.0)
    assert not arguments.remove_unused_columns


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation_learning_rate", -1.0),
        ("shield_steps", -1),
        ("maop_granularity", "row"),
        ("logit_std", 0.0),
        ("optim", "adafactor"),
        ("label_smoothing_factor", 0.1),
        ("deepspeed", "zero3.json"),
    ],
)
def test_bad_values_are_named(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{value}"):
        RosettaTrainingArguments(str(tmp_path), **{name: value})


def test_every_argument_has_help():
    inherited = {field.name for field in fields(TrainingArguments)}
    own = [field for field in fields(RosettaTrainingArguments) if field.name not in inherited]
    assert own and all(field.metadata["help"] for field in own)


def test_command_line(tmp_path):
    (arguments,) = HfArgumentParser(RosettaTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--generation_learning_rate", "1e-4", "--maop_granularity", "layer"]
    )
    assert (arguments.generation_learning_rate, arguments.maop_granularity) == (1e-4, "layer")
