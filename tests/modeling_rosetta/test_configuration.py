"""The configuration space holds the paper's three models and refuses what does not fit together."""

import pytest
import torch

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from tests.conftest import CONFIGS, TINY


# Parameters of the authors' released models; the paper's Table 4 rounds them to 129.0M, 129.0M and 154.2M a layer,
# 3612M, 3612M and 4318M a backbone, 3.77B, 3.77B and 4.48B in all. (4318M is 28 times 154.2M, rounded before.)
PER_LAYER = {"rosetta": 128_989_440, "moe": 128_989_440, "mot": 154_158_592}
TOTAL = {"rosetta": 3_772_902_400, "moe": 3_772_902_400, "mot": 4_477_638_656}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_parameter_counts_of_table_4(architecture):
    config = CONFIGS[architecture]()
    with torch.device("meta"):
        model = RosettaForCausalLMAndImageGeneration(config)
    layers, embedding = model.model.layers, model.model.embed_tokens
    assert count(layers[0]) == PER_LAYER[architecture]
    assert count(layers) == 28 * PER_LAYER[architecture]
    assert count(embedding) == 161_198_080
    assert count(layers) + count(embedding) == TOTAL[architecture]
    assert model.lm_head.weight.shape == embedding.weight.shape and config.tie_word_embeddings
    # Outside the table: the latent projections with their time embeddings, and the ViT.
    assert count(model.model.latent_in) + count(model.latent_out) == 46_947_456
    assert count(model.model.visual) == 519_752_944


@pytest.mark.parametrize("architecture", CONFIGS)
def test_active_parameters_of_table_4(architecture):
    """One attention stream, one shared expert and two routed experts a token: ~0.97B."""
    with torch.device("meta"):
        model = RosettaForCausalLMAndImageGeneration(CONFIGS[architecture]())
    layer = model.model.layers[0]
    for token_type in model.config.token_types:
        stream = layer.self_attn.streams[token_type["attention_stream"]]
        projections = sum(count(m) for m in (stream.q_proj, stream.k_proj, stream.v_proj, stream.o_proj))
        experts = layer.mlp.pools[token_type["expert_pool"]].experts
        routed = count(experts) // experts.num_experts * model.config.num_experts_per_tok
        active = projections + count(layer.mlp.shared_experts[token_type["shared_expert"]]) + routed
        assert 28 * active == 968_884_224


@pytest.mark.parametrize("architecture", CONFIGS)
def test_saved_configuration_is_the_same(architecture, tmp_path):
    config = CONFIGS[architecture](**TINY)
    config.save_pretrained(tmp_path)
    loaded = RosettaConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.pools == config.pools  # JSON sorts the keys of `expert_pools`; the order is the token types'


def test_ablations_are_values_of_the_configuration():
    types = [{**t, "shared_expert": None} for t in RosettaConfig().token_types]
    config = RosettaConfig(**TINY, token_types=types, expert_pools={"text": 3, "vit": 3, "vae": 10})
    model = RosettaForCausalLMAndImageGeneration(config)
    assert len(model.model.layers[0].mlp.shared_experts) == 0
    assert model.model.layers[0].mlp.pools["vae"].experts.down_proj.shape[0] == 10
    ids = torch.arange(6)[None]
    assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"expert_pools": {"text": 3, "vit": 3, "vae": 1}}, "'vae' has 1 experts"),
        ({"expert_pools": {"text": 3}}, "`expert_pools` must give"),
        ({"token_types": []}, "first token type"),
        ({"token_types": [{"name": "text"}]}, "exactly the keys"),
        ({"vision_config": {"out_hidden_size": 7}}, "`vision_config.out_hidden_size` must equal"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}}, "must sum to"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_bad_configurations_are_named(fields, named):
    with pytest.raises(Exception, match=named):
        RosettaConfig(**fields)
