"""Bad input is named before any work is done; saving and loading is exact."""

import pytest
import torch

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from tests.conftest import TINY, sample, tiny_model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_type_ids": None}, "needs `token_type_ids`"),
        ({"timesteps": None}, "needs `timesteps`"),
        ({"image_grid_thw": None}, "needs `image_grid_thw`"),
        ({"timesteps": torch.rand(3)}, "`timesteps` must have shape"),
        ({"latent_grid_hw": torch.tensor([[2, 2]])}, "`noisy_latents` must have shape"),
        ({"noisy_latents": torch.randn(6, 7), "velocity_labels": None}, "`noisy_latents` must have shape"),
        ({"velocity_labels": torch.randn(5, 8)}, "`velocity_labels` of shape"),
        ({"input_ids": None}, "exactly one of"),
        ({"image_grid_thw": torch.tensor([[1, 4, 8]])}, "grid|places|positions|size"),
    ],
)
def test_bad_batches_are_named(rosetta, change, named):
    batch = {**sample("tug"), **change}
    with pytest.raises((ValueError, RuntimeError), match=named):
        rosetta(**batch)


def test_features_that_nothing_embeds_are_refused():
    text = tiny_model("moe").config.token_types[:1]
    model = RosettaForCausalLMAndImageGeneration(RosettaConfig(**TINY, token_types=text, expert_pools={"all": 4}))
    with pytest.raises(ValueError, match="no token type of this model embeds from it"):
        model(**sample("tg"))


def test_saving_and_loading_is_exact(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(a, loaded.state_dict()[k]) for k, a in model.state_dict().items())
    batch = {k: v for k, v in sample("tug").items() if "labels" not in k}
    with torch.no_grad():
        # Loaded weights lie elsewhere in memory, so that matrix products may round otherwise.
        torch.testing.assert_close(model(**batch).logits, loaded(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its successor is not in 5.17
def test_gradient_checkpointing_gives_the_same_gradients(rosetta):
    rosetta.train()
    batch = sample("tugt")
    rosetta(**batch).loss.backward()
    plain = {n: p.grad.clone() for n, p in rosetta.named_parameters()}
    rosetta.zero_grad()
    rosetta.gradient_checkpointing_enable({"use_reentrant": False})
    rosetta(**batch).loss.backward()
    assert all(torch.equal(plain[n], p.grad) for n, p in rosetta.named_parameters())


def test_return_dict_false_gives_a_tuple(rosetta):
    batch = sample("t")
    assert isinstance(rosetta(**batch, return_dict=False), tuple)
