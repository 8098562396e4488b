"""Intervals, tables and the Hub's format."""

import json

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from trainer.evaluation import Task, write_report
from trainer.evaluation.evaluate import result_of
from trainer.evaluation.intervals import bootstrap_intervals, wilson_interval


def test_wilson_intervals():
    # Newcombe (1998), Statistics in Medicine 17, Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    cases = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for right, number, low, high in cases:
        assert wilson_interval(right, number) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1), abs=5e-5)


def test_bootstrap_intervals_are_those_of_a_mean_and_of_their_seed():
    values = np.random.default_rng(0).normal(3, 2, 400)

    def mean(outcomes):
        return {"mean": sum(outcome["v"] for outcome in outcomes) / len(outcomes)}

    outcomes = [{"v": value} for value in values]
    low, high = bootstrap_intervals(outcomes, mean, seed=0)["mean"]
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_intervals(outcomes, mean, seed=0)["mean"] == (low, high)
    assert bootstrap_intervals(outcomes, mean, seed=1)["mean"] != (low, high)


def test_files(tmp_path):
    task = Task("sums", "authors", [], None, dataset=("some/sums", "add"), remarks=("Not the paper's.",))
    outcomes = [{"right": 1}, {"right": 0, "missed": True}, {"right": 1}, {"right": 1}]
    whole, part = result_of(task, outcomes), {**result_of(task, outcomes), "task": "few", "limit": 4, "num_all": 9}
    (tmp_path / "model").mkdir()
    table = write_report([whole, part], {"model": "m"}, tmp_path / "out", tmp_path / "model")
    assert "| sums | authors  | accuracy | 0.75  | 0.3006 to 0.9544 | 4                  | 1          |" in table
    assert "4 (the first of 9)" in table and "- sums (authors): Not the paper's." in table
    assert (tmp_path / "out" / "results.md").read_text() == table + "\n"
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["model"] == "m" and saved["results"] == json.loads(json.dumps([whole, part]))
    for folder in ("out", "model"):
        (file,) = (tmp_path / folder / ".eval_results").iterdir()  # and none of a part
        (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("some/sums", "add", 0.75)
        assert "authors protocol, 4 samples, 95% interval 0.3006 to 0.9544, 1 answers unreadable" in entry.notes
