"""How evenly experts are used, over micro-batches and steps."""

import math

import pytest
import torch

from trainer.figures.expert_figures import ExpertFigures


def _of(logs):
    return {name: figure for name, figure in logs.items() if name.startswith(("expert", "router_"))}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_figures_are_those_of_all_tokens_together(accumulation, tiny_model, records, collate, trainer_of):
    records = records(16)
    for index, record in enumerate(records):
        record["sequence_ids"] = torch.zeros_like(record["input_ids"])
        record["sequence_ids"][12 - index % 3 :] = -1  # padding, not to be counted
        record["labels"][12 - index % 3 :] = -100
    model = tiny_model()
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    trainer = trainer_of(model, records, max_steps=2, logging_steps=2, learning_rate=0.0, log_experts=True, **settings)
    seen = []
    model.model.register_forward_hook(lambda module, args, output: seen.append(output))
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert "expert_load_highest_vit" not in log  # no such token in the data

    real = torch.cat(
        [output.routing.layout.pools.split(ids)[0] for output, ids in zip(seen, _rows(records, seen), strict=True)]
    )
    logits = torch.cat(
        [torch.stack([layer["text"] for layer in output.routing.router_logits]) for output in seen], dim=1
    )
    logits = logits[:, real >= 0].double()
    probabilities = logits.softmax(-1)
    assert log["router_entropy_text"] == pytest.approx(
        torch.special.entr(probabilities).sum(-1).mean().item(), rel=1e-5
    )
    num_experts, top_k = logits.shape[-1], model.config.num_experts_per_tok
    shares = [
        num_experts
        * sum((chosen == expert).sum().item() for chosen in layer.topk(top_k).indices)
        / layer[:, :top_k].numel()
        for layer in logits
        for expert in range(num_experts)
    ]
    assert log["expert_load_highest_text"] == pytest.approx(max(shares), rel=1e-6)
    assert log["expert_load_lowest_text"] == pytest.approx(min(shares), rel=1e-6)
    assert log["experts_idle_text"] == shares.count(0)


def _rows(records, seen):
    """The `sequence_ids` of each batch, flat."""
    size = len(records) // len(seen)
    return [torch.cat([r["sequence_ids"] for r in records[i : i + size]]) for i in range(0, len(records), size)]


def test_experts_that_nobody_chooses_are_idle(tiny_model, records, trainer_of):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            router = layer.mlp.pools["text"].router
            router.weight.zero_()  # all the same: which are chosen then is the same for every token
    trainer = trainer_of(model, records(8), max_steps=1, learning_rate=0.0, log_experts=True)
    trainer.train()
    log, num_experts = trainer.state.log_history[0], model.config.expert_pools["text"]
    assert log["experts_idle_text"] == 2 * (num_experts - model.config.num_experts_per_tok)
    assert log["expert_load_lowest_text"] == 0
    assert log["expert_load_highest_text"] == num_experts / model.config.num_experts_per_tok
    assert log["router_entropy_text"] == pytest.approx(math.log(num_experts), rel=1e-6)


def test_nothing_is_counted_when_it_is_off_or_evaluates(tiny_model, records, trainer_of):
    model = tiny_model()
    trainer = trainer_of(model, records(8), records(4), max_steps=1)
    assert not model.model._forward_hooks
    trainer.train()
    assert not _of(trainer.state.log_history[0])
    figures = ExpertFigures(model, torch.device("cpu"))
    trainer.evaluate()
    assert figures.read(trainer.accelerator) == {}
