"""The memory of a step from its shapes. `benchmarks/estimated_memory.py` compares it with measured peaks."""

import torch
from tiny_training import tiny_model
from torch import nn

from trainer import RosettaDataCollator, RosettaTrainingArguments
from trainer.figures.live_memory import LiveMemory
from trainer.stages.step_memory import full_row, step_memory


LENGTH = 64


def memory_of(task="lm", devices=1, accumulation=1, recompute=False, **arguments):
    training = RosettaTrainingArguments("unused", use_cpu=True, report_to="none", **arguments)
    row = full_row(tiny_model().config, task, LENGTH, image_tokens=4)
    collator = RosettaDataCollator(0, LENGTH, pad_to_multiple_of=LENGTH)
    return step_memory(tiny_model, lambda: collator([row]), training, devices, accumulation, recompute)


def test_bytes_that_are_alive():
    memory = LiveMemory()
    with memory.fake:
        layer = nn.Linear(1000, 500, bias=False)
    with memory:
        memory.count(layer.weight)
        hidden = layer(torch.zeros(10, 1000))
        assert memory.now == 4 * (500 * 1000 + 10 * 1000 + 10 * 500)  # the input is kept for the weight's gradient
        chosen = hidden[torch.tensor([True] * 3 + [False] * 7)]
        assert chosen.shape == (3, 500)
        chosen.sum().backward()
        del hidden, chosen
        assert memory.now == 4 * 2 * 500 * 1000
    assert memory.peak > memory.now


def test_what_is_held():
    model = tiny_model()
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = memory_of(ema_decay=0.9)
    frozen = 4 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert trained + frozen <= memory.weights < trained + frozen + 2000  # and buffers
    assert memory.gradients == memory.average == trained
    assert 2 * trained <= memory.moments < 2 * trained + 2000  # and the numbers of steps
    assert memory.rest > 0


def test_recomputed_activations_are_not_kept():
    assert memory_of("t2i", recompute=True).peak < memory_of("t2i").peak


def test_sharded_over_several():
    alone, sharded = memory_of(bf16=True), memory_of(bf16=True, devices=2, accumulation=2, recompute=True)
    assert 0.5 * alone.moments <= sharded.moments < 0.6 * alone.moments
    assert not torch.distributed.is_initialized()


def test_a_row_is_full():
    for task in ("lm", "mmu", "t2i"):
        row = full_row(tiny_model().config, task, LENGTH, 4)
        assert LENGTH - 5 <= sum(len(sample["input_ids"]) for sample in row) <= LENGTH
