"""How the arguments of the trainer reach its optimizer."""

import pytest
import torch

from trainer import MAOPAdamW


@pytest.fixture
def groups_of(tiny_model, trainer_of):
    def build(**arguments):
        optimizer = trainer_of(tiny_model(), **arguments).create_optimizer()
        assert isinstance(optimizer, MAOPAdamW)
        return {group["name"]: group for group in optimizer.param_groups}

    return build


def test_defaults(groups_of):
    groups = groups_of(learning_rate=1e-3)
    assert list(groups) == ["base", "base_no_decay", "shared_expert", "generation"]
    assert {group["lr"] for group in groups.values()} == {1e-3}
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.0, 0.1, 0.1]
    assert all(group["betas"] == (0.9, 0.95) and group["fused"] for group in groups.values())


def test_generation_rate(groups_of):
    groups = groups_of(learning_rate=1e-3, generation_learning_rate=1e-2, latent_projections_at_generation_rate=True)
    assert {name: group["lr"] for name, group in groups.items() if group["lr"] != 1e-3}.keys() == {
        "generation",
        "generation_no_decay",
    }
    assert any("latent_in" in name for name in groups["generation"]["param_names"])


def test_decay_of_all(groups_of):
    assert list(groups_of(decay_all_parameters=True)) == ["base", "shared_expert", "generation"]


def test_only_the_shared_expert_of_text_is_projected(tiny_model, trainer_of):
    model = tiny_model()
    optimizer = trainer_of(model, maop_granularity="layer").create_optimizer()
    assert optimizer.defaults["maop_granularity"] == "layer"
    (group,) = [group for group in optimizer.param_groups if group["maop"]]
    assert all("mlp.shared_experts.global" in name for name in group["param_names"])
    assert len(group["params"]) == 3 * model.config.num_hidden_layers


def test_an_optimizer_of_ones_own(tiny_model, records, trainer_of):
    model = tiny_model()
    trainer = trainer_of(model, records(8), max_steps=2, shield_steps=1)
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["learning_rate_0"] == 0.25
    assert not any(name.startswith("maop") for name in log)
