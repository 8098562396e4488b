"""The average of the weights: what it is, that it is kept, and that it can be loaded."""

import pytest
import torch
from transformers import TrainerCallback

from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer import train_token_types


DECAY, STEPS = 0.6, 6


class Weights(TrainerCallback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.taken = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.taken.append({name: param.detach().clone() for name, param in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.on_train_begin(args, state, control, model)


@pytest.fixture
def run(tiny_model, records, trainer_of):
    def train(model=None, resume_from=None, **arguments):
        weights = Weights()
        settings = {"max_steps": STEPS, "ema_decay": DECAY, "gradient_accumulation_steps": 2, "shield_steps": 1}
        trainer = trainer_of(
            model or tiny_model(), records(8 * STEPS), callbacks=[weights], **{**settings, **arguments}
        )
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer, weights.taken

    return train


def _average(taken: list[dict]) -> dict:
    average = {name: weight.clone() for name, weight in taken[0].items()}
    for step, weights in enumerate(taken[1:], 1):
        # The first step replaces what the run started with.
        decay = 0.0 if step == 1 else min(DECAY, step / (9 + step))
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}
    return average


def test_it_is_the_average_over_the_steps(run, tmp_path):
    trainer, taken = run()
    averaged = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "ema")
    expected = _average(taken)
    weights = dict(averaged.named_parameters())
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.pools.vae.experts.down_proj"):
        assert not torch.equal(weights[name], taken[-1][name])
    assert averaged.lm_head.weight is averaged.model.embed_tokens.weight
    # Training itself is not touched.
    for name, param in trainer.model.named_parameters():
        assert torch.equal(param, taken[-1][name])


def test_a_resumed_run_goes_on_with_it_to_the_bit(run, tmp_path):
    run(save_strategy="steps", save_steps=4)
    run(resume_from=str(tmp_path / "checkpoint-4"), output_dir=tmp_path / "resumed")
    averages, resumed = (
        RosettaForCausalLMAndImageGeneration.from_pretrained(folder / "ema").state_dict()
        for folder in (tmp_path, tmp_path / "resumed")
    )
    assert all(torch.equal(average, resumed[name]) for name, average in averages.items())


def test_only_what_is_trained_is_averaged(run, tiny_model, tmp_path):
    model = train_token_types(tiny_model(), "vae")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    trainer, _ = run(model)
    assert set(trainer._average.names) == trained
    averaged = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "ema").state_dict()
    assert {name for name, weight in averaged.items() if not torch.equal(weight, before[name])} <= trained


def test_none_by_default(run, tmp_path):
    run(ema_decay=None, save_strategy="steps", save_steps=3)
    assert not (tmp_path / "ema").exists() and not list(tmp_path.glob("*/ema.safetensors"))


def test_checkpoint_without_the_average(run, tiny_model, tmp_path):
    run(ema_decay=None, save_strategy="steps", save_steps=3)
    with pytest.raises(ValueError, match="no average to go on with"):
        run(resume_from=str(tmp_path / "checkpoint-3"))
    run(save_strategy="steps", save_steps=3, output_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="is of other parameters"):
        model = tiny_model()
        model.model.norm.requires_grad_(False)
        trainer, _ = run(model, max_steps=1)
        trainer._average.start(model, str(tmp_path / "other" / "checkpoint-3"))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_its_range(decay, trainer_of, tiny_model):
    with pytest.raises(ValueError, match=rf"`ema_decay` must be None or in \[0, 1\), got {decay}"):
        trainer_of(tiny_model(), ema_decay=decay)
