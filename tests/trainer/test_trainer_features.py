"""Token types of a user's own: batched, trained at their rates, with noise of their own."""

import torch

from modeling_rosetta import mount
from tests.modeling_rosetta.test_mounting import SPEECH
from trainer import RosettaDataCollator, diff_lr_groups, train_token_types
from trainer.flow_matching import feature_flow_targets


def _sample(index: int) -> dict:
    generator = torch.Generator().manual_seed(index)
    types = torch.tensor([0, 0, 3, 3, 3, 0, 0, 0])
    ids = torch.randint(0, 60, types.shape, generator=generator).masked_fill(types > 0, 60)
    features = torch.randn(3, 5, generator=generator)
    return {
        "input_ids": ids,
        "token_type_ids": types,
        "labels": ids.masked_fill(types > 0, -100),
        "audio_features": features,
    }


COLLATOR = RosettaDataCollator(pad_token_id=0, max_length=16, packed=True, feature_keys=("audio_features",))


def test_features_are_batched_in_the_order_of_their_tokens():
    samples = [_sample(i) for i in range(3)]
    batch = COLLATOR(samples)
    assert torch.equal(batch["audio_features"], torch.cat([s["audio_features"] for s in samples]))


def test_the_tokens_of_a_clip_share_a_time_and_velocities_are_noise_less_data():
    features, clips = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 1])
    noisy, times, velocity = feature_flow_targets(features, clips, generator=torch.Generator().manual_seed(0))
    assert times[0] == times[1] != times[2] and len(times[2:].unique()) == 1
    torch.testing.assert_close(noisy, features + times[:, None] * velocity)


def test_it_is_trained_alone_with_its_figures(tiny_model, trainer_of):
    model = mount(tiny_model(), SPEECH, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_token_types(model, "audio")
    trainer = trainer_of(model, [_sample(i) for i in range(8)], max_steps=2, per_device_train_batch_size=4)
    trainer.data_collator = COLLATOR
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("audio" in name for name in changed)
    assert any("feature_out" in name for name in changed)
    state = trainer.optimizer.state
    assert all(p.requires_grad for p in state) and all(
        p.grad is None for p in model.parameters() if not p.requires_grad
    )
    log = trainer.state.log_history[0]
    assert log["num_audio_targets"] == 12 and log["audio_loss"] > 0


def test_accumulation_gives_the_large_batch_s_weights(tiny_model, trainer_of):
    """With noise given, as drawn noise depends on the micro-batches."""
    weights = []
    for size, steps in ((4, 1), (2, 2)):
        model = mount(tiny_model(), SPEECH, 4)
        samples = [_sample(i) for i in range(4)]
        collator = RosettaDataCollator(
            0, 16, feature_keys=("audio_features", "audio_timesteps", "audio_velocity_labels")
        )
        for i, sample in enumerate(samples):
            sample["audio_timesteps"] = torch.full((3,), 0.2 * i)
            sample["audio_velocity_labels"] = torch.randn(3, 5, generator=torch.Generator().manual_seed(i))
            sample["labels"] = sample["labels"].clone()
            sample["labels"][: 2 * (i % 2)] = -100
        trainer = trainer_of(
            model,
            samples,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="adamw_torch",
            max_grad_norm=0,
        )
        model.config.router_aux_loss_coef = 0.0  # a mean within each micro-batch
        trainer.data_collator = collator
        trainer.create_optimizer()
        step, gradients = trainer.optimizer.step, {}

        def spy(*args, model=model, step=step, gradients=gradients):
            gradients |= {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            return step(*args)

        trainer.optimizer.step = spy
        trainer.train()
        weights.append(gradients)
    assert weights[0].keys() == weights[1].keys()
    for name, gradient in weights[0].items():
        torch.testing.assert_close(gradient, weights[1][name], rtol=1e-4, atol=1e-6)


def test_a_generated_type_has_the_generation_rate(tiny_model):
    model = mount(tiny_model(), SPEECH, 4)
    for projections in (False, True):
        groups = diff_lr_groups(model, model.config, 1e-5, 1e-4, latent_projections_at_generation_rate=projections)
        names = {name for group in groups if group["lr"] == 1e-4 for name, _ in group["params"]}
        assert any("pools.audio" in name for name in names)
        assert any("feature_out.audio" in name for name in names) == projections
