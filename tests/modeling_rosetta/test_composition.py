"""Upcycling keeps the dense model's logits; mounting keeps everything that was there before."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from modeling_rosetta.composition_rosetta import mount
from modeling_rosetta.modeling_rosetta import RosettaVisionModel
from modeling_rosetta.upcycling_rosetta import text_config_from_dense, upcycle
from tests.conftest import CONFIGS, TINY, sample


@pytest.fixture
def dense() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {field: TINY[field] for field in (*fields, "head_dim", "initializer_range")}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=100, tie_word_embeddings=True, **config)).eval()


def text_type(architecture: str) -> dict:
    return CONFIGS[architecture](**TINY).token_types[0]


def composed(dense, architecture: str) -> RosettaForCausalLMAndImageGeneration:
    """The paper's three stages, without training."""
    target = CONFIGS[architecture](**TINY)
    text, vit, vae = target.token_types
    pools = target.expert_pools
    sizes = {k: TINY[k] for k in ("vocab_size", "image_token_id", "vision_start_token_id", "vision_end_token_id")}
    config = text_config_from_dense(
        dense.config, token_types=[text], expert_pools={text["expert_pool"]: pools[text["expert_pool"]]}, **sizes
    )
    torch.manual_seed(1)
    model = upcycle(dense, config).eval()
    tower = RosettaVisionModel._from_config(target.vision_config)
    new_pool = None if vit["expert_pool"] == text["expert_pool"] else pools["vit"]
    mount(model, vit, num_experts=new_pool, vision_tower=tower)
    new_pool = None if vae["expert_pool"] == text["expert_pool"] else pools[vae["expert_pool"]]
    return mount(model, vae, num_experts=new_pool, latent_channels=8, latent_hidden_size=64)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_upcycled_logits_are_the_dense_ones_also_after_mounting(dense, architecture):
    ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    model = composed(dense, architecture)
    assert model.config.pools == CONFIGS[architecture](**TINY).pools
    torch.testing.assert_close(model(ids).logits[..., :100], dense(ids).logits, rtol=0, atol=2e-5)
    assert model.model.embed_tokens.weight[100:].std() < 0.5


def test_without_shared_expert_the_routed_ones_keep_the_magnitude(dense):
    ids = torch.arange(12)[None]
    types = [{**text_type("rosetta"), "shared_expert": None}]
    model = upcycle(dense, text_config_from_dense(dense.config, token_types=types)).eval()
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=0, atol=2e-5)


def test_experts_and_their_router_rows_are_repeated_in_order(dense):
    pools = composed(dense, "rosetta").model.layers[1].mlp.pools
    text, vae = pools["text"], pools["vae"]
    assert torch.equal(vae.router.weight, torch.cat([text.router.weight, text.router.weight]))
    assert torch.equal(vae.experts.gate_up_proj, torch.cat([text.experts.gate_up_proj] * 2))
    gen, und = (composed(dense, "mot").model.layers[1].mlp.pools[name] for name in ("gen", "und"))
    assert torch.equal(gen.router.weight, und.router.weight[:6])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_mounted_model_is_the_model_built_at_once(dense, architecture, tmp_path):
    """Same parameters in the same order, so that optimizer states fit; saved and loaded, the same numbers."""
    model = composed(dense, architecture)
    model.save_pretrained(tmp_path)
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, loaded.state_dict()[k]) for k, a in model.state_dict().items())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in loaded.named_parameters()]
    batch = {k: v for k, v in sample("tugt").items() if "labels" not in k}
    with torch.no_grad():
        ours, theirs = model(**batch), loaded(**batch)
    # Loaded weights lie elsewhere in memory, so that matrix products may round otherwise.
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.velocity, theirs.velocity, rtol=0, atol=1e-5)
    model.train()
    model(**sample("tugt")).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_type": {"name": "text"}}, "mounted already"),
        ({"init_from": "audio"}, "`init_from` must be one of"),
        ({"num_experts": None}, "needs `num_experts`"),
        ({"num_experts": 1}, "fewer than"),
        ({"vision_tower": object()}, "`vision_tower` goes with"),
    ],
)
def test_bad_mounts_are_refused_before_any_change(dense, change, named):
    model = upcycle(dense, text_config_from_dense(dense.config))
    before, config = {k: v.clone() for k, v in model.state_dict().items()}, model.config.to_dict()
    vae = {**RosettaConfig(**TINY).token_types[2], **change.pop("token_type", {})}
    with pytest.raises(Exception, match=named):
        mount(model, vae, **{"num_experts": 6, "latent_channels": 8, "latent_hidden_size": 64, **change})
    after = model.state_dict()
    assert model.config.to_dict() == config and before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_bad_upcycling_is_refused(dense):
    with pytest.raises(ValueError, match="`config.vocab_size` must be at least"):
        upcycle(dense, text_config_from_dense(dense.config, vocab_size=99))
    with pytest.raises(ValueError, match="text as its only token type"):
        upcycle(dense, RosettaConfig(**TINY))
