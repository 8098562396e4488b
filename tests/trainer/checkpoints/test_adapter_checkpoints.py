"""Adapters go through a run's whole life: `model.add_adapter`, as the README has it, and a `PeftModel`."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_training import tiny_model, training_logs

from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer.lora import lora_config
from trainer.stages.repository import save_repository_of


STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
KINDS = ["added", "two added", "added with a head", "PeftModel", "PeftModel, named"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model that is to be adapted."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def adapted(base):
    def adapt(kind: str, **kwargs):
        torch.manual_seed(0)
        model = RosettaForCausalLMAndImageGeneration.from_pretrained(base)
        if "head" in kind:
            kwargs["modules_to_save"] = ["conv_out"]
        config = lora_config(model.config, ["attention", "pools"], r=2, **kwargs)
        if kind.startswith("PeftModel"):
            return get_peft_model(model, config, adapter_name="mine" if "named" in kind else "default")
        if kind.startswith("two"):
            model.add_adapter(lora_config(model.config, "attention", r=2), "earlier")
        model.add_adapter(config, "mine")
        return model

    return adapt


def _state(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_is_the_uninterrupted_run(kind, adapted, records, trainer_of, tmp_path):
    model = adapted(kind)
    start = _state(model)
    whole = trainer_of(model, records(16), **STEPS, ema_decay=0.5)
    whole.train()
    assert not _equal(start, _state(model))
    assert not list((tmp_path / "checkpoint-2").glob("model*.safetensors"))  # of the adapters only
    other = adapted(kind)
    resumed = trainer_of(other, records(16), **STEPS, ema_decay=0.5, output_dir=tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4 and _equal(_state(other), _state(model))
    assert training_logs(resumed) == training_logs(whole)
    for one, two in zip(whole._average.ema.shadow_params, resumed._average.ema.shadow_params, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_is_loaded_in_the_end(kind, adapted, records, trainer_of, tmp_path):
    model = adapted(kind)
    trainer = trainer_of(
        model,
        records(16),
        records(4),
        **STEPS,
        eval_strategy="steps",
        eval_steps=1,
        greater_is_better=True,  # so that an early one is
        load_best_model_at_end=True,
        save_total_limit=2,
    )
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    best = losses.index(max(losses)) + 1
    assert best < 4 and trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), abs=1e-6)


@pytest.mark.parametrize("kind", ["added", "added with a head", "PeftModel"])
def test_what_is_saved_loads_on_the_base_model(kind, adapted, base, records, trainer_of, tmp_path):
    model = adapted(kind)
    trainer = trainer_of(model, records(16), **STEPS, ema_decay=0.5)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    inputs = {"input_ids": torch.arange(8)[None]}
    model.eval()
    for folder in ("saved", "checkpoint-4"):
        fresh = RosettaForCausalLMAndImageGeneration.from_pretrained(base)
        loaded = PeftModel.from_pretrained(fresh, tmp_path / folder).eval()
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    averaged = load_file(tmp_path / "ema" / "adapter_model.safetensors")
    trained = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert averaged.keys() == trained.keys() and not _equal(averaged, trained)
    if kind == "added":
        again = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "saved").eval()  # on the base it names
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused_before_any_work(adapted, records, trainer_of, tmp_path):
    trainer_of(adapted("added"), records(16), **STEPS).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"`adapters\.mine\.lora_alpha` must be what it was .* 8, got 16"):
        trainer_of(adapted("added", lora_alpha=16), records(16), **STEPS).train(resume_from_checkpoint=checkpoint)
    (tmp_path / "checkpoint-2" / "run.json").unlink()  # as checkpoints of old
    with pytest.raises(ValueError, match="its adapter 'mine' is not the checkpoint's: .* has the shape"):
        other = adapted("added", rank_pattern={"q_proj": 3})
        trainer_of(other, records(16), **STEPS).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="`model` has an adapter 'earlier', the checkpoint has none"):
        trainer_of(adapted("two added"), records(16), **STEPS).train(resume_from_checkpoint=checkpoint)


def test_a_repository_of_adapters_alone_is_refused(adapted, records, trainer_of, tmp_path):
    for kind in ("added", "PeftModel"):
        with pytest.raises(ValueError, match="`trainer.model` has adapters"):
            save_repository_of(trainer_of(adapted(kind), records(4)), tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_what_is_trained_beside_adapters_would_be_lost(adapted, records, trainer_of):
    model = adapted("added")
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is trained beside the adapters"):
        trainer_of(model, records(16)).train()
