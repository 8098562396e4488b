"""Training under FSDP2, in processes of their own. On any number of ranks it gives the weights of one process."""

import pytest
import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState
from ranks import forget_accelerator, run_on_ranks
from tiny_training import record, tiny_model, tiny_trainer, training_logs
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer import train_backbone, train_projectors
from trainer.lora import lora_config


GLOBAL_BATCH = 24


def _train(model, output_dir, *, world_size=1, accumulation=1, fsdp_config=None, resume_from=None, **arguments):
    forget_accelerator()
    settings = {
        "max_steps": 20,
        "per_device_train_batch_size": GLOBAL_BATCH // world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "generation_learning_rate": 2e-3,
        "shield_steps": 6,
        "logging_steps": 5,
        "fsdp": fsdp_config is not None,
        "fsdp_config": fsdp_config,
    }
    records = [record(index, noisy=True) for index in range(480)]  # noise differs between ranks if it is drawn there
    trainer = tiny_trainer(model, output_dir, records, **{**settings, **arguments})
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def _exact_model():
    """In float64, where AdamW does not turn the rounding of small gradients into steps. The balance loss is a mean
    within each micro-batch and would differ."""
    model = tiny_model(router_aux_loss_coef=0.0).double()
    model.set_experts_implementation({"": "eager"})
    return model


def _assert_sharded(trainer):
    assert isinstance(trainer.model, FSDPModule)
    states = trainer.optimizer.optimizer.state
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
    assert states and all(isinstance(state["exp_avg"], DTensor) for state in states.values())


def _keep_weights(trainer, file):
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        torch.save((weights, training_logs(trainer)), file)


