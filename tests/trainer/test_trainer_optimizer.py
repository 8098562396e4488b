"""How the arguments of the trainer reach its optimizer."""

import pytest
import torch
from tiny_training import collate

from trainer import MAOPAdamW, RosettaTrainer, RosettaTrainingArguments


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


def _rosetta_trainer(model, folder, records=None, **kwargs):
    settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "max_steps": 2}
    own = {name: kwargs.pop(name) for name in ("optimizers", "optimizer_cls_and_kwargs") if name in kwargs}
    arguments = RosettaTrainingArguments(str(folder), logging_steps=1, save_strategy="no", **{**settings, **kwargs})
    return RosettaTrainer(model, arguments, train_dataset=records, data_collator=collate, **own)


@pytest.mark.parametrize("by_argument", [True, False])
def test_an_optimizer_of_ones_own(by_argument, tiny_model, records, tmp_path, caplog):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    given = {"optimizers": (optimizer, None)} if by_argument else {}
    trainer = _rosetta_trainer(model, tmp_path, records(8), shield_steps=1, lr_scheduler_type="constant", **given)
    if not by_argument:
        trainer.optimizer = optimizer
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["learning_rate_0"] == 0.25
    assert not any(name.startswith("maop") for name in log)
    assert caplog.text.count("SGD projects no gradients: `maop` has no effect") == 1


def test_a_class_of_ones_own_trains_with_its_arguments(tiny_model, records, tmp_path, caplog):
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for rate in (0.0, 0.1):
        chosen = (torch.optim.SGD, {"lr": rate, "momentum": 0.5})
        settings = {"maop": False, "lr_scheduler_type": "constant", "optimizer_cls_and_kwargs": chosen}
        trainer = _rosetta_trainer(model, tmp_path, records(8), **settings)
        trainer.train()
        assert type(trainer._plain_optimizer) is torch.optim.SGD
        assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.5}
        assert trainer.state.log_history[0]["learning_rate_base"] == rate
        changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
        assert bool(changed) == bool(rate)
    assert chosen == (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})
    assert "projects no gradients" not in caplog.text


def test_a_class_of_ones_own_gets_the_groups_of_diff_lr(tiny_model, tmp_path):
    chosen = (MAOPAdamW, {"lr": 0.5, "weight_decay": 0.2})
    trainer = _rosetta_trainer(tiny_model(), tmp_path, generation_learning_rate=0.25, optimizer_cls_and_kwargs=chosen)
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "base": 0.5,
        "base_no_decay": 0.5,
        "shared_expert": 0.5,
        "generation": 0.25,
    }
    assert [name for name, group in groups.items() if group["maop"]] == ["shared_expert"]
    assert {group["weight_decay"] for group in groups.values()} == {0.2, 0.0}


def test_groups_of_ones_own(tiny_model, tmp_path):
    model = tiny_model()
    groups = [{"params": list(model.lm_head.parameters()), "lr": 0.5}]
    trainer = _rosetta_trainer(model, tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {"params": groups}))
    (group,) = trainer.create_optimizer().param_groups
    assert group["lr"] == 0.5 and group["params"] == groups[0]["params"]
