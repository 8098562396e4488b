"""What is overridden of transformers' Trainer and private: all of it is listed, and still the step that it was."""

import inspect

import pytest
from transformers import Trainer

from trainer import RosettaTrainer
from trainer.private_steps import PRIVATE_STEPS


def test_the_list_is_complete():
    own = RosettaTrainer.__mro__[: RosettaTrainer.__mro__.index(Trainer)]
    private = {name for kind in own for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if callable(getattr(Trainer, name, None))} == set(PRIVATE_STEPS)


@pytest.mark.parametrize("name", PRIVATE_STEPS)
def test_transformers_still_has_the_step(name):
    assert hasattr(Trainer, name), f"transformers' Trainer has no {name} any more"
    caller = getattr(Trainer, PRIVATE_STEPS[name].called_by, None)
    assert f"self.{name}(" in inspect.getsource(caller), f"{caller.__name__} of transformers' Trainer calls no {name}"


@pytest.mark.parametrize("name", PRIVATE_STEPS)
def test_the_step_takes_what_transformers_passes(name):
    own, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (RosettaTrainer, Trainer))
    takes_all = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values())
    assert takes_all or list(own) == list(theirs), f"{name} of transformers' Trainer takes {list(theirs)}"
