"""Which parameters MAOP applies to is said, or it is heard that it applies to none."""

import warnings

import pytest
import torch
from transformers import Trainer, TrainingArguments

from trainer import MAOPAdamW


GRADIENT, MOMENTUM = torch.tensor([-3.0, 1.0]), torch.tensor([2.0, 0.0])
PROJECTED = torch.tensor([0.0, 1.0])


@pytest.fixture(autouse=True)
def no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _params(number=1):
    return [torch.nn.Parameter(torch.zeros(2)) for _ in range(number)]


def _projected(optimizer):
    """The gradients after a step against the momentum, in order."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = GRADIENT.clone()
        optimizer.state[param] = {"step": torch.ones(()), "exp_avg": MOMENTUM.clone(), "exp_avg_sq": torch.ones(2)}
    optimizer.step()
    return [torch.equal(param.grad, PROJECTED) for param in params]


def test_nobody_says():
    with pytest.warns(UserWarning, match="No parameter group says `maop`: MAOPAdamW is AdamW"):
        optimizer = MAOPAdamW(_params(), lr=0.1)
    assert _projected(optimizer) == [False]
    with pytest.warns(UserWarning, match="MAOPAdamW is AdamW"):
        MAOPAdamW([{"params": _params(), "name": "base"}])


def test_trainer_builds_it_as_adamw(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.warns(UserWarning, match="MAOPAdamW is AdamW"):
        Trainer(torch.nn.Linear(2, 2), arguments, optimizer_cls_and_kwargs=(MAOPAdamW, {"lr": 0.1})).create_optimizer()
    trainer = Trainer(
        torch.nn.Linear(2, 2), arguments, optimizer_cls_and_kwargs=(MAOPAdamW, {"lr": 0.1, "maop": True})
    )
    assert all(group["maop"] for group in trainer.create_optimizer().param_groups)


@pytest.mark.parametrize("maop", [True, False])
def test_as_an_argument_it_is_the_default_of_the_groups(maop):
    first, second, third = _params(3)
    optimizer = MAOPAdamW([{"params": [first]}, {"params": [second], "maop": not maop}], maop=maop)
    optimizer.add_param_group({"params": [third]})
    assert _projected(optimizer) == [maop, not maop, maop]


def test_no_group_with_it_is_fine_if_said():
    assert _projected(MAOPAdamW([{"params": _params(), "maop": False}])) == [False]
    assert _projected(MAOPAdamW(_params(), maop=False)) == [False]


def test_a_granularity_of_its_own():
    named = [(f"layers.0.{name}", param) for name, param in zip("abc", _params(3), strict=True)]
    optimizer = MAOPAdamW(
        [{"params": named[:2], "maop": True, "maop_granularity": "layer"}, {"params": named[2:], "maop": True}]
    )
    _projected(optimizer)
    assert [len(unit) for unit in optimizer._units()] == [2, 1]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"mapo": True}, "the key 'mapo'; MAOP's are"),
        ({"MAOP": True}, "the key 'MAOP'"),
        ({"use_maop": True}, "the key 'use_maop'"),
        ({"maop": True, "maop_enable": False}, "the key 'maop_enable'"),
        ({"maop": "yes"}, "`maop` must be True or False, got 'yes'"),
        ({"maop": 1}, "`maop` must be True or False, got 1"),
        ({"maop": None}, "`maop` must be True or False, got None"),
        ({"maop": True, "maop_enabled": "no"}, "`maop_enabled` must be True or False, got 'no'"),
        ({"maop": True, "maop_granularity": "row"}, "`maop_granularity` must be one of .*'row'"),
        ({"maop": True, "maop_granularity": "layer"}, "`params` must be named"),
        ({"maop": True, "maximize": True}, "`maximize` must be False"),
    ],
    ids=str,
)
def test_a_group_that_cannot_be_meant_is_refused_whenever_it_comes(group, message):
    with pytest.raises(ValueError, match=message):
        MAOPAdamW([{"params": _params(), **group}])
    optimizer = MAOPAdamW(_params(), maop=False)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": _params(), **group})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maop": "yes"}, "`maop` must be True or False, got 'yes'"),
        ({"maop": True, "maximize": True}, "`maximize` must be False"),
        ({"maop": True, "maop_granularity": "layer"}, "`params` must be named"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAOPAdamW(_params(), **arguments)


def test_keys_of_others_are_theirs():
    keys = {"name": "base", "initial_lr": 0.1, "lr_scale": 0.5, "is_muon": False, "amsgrad": True}
    MAOPAdamW([{"params": _params(), "maop": True, **keys}])
