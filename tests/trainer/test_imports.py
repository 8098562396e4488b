"""The names of the package: each is imported when it is asked for, and the optimizer needs torch alone."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trainer


BORROWED = """
import sys
for package in ("accelerate", "datasets", "diffusers", "modeling_rosetta", "peft", "transformers"):
    sys.modules[package] = None  # importing it raises
from trainer import MAOPAdamW
from trainer.optimizer.maop import MAOPAdamW as same
import torch
assert MAOPAdamW is same
MAOPAdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "maop": True}]).step()
"""


def test_the_optimizer_needs_torch_alone():
    subprocess.run([sys.executable, "-c", BORROWED], check=True, cwd=Path(__file__).parents[2])


def test_every_name_is_what_type_checkers_are_told():
    tree = ast.parse(Path(trainer.__file__).read_text())
    (told,) = [node for node in tree.body if isinstance(node, ast.If)]
    modules = {alias.name: f".{imported.module}" for imported in told.body for alias in imported.names}
    assert modules == trainer._MODULE_OF
    assert set(dir(trainer)) >= set(trainer.__all__) == set(modules)
    assert all(getattr(trainer, name).__name__ == name for name in trainer.__all__)


def test_no_other_name():
    with pytest.raises(AttributeError, match="'trainer' has no attribute 'MAOP'"):
        _ = trainer.MAOP
    with pytest.raises(ImportError, match="MAOP"):
        from trainer import MAOP  # noqa: F401


def test_the_optimizer_is_pickled():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = trainer.MAOPAdamW([{"params": [param], "maop": True}], maop_granularity="global")
    copy = pickle.loads(pickle.dumps(optimizer))
    assert type(copy) is trainer.MAOPAdamW and copy.defaults == optimizer.defaults
