"""The benchmark of the released size, on a small model and a CPU: it trains, with MAOP and without, and reports it."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "trainer")]

from full_step_gpu import measure, row  # noqa: E402
from tiny_training import tiny_model  # noqa: E402


def test_a_full_step_is_measured():
    config = tiny_model().config
    assert sum(len(sample["input_ids"]) for sample in row(config, 128, 4)) == 128
    result = measure(config, length=128, side=4, steps=2, device="cpu")
    assert result["with MAOP"]["tokens_per_second"] > 0
    assert result["with MAOP"]["maop_cosine"] is not None
    assert result["without MAOP"]["tokens_per_second"] > 0 and result["without MAOP"]["maop_cosine"] is None
    assert sum(result["shares of a step"].values()) == pytest.approx(1, abs=0.5)
    assert "aten::mm" in result["shares of a step"]
