"""Means and counts between two readings."""

import pytest
import torch
from accelerate import Accelerator

from trainer.figures.running_figures import RunningFigures


@pytest.fixture
def figures():
    return RunningFigures(["a", "b"], ["n"], torch.device("cpu"))


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_means_are_weighted(figures, accelerator):
    figures.add_to_mean("a", torch.tensor(6.0), torch.tensor(3))
    figures.add_to_mean("a", torch.tensor(4.0), torch.tensor(1))
    figures.add_to_mean("b", torch.tensor(5.0))
    figures.add_to_mean("b", torch.tensor(7.0))
    figures.add_to_count("n", torch.tensor(2**25))
    figures.add_to_count("n", 1)
    assert figures.read(accelerator) == {"a": 2.5, "b": 6.0, "n": 2**25 + 1}


def test_reading_starts_again(figures, accelerator):
    figures.add_to_mean("a", torch.tensor(1.0))
    figures.add_to_count("n", 1)
    figures.read(accelerator)
    figures.add_to_mean("a", torch.tensor(3.0))
    assert figures.read(accelerator) == {"a": 3.0, "n": 0}


def test_what_is_not_known_does_not_count(figures, accelerator):
    figures.add_to_mean("a", torch.tensor(float("nan")))
    figures.add_to_mean("a", torch.tensor(2.0))
    figures.add_to_mean("b", torch.tensor(0.0), torch.tensor(0))
    assert figures.read(accelerator) == {"a": 2.0, "n": 0}
