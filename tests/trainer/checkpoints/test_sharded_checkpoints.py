"""Checkpoints, averages, carried states and skipped steps when the model is in shards on two ranks."""

import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from ranks import forget_accelerator, run_on_ranks
from safetensors.torch import load_file
from tiny_training import record, tiny_model, tiny_trainer, training_logs
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer import last_complete_checkpoint
from trainer.checkpoints.folders import SAVING
from trainer.lora import lora_config


KINDS = ("SHARDED_STATE_DICT", "FULL_STATE_DICT")


class StateAtTheStart(TrainerCallback):
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.carried = {}
        for group in optimizer.param_groups:
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if state := optimizer.state.get(param):
                    assert isinstance(state["exp_avg"], DTensor)
                    whole = state["exp_avg"].full_tensor(), state["exp_avg_sq"].full_tensor(), state["step"]
                    self.carried[name] = [value.clone() for value in whole]


def _trainer(folder, kind, records=None, callbacks=None, **arguments):
    forget_accelerator()
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "shield_steps": 1,
        "fsdp": kind is not None,
        "fsdp_config": None if kind is None else {"state_dict_type": kind},
    }
    records = records or [record(index, noisy=True) for index in range(48)]
    return tiny_trainer(tiny_model(), folder, records, callbacks=callbacks, **{**settings, **arguments})


def _skip_on_one_rank(folder):
    """A velocity that only one of the two ranks gets is not a number."""
    records = [record(index, noisy=True) for index in range(48)]
    records[12]["velocity_labels"] = torch.full_like(records[12]["velocity_labels"], math.nan)  # of the second step
    for kind in (None, *KINDS[:1]):
        trainer = _trainer(folder / "skipped", kind, records, save_strategy="no")
        trainer.train()
        weights = trainer.accelerator.get_state_dict(trainer.model)
        steps = {float(state["step"]) for state in trainer.optimizer.optimizer.state.values()}
        torch.save(
            (training_logs(trainer), weights, steps), folder / f"skipped {kind} {trainer.args.process_index}.pt"
        )


def _save_and_resume(folder):
    anchor = {"anchor_strength": 100.0, "anchor_importance_from": str(folder / "one process" / "checkpoint-4")}
    for kind in KINDS:
        whole = _trainer(folder / kind, kind, ema_decay=0.5, **anchor)
        whole.train()
        resumed = _trainer(folder / f"{kind} resumed", kind, ema_decay=0.5, **anchor)
        resumed.train(resume_from_checkpoint=str(folder / kind / "checkpoint-2"))
        for one, other in zip(whole._average.ema.shadow_params, resumed._average.ema.shadow_params, strict=True):
            assert isinstance(one, DTensor) and torch.equal(one.to_local(), other.to_local())


def _carry_over(folder):
    for kind, source in ((KINDS[0], KINDS[0]), (KINDS[1], KINDS[0]), (KINDS[0], KINDS[1]), (KINDS[0], "one process")):
        start = StateAtTheStart()
        origin = str(folder / source / "checkpoint-4")
        stage = {"optimizer_state_from": origin, "max_steps": 1, "save_strategy": "no"}
        stage |= {"anchor_strength": 1.0, "anchor_importance_from": origin}
        trainer = _trainer(folder / "next", kind, callbacks=[start], **stage)
        trainer.train()
        if trainer.is_world_process_zero():
            torch.save(start.carried, folder / f"{kind} from {source}.pt")
            (folder / f"anchor {kind} from {source}").mkdir()
        trainer.accelerator.wait_for_everyone()
        trainer._anchor.save(folder / f"anchor {kind} from {source}", trainer.is_world_process_zero())


def _adapted(base, wrapped: bool):
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(base)
    torch.manual_seed(0)
    head = {"modules_to_save": ["conv_out"]} if wrapped else {}
    config = lora_config(model.config, ["attention", "pools"], r=2, **head)
    if wrapped:
        return get_peft_model(model, config)
    model.add_adapter(config)
    return model


