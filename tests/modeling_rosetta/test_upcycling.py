"""Upcycling and the paper's three stages, against the authors' conversion scripts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from modeling_rosetta import (
    RosettaConfig,
    RosettaForCausalLMAndImageGeneration,
    mount,
    text_config_from_dense,
    upcycle,
    upcycling_rules,
)
from modeling_rosetta.modeling_rosetta import RosettaVisionModel
from tests.conftest import CONFIGS, TINY


AUTHORS = load_file(Path(__file__).parents[1] / "fixtures" / "upcycling.safetensors")
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
NUM_EXPERTS = {"rosetta": 3, "moe": 12, "mot": 7}
VISION = {**TINY["vision_config"], "out_hidden_size": 16}


def authors(prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in AUTHORS.items() if k.startswith(f"{prefix}.")}


def dense_model(**changes) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "tie_word_embeddings": True, **changes})).eval()


def authors_dense() -> Qwen3ForCausalLM:
    model = dense_model()
    model.load_state_dict(authors("dense"), strict=False)
    model.tie_weights()
    return model


def stages(architecture: str, num_stages: int, trained: str | None = None) -> RosettaForCausalLMAndImageGeneration:
    dense = authors_dense()
    full = CONFIGS[architecture](**SIZES, vision_config=VISION)
    text, vit, vae = full.token_types
    config = text_config_from_dense(
        dense.config, token_types=[text], expert_pools={text["expert_pool"]: NUM_EXPERTS[architecture]}
    )
    config.image_token_id = 47
    model = upcycle(dense, config)
    if trained is not None:  # the stage before, which the scripts went on from
        for name, value in authors(trained).items():
            ours(model, name, {"wg": (text["expert_pool"], 0)}, text["attention_stream"], text["shared_expert"]).copy_(
                value
            )
    if num_stages > 1:
        number = 3 if architecture == "rosetta" else None
        mount(model, vit, number, vision_tower=RosettaVisionModel._from_config(full.vision_config))
    if num_stages > 2:
        number = None if architecture == "moe" else 6
        # The latent blocks do not go into 16 channels, and are none of the scripts' business.
        mount(model, {**vae, "embeds_from": "vae_features", "feature_size": 8}, number)
    return model


def ours(model, name: str, pools: dict[str, tuple[str, int]], stream: str, shared: str) -> torch.Tensor:
    """Our weight of an authors' name. `pools`: for each of their routers, our pool and its first expert's number."""
    gen = "_mot_gen" in name
    at, own = ("gen" if gen else stream), name.replace("_mot_gen", "")
    own = own.replace("query_layernorm", "q_norm").replace("key_layernorm", "k_norm")
    own = own.replace("self_attn.", f"self_attn.streams.{at}.")
    for norm in ("input_layernorm", "post_attention_layernorm"):
        own = own.replace(f"{norm}.", f"{norm}.{at}.")
    own = own.replace("mlp.shared_mlp", f"mlp.shared_experts.{'gen' if gen else shared}")
    layer, _, rest = own.partition("mlp.gate.")
    if rest:
        router = ("gen:" if gen else "") + rest.split(".")[0]
        own = f"{layer}mlp.pools.{pools[router][0]}.router.weight"
    layer, _, rest = own.partition("mlp.experts.")
    if not rest:
        return model.state_dict()[own]
    number, weight, _ = rest.split(".")
    group = [pool for router, pool in pools.items() if router.startswith("gen:") == gen]
    pool, first = max((p for p in group if p[1] <= int(number)), key=lambda p: p[1])
    experts = f"{layer}mlp.pools.{pool}.experts"
    if weight == "down_proj":
        return model.state_dict()[f"{experts}.down_proj"][int(number) - first]
    return model.state_dict()[f"{experts}.gate_up_proj"][int(number) - first].chunk(2)[int(weight == "up_proj")]


def compare(model, theirs: dict[str, torch.Tensor], *names) -> int:
    for name, value in theirs.items():
        assert torch.equal(ours(model, name, *names), value), name
    return len(theirs)


def test_stage_0_is_the_authors():
    assert compare(stages("rosetta", 1), authors("stage0_ours"), {"wg": ("text", 0)}, "shared", "global") > 40


@pytest.mark.parametrize("architecture", ["moe", "mot"])
def test_stage_0_routers_of_the_baselines_are_the_authors(architecture):
    pool = "all" if architecture == "moe" else "und"
    assert (
        compare(stages(architecture, 1), authors(f"stage0_{architecture}_routers"), {"wg": (pool, 0)}, "-", "-") == 2
    )


def test_stage_2_is_the_authors():
    pools = {"wg_text": ("text", 0), "wg_vit": ("vit", 3), "wg_vae": ("vae", 6)}
    model = stages("rosetta", 3, trained="stage1_ours")
    assert compare(model, authors("stage2_ours"), pools, "shared", "global") == 12
    assert compare(model, authors("stage2_ours_router_and_spot"), pools, "shared", "global") >= 6


def test_the_generation_stream_of_mot_is_the_authors_but_for_its_router():
    """Theirs starts at zero, though the paper says that it is copied with the experts (C.1.3); ours is copied."""
    theirs = authors("mot_stage3")
    zeros = [name for name in theirs if "mlp_mot_gen.gate" in name]
    assert zeros and not any(theirs.pop(name).any() for name in zeros)
    model = stages("mot", 3, trained="mot_stage2")
    assert compare(model, theirs, {"wg": ("und", 0), "gen:wg": ("gen", 0)}, "und", "und") > 20
    pools = model.model.layers[0].mlp.pools
    assert torch.equal(pools["gen"].router.weight, pools["und"].router.weight[:6])


IDS = torch.arange(12)[None] % 48


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_checkpoint_is_upcycled_tied_or_untied_and_sharded(architecture, tied, tmp_path):
    dense = dense_model(tie_word_embeddings=tied)
    dense.save_pretrained(tmp_path / "dense", max_shard_size="4KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    text = CONFIGS[architecture](**SIZES, vision_config=VISION).token_types[0]
    config = text_config_from_dense(
        dense.config, token_types=[text], expert_pools={text["expert_pool"]: NUM_EXPERTS[architecture]}
    )
    model = upcycle(tmp_path / "dense", config).eval()
    in_memory = upcycle(dense, config).state_dict()
    assert all(torch.equal(value, in_memory[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path / "rosetta")
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "rosetta")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    torch.testing.assert_close(loaded(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_vocabulary_rows_leave_the_old_ones_alone(tied):
    dense = dense_model(tie_word_embeddings=tied, initializer_range=1.0)
    model = upcycle(dense, text_config_from_dense(dense.config, vocab_size=60)).eval()
    ours, theirs = model(IDS).logits, dense(IDS).logits
    torch.testing.assert_close(ours[..., :48], theirs, rtol=1e-4, atol=1e-3)
    assert ours.softmax(-1)[..., 48:].sum(-1).max() <= 12 / 60 + 1e-6  # their share, whatever the input


def test_upcycling_keeps_the_dtype_or_takes_the_one_asked_for(tmp_path):
    dense = dense_model().to(torch.bfloat16)
    dense.save_pretrained(tmp_path)
    assert upcycle(dense).dtype == upcycle(tmp_path).dtype == torch.bfloat16
    assert upcycle(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_rules_name_every_parameter_and_only_tensors_that_are_there():
    dense = dense_model(tie_word_embeddings=False, attention_bias=True)
    config = text_config_from_dense(dense.config)
    rules = upcycling_rules(dense.config, config)
    assert set(rules) == set(RosettaForCausalLMAndImageGeneration(config).state_dict())
    assert {source for rule in rules.values() for source in rule.sources} == set(dense.state_dict())


@pytest.mark.parametrize(
    ("dense_fields", "named"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "scaled positions"),
        ({"use_sliding_window": True}, "sliding windows"),
    ],
)
def test_dense_models_that_rosetta_cannot_be_are_refused(dense_fields, named):
    with pytest.raises(ValueError, match=named):
        text_config_from_dense(Qwen3Config(**SIZES, **dense_fields))


def test_what_does_not_fit_is_refused(tmp_path):
    dense = dense_model()
    fitting = text_config_from_dense(dense.config)
    with pytest.raises(ValueError, match="`config.vocab_size` must be at least"):
        upcycle(dense, text_config_from_dense(dense.config, vocab_size=47))
    with pytest.raises(ValueError, match="text as its only token type"):
        upcycle(dense, RosettaConfig(**SIZES, vision_config=VISION))
    fitting.num_key_value_heads = 2
    with pytest.raises(ValueError, match="`config.num_key_value_heads` must be 1"):
        upcycle(dense, fitting)
    with pytest.raises(ValueError, match="must be a Qwen3"):
        text_config_from_dense(RosettaConfig())
    with pytest.raises(OSError):
        upcycle(tmp_path / "nowhere")
