"""A person reads one line, not dictionaries: rewritten in a terminal, from time to time in a file."""

import io
import re

import pytest
import torch
from transformers import Trainer, TrainingArguments

from examples.miniature import progress
from examples.miniature.progress import Progress, show_progress


@pytest.fixture
def clock(monkeypatch):
    """Advances by a second at each look."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_file_it_is_a_line_from_time_to_time(clock, capsys):
    shown = Progress("MMU", 40)
    for step in range(1, 41):
        shown.show(step, {"text loss": 2.0})
    assert capsys.readouterr().out.splitlines() == [
        "MMU              step  1 of 40  text loss 2.000  0:39 left",
        "MMU              step 16 of 40  text loss 2.000  0:24 left",
        "MMU              step 31 of 40  text loss 2.000  0:09 left",
        "MMU              step 40 of 40  text loss 2.000  took 0:40",
    ]


def test_in_a_terminal_one_line_moves_on(clock, monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    shown = Progress("T2I", 3)
    for step in range(1, 4):
        shown.show(step, {"text loss": 2.0, "flow loss": 0.5})
    written = progress.sys.stdout.getvalue()
    assert written.count("\n") == 1 and written.endswith("\n")
    lines = written.rstrip("\n").split("\r")[1:]
    assert [line.split()[2] for line in lines] == ["1", "2", "3"]
    assert {len(line) for line in lines} == {progress.WIDTH}  # each covers the one before


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_of_a_trainer_nothing_else_is_printed(tmp_path, capfd, disable_tqdm):
    class Model(torch.nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).square().mean()}

    arguments = TrainingArguments(
        tmp_path, max_steps=7, logging_steps=2, use_cpu=True, report_to="none", disable_tqdm=disable_tqdm
    )
    samples = [{"x": torch.ones(2)}] * 8
    show_progress(Trainer(Model(2, 1), arguments, train_dataset=samples), "dense Qwen3").train()
    out, err = capfd.readouterr()
    assert err == ""
    first, last = out.splitlines()
    assert re.fullmatch(r"dense Qwen3      step 1 of 7  \d+:\d\d left", first)
    assert re.fullmatch(r"dense Qwen3      step 7 of 7  loss \d\.\d{3}  took \d+:\d\d", last)