def _difference(weights, others):
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def _train_sharded(folder, world_size, hybrid):
    for accumulation in (1, 2):
        mesh = ParallelismConfig(dp_replicate_size=2, dp_shard_size=world_size // 2) if hybrid else None
        run = {"world_size": world_size, "accumulation": accumulation, "parallelism_config": mesh, "log_experts": True}
        trainer = _train(_exact_model(), folder, fsdp_config={}, **run)
        _assert_sharded(trainer)
        assert next(trainer.model.parameters()).device_mesh.ndim == 1 + hybrid
        _keep_weights(trainer, folder / f"{accumulation}.pt")


@pytest.mark.parametrize(
    ("world_size", "hybrid"), [(2, False), (3, False), (4, True)], ids=["2 sharded", "3 sharded", "2 x 2 hybrid"]
)
def test_any_number_of_ranks_gives_the_weights_of_one_process(world_size, hybrid, tmp_path):
    alone = _train(_exact_model(), tmp_path, log_experts=True)
    expected, (first_log, *_) = alone.model.state_dict(), training_logs(alone)
    assert _difference(expected, _train(_exact_model(), tmp_path, maop=False).model.state_dict()) > 1e-3
    run_on_ranks(_train_sharded, world_size, tmp_path, world_size, hybrid)
    for accumulation in (1, 2):
        weights, log = torch.load(tmp_path / f"{accumulation}.pt")
        assert _difference(weights, expected) < 1e-5
        for name in (name for name in first_log if name.startswith(("expert", "router_entropy"))):
            assert log[0][name] == pytest.approx(first_log[name], abs=1e-5), name
        assert log[0].get("maop_fired_share") is None and log[-1]["maop_fired_share"] > 0.1


def _record_of_one_type(index: int, kind: str) -> dict:
    generator = torch.Generator().manual_seed(index)
    sample = {
        "input_ids": torch.randint(0, 60, (8,), generator=generator),
        "token_type_ids": torch.full((8,), ["text", "vit", "vae"].index(kind)),
        "labels": torch.full((8,), -100),
    }
    if kind == "text":
        sample["labels"] = sample["input_ids"].clone()
    elif kind == "vit":
        # Targets are needed here, or there would be no gradient for the ViT's projectors.
        sample["labels"][4:] = sample["input_ids"][4:]
        sample["token_type_ids"][4:] = 0
        sample["pixel_values"] = torch.randn(16, 96, generator=generator)
        sample["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    else:
        sample["latents"] = torch.randn(8, 8, generator=generator)
        sample["latent_grid_hw"] = torch.tensor([[2, 4]])
    return sample


def _train_on_types_apart(folder):
    kinds = ["text", "vit", "vae"]  # one a rank
    for freeze in (train_backbone, train_projectors):
        forget_accelerator()
        model = freeze(tiny_model())
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        records = [_record_of_one_type(index, kinds[index // 2 % 3]) for index in range(300)]
        trainer = tiny_trainer(
            model, folder, records, max_steps=50, per_device_train_batch_size=2, shield_steps=5, fsdp=True
        )
        trainer.train()
        assert trainer.state.global_step == 50
        own = next(iter(trainer.get_train_dataloader()))["token_type_ids"].unique().tolist()
        assert own == [[0], [0, 1], [2]][trainer.args.process_index]
        _assert_sharded(trainer)
        weights = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.is_world_process_zero():
            changed = {name for name, weight in before.items() if not torch.equal(weight, weights[name])}
            assert changed and changed <= trained
            assert freeze is train_backbone or changed == trained


def _evaluate_types_apart_in_bfloat16(folder):
    kinds = ["text", "text", "vit", "vae"]  # two a rank
    records = [_record_of_one_type(index, kinds[index % 4]) for index in range(16)]
    trainer = _train(
        *(tiny_model(), folder),
        **{"world_size": 2, "fsdp_config": {}, "bf16": True, "max_steps": 4, "eval_dataset": records},
        **{"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
    )
    assert len([log for log in trainer.state.log_history if "eval_loss" in log]) == 4


def test_ranks_evaluate_other_token_types_each_and_train_on(tmp_path):
    run_on_ranks(_evaluate_types_apart_in_bfloat16, 2, tmp_path)


def test_ranks_with_other_token_types_each_stay_in_step(tmp_path):
    run_on_ranks(_train_on_types_apart, 3, tmp_path)


def _train_in_bfloat16(folder):
    seen = {}
    model = tiny_model()
    layer = model.model.layers[0]
    layer.self_attn.streams["shared"].q_proj.register_forward_pre_hook(
        lambda module, _: seen.update(attention=module.weight.dtype)
    )
    layer.mlp.pools["vae"].router.register_forward_pre_hook(lambda module, _: seen.update(router=module.weight.dtype))
    trainer = _train(model, folder, world_size=2, fsdp_config={}, bf16=True, max_steps=8)
    _assert_sharded(trainer)
    assert seen == {"attention": torch.bfloat16, "router": torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert training_logs(trainer)[-1]["text_loss"] < 5
    _assert_not_rounded(trainer)


def _assert_not_rounded(trainer):
    """Losses and router logits are not rounded on their way out of the model, nor gradients between ranks."""
    policy = trainer.model._get_fsdp_state()._mp_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    for figure in (loss, outputs.text_loss, outputs.flow_loss, outputs.router_logits[0]["text"]):
        assert figure.dtype == torch.float32 and not torch.equal(figure, figure.bfloat16().float())


def test_bfloat16_leaves_routers_and_losses_in_fp32(tmp_path):
    run_on_ranks(_train_in_bfloat16, 2, tmp_path)


def _shard_on_cpu_without_help(folder):
    AcceleratorState.__init__ = AcceleratorState.__init__.__wrapped__
    with pytest.raises(ValueError, match="does not shard on 'cpu' devices"):
        _train(tiny_model(), folder, world_size=2, fsdp_config={})


def test_what_would_be_replicated_instead_of_sharded_is_refused(tmp_path):
    run_on_ranks(_shard_on_cpu_without_help, 2, tmp_path)


def _train_in_other_ways(folder):
    rank = torch.distributed.get_rank()
    for name, seed, fsdp_config in (
        ("plain", 0, {}),
        ("recomputed", 0, {"activation_checkpointing": True}),
        ("loaded on the main process only", rank, {"cpu_ram_efficient_loading": True}),
    ):
        trainer = _train(tiny_model(seed=seed), folder, world_size=2, fsdp_config=fsdp_config, max_steps=8)
        _assert_sharded(trainer)
        _keep_weights(trainer, folder / f"{name}.pt")


def test_what_saves_memory_changes_nothing(tmp_path):
    run_on_ranks(_train_in_other_ways, 2, tmp_path)
    plain, _ = torch.load(tmp_path / "plain.pt")
    for name in ("recomputed", "loaded on the main process only"):
        assert _difference(plain, torch.load(tmp_path / f"{name}.pt")[0]) == 0


def _resume_sharded(folder):
    for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        run = {"world_size": 2, "fsdp_config": {"state_dict_type": kind}, "max_steps": 10, "seed": 3}
        whole = _train(tiny_model(), folder / kind, **run, save_strategy="steps", save_steps=5)
        _keep_weights(whole, folder / f"{kind}.pt")
        resumed = _train(
            tiny_model(seed=1), folder / "resumed", **run, resume_from=str(folder / kind / "checkpoint-5")
        )
        _assert_sharded(resumed)
        _keep_weights(resumed, folder / f"{kind} resumed.pt")
        resumed.save_model(folder / f"{kind} saved")
    model = tiny_model()
    model.add_adapter(lora_config(model.config, ["attention", "pools"], r=2))
    trainer = _train(model, folder, world_size=2, fsdp_config={}, max_steps=4)
    trainer.save_model(folder / "adapter")
    _keep_weights(trainer, folder / "adapted.pt")


def test_sharded_run_resumes_to_the_bit_and_is_saved_whole(tmp_path):
    run_on_ranks(_resume_sharded, 2, tmp_path)
    for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        weights, log = torch.load(tmp_path / f"{kind}.pt")
        resumed, resumed_log = torch.load(tmp_path / f"{kind} resumed.pt")
        assert _difference(weights, resumed) == 0
        assert resumed_log == log
        saved = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / f"{kind} saved")
        assert _difference(saved.state_dict(), weights) == 0
        assert saved.config.architectures == ["RosettaForCausalLMAndImageGeneration"]
    adapted = tiny_model()
    adapted.load_adapter(tmp_path / "adapter")
    weights, _ = torch.load(tmp_path / "adapted.pt")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert _difference(adapted.state_dict(), weights) == 0
