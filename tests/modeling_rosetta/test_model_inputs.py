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
        ({"pixel_values": None}, "`image_grid_thw` needs `pixel_values`"),
        ({"noisy_latents": None, "velocity_labels": None}, "`latent_grid_hw` needs `noisy_latents`"),
        ({"token_type_ids": torch.zeros(2, 5, dtype=torch.long)}, "`token_type_ids` must have shape"),
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
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "frozen",
    [(), ("embed_tokens", "visual", "latent_in"), ("embed_tokens", "patch_embed", "pos_embed")],
    ids=["all-trained", "embeddings-frozen", "start-of-the-vit-frozen"],
)
@pytest.mark.parametrize("loss", ["loss", "aux_loss"])
def test_gradient_checkpointing_gives_the_same_gradients(model, use_reentrant, frozen, loss):
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))

    def gradients() -> dict:
        model.zero_grad()
        getattr(model(**sample("tugt")), loss).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    plain = gradients()
    assert any("router" in name for name in plain)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["pixel_value", "latent", "audio_features", "cu_seq_lens_q"])
def test_unknown_arguments_are_refused(rosetta, name):
    for forward in (rosetta, rosetta.model):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            forward(input_ids=torch.tensor([[1, 2]]), **{name: torch.zeros(1)})


def test_what_transformers_gives_to_all_models_is_taken(rosetta):
    ids = torch.tensor([[1, 2, 3]])
    expected = rosetta(ids).logits
    given = {"num_items_in_batch": 3, "cache_position": torch.arange(3), "output_attentions": False}
    given |= {"output_hidden_states": None, "pixel_values_videos": None, "logits_to_keep": 0, "return_dict": True}
    assert torch.equal(rosetta(ids, **given).logits, expected)


@torch.no_grad()
def test_embeddings_tell_where_the_time_stands():
    model = tiny_model(timestep_token_id=111)
    batch = {k: v for k, v in sample("tgtg").items() if "labels" not in k}
    batch["input_ids"][0, [3, 13]] = 111
    expected = model(**batch).velocity
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    torch.testing.assert_close(model(**batch, inputs_embeds=embeds).velocity, expected)


def test_a_timestep_token_without_an_image_is_text_in_training_too():
    model, ids = tiny_model(timestep_token_id=111), torch.tensor([[3, 111, 5, 111]])
    loss = model(input_ids=ids, labels=ids).text_loss
    torch.testing.assert_close(model.train()(input_ids=ids, labels=ids).text_loss, loss)


def test_return_dict_false_gives_a_tuple(rosetta):
    batch = sample("t")
    assert isinstance(rosetta(**batch, return_dict=False), tuple)


def test_patches_that_do_not_fit_their_grids_are_refused(rosetta):
    batch = sample("tu")
    batch["pixel_values"] = batch["pixel_values"][:-1]
    with pytest.raises(ValueError, match="`pixel_values` must have .* patches, as `image_grid_thw` says, got"):
        rosetta(**batch)