def _adapters_and_the_best(folder):
    """In each format: adapters, of which the first checkpoint is the "best", then the same again from there."""
    for kind, wrapped in zip(KINDS, (False, True), strict=True):
        results = []
        for resumed in (False, True):
            forget_accelerator()
            trainer = tiny_trainer(
                _adapted(folder / "base", wrapped),
                folder / f"adapters {kind}" / str(resumed),
                [record(index, noisy=True) for index in range(24)],
                [record(index, noisy=True) for index in range(8)],
                max_steps=3,
                save_strategy="steps",
                save_steps=1,
                eval_strategy="steps",
                eval_steps=1,
                load_best_model_at_end=True,
                greater_is_better=True,
                save_total_limit=2,
                fsdp=True,
                fsdp_config={"state_dict_type": kind},
            )
            first = folder / f"adapters {kind}" / "False" / "checkpoint-1"
            trainer.train(resume_from_checkpoint=str(first) if resumed else None)
            losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
            results.append((losses, trainer.evaluate()["eval_loss"], trainer.state.best_model_checkpoint))
            trainer.save_model(str(folder / f"adapters {kind}" / "saved"))
        if trainer.is_world_process_zero():
            torch.save(results, folder / f"adapters {kind}.pt")


def _train_on_both_ranks(folder):
    _skip_on_one_rank(folder)
    _save_and_resume(folder)
    _carry_over(folder)
    _adapters_and_the_best(folder)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Where the runs of two ranks, and one of a single process with the same batches, left their files."""
    folder = tmp_path_factory.mktemp("sharded")
    _trainer(folder / "one process", None, per_device_train_batch_size=8).train()
    tiny_model().save_pretrained(folder / "base")
    run_on_ranks(_train_on_both_ranks, 2, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_resumed_and_the_best_ones_are_kept_and_loaded(kind, outputs):
    (losses, in_the_end, best), resumed = torch.load(outputs / f"adapters {kind}.pt")
    first = outputs / f"adapters {kind}" / "False" / "checkpoint-1"
    assert best == str(first) and max(losses) == losses[0]
    assert in_the_end == pytest.approx(losses[0], abs=1e-6)
    assert resumed[0] == pytest.approx(losses, abs=1e-6) and resumed[1] == pytest.approx(losses[0], abs=1e-6)
    assert {path.name for path in first.parent.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    base = RosettaForCausalLMAndImageGeneration.from_pretrained(outputs / "base")
    PeftModel.from_pretrained(base, outputs / f"adapters {kind}" / "saved")


@pytest.mark.parametrize("kind", [None, *KINDS[:1]])
def test_all_ranks_skip_what_one_cannot_use(kind, outputs):
    for rank in range(2):
        logs, weights, steps = torch.load(outputs / f"skipped {kind} {rank}.pt")
        assert [log["nonfinite_steps"] for log in logs] == [0, 1, 1, 1]
        assert all(weight.isfinite().all() for weight in weights.values())
        assert steps == {3.0}


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_sharded_and_saved_whole(kind, outputs):
    folder = outputs / kind
    assert not (folder / SAVING).exists()
    assert last_complete_checkpoint(folder).endswith("checkpoint-4")
    for rank in range(2):
        assert (folder / "checkpoint-4" / f"rng_state_{rank}.pth").exists()
    saved = load_file(folder / "checkpoint-4" / "ema.safetensors")
    averaged = dict(RosettaForCausalLMAndImageGeneration.from_pretrained(folder / "ema").named_parameters())
    assert len(saved) > 50 and all(torch.equal(average, averaged[name]) for name, average in saved.items())


@pytest.mark.parametrize(
    ("kind", "source"), [(KINDS[0], KINDS[0]), (KINDS[1], KINDS[0]), (KINDS[0], KINDS[1]), (KINDS[0], "one process")]
)
def test_optimizer_state_is_carried_over_between_all_formats(kind, source, outputs):
    if source == "one process":
        stored = torch.load(outputs / source / "checkpoint-4" / "optimizer.pt")
        names = [name for group in stored["param_groups"] for name in group["param_names"]]
        expected = {name: stored["state"][index] for index, name in enumerate(names)}
    else:  # both were trained in the same way
        expected = torch.load(outputs / KINDS[1] / "checkpoint-4" / "optimizer.bin")["state"]
    carried = torch.load(outputs / f"{kind} from {source}.pt")
    assert carried.keys() == expected.keys()
    for name, (average, square, step) in carried.items():
        assert torch.equal(average, expected[name]["exp_avg"]) and torch.equal(square, expected[name]["exp_avg_sq"])
        assert step == 4
    anchor = load_file(outputs / f"anchor {kind} from {source}" / "anchor.safetensors")
    mean = torch.cat([state["exp_avg_sq"].flatten() for state in expected.values()]).double().mean()
    assert {name.removeprefix("start.") for name in anchor if name.startswith("start.")} == expected.keys()
    for name, state in expected.items():
        relative = (state["exp_avg_sq"] / mean).float()
        torch.testing.assert_close(anchor[f"importance.{name}"], relative, rtol=1e-5, atol=1e-12)
