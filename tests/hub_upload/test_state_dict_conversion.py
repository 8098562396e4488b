"""In memory: configurations are inferred, keys that do not fit are listed, and conversion has an inverse."""

import json

import pytest
import torch

from hub_upload import convert_state_dict, revert_state_dict
from hub_upload.authors_layout import empty_model as meta_model
from hub_upload.authors_layout import infer_config, optional_shapes, source_shapes, sources
from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from tests.hub_upload import authors
from tests.hub_upload.authors import ARCHITECTURES, OVERRIDES


FULL_SIZE = {"rosetta": RosettaConfig, "moe": RosettaConfig.moe, "mot": RosettaConfig.mot}
STAGES = {  # prefixes of the tensors that the authors' checkpoints of earlier stages do not have
    "before drawing": ("patch_embed.", "final_layer.", "time_embed"),
    "text only": ("patch_embed.", "final_layer.", "time_embed", "vit."),
}


def full_size_tensors(architecture: str) -> dict[str, torch.Tensor]:
    """The authors' 1,732 to 2,152 tensors at full size, on the meta device."""
    tensors = {}
    for pattern, shape in json.loads((authors.PARITY / "state_dict_layout.json").read_text())[architecture].items():
        for key in expand(pattern):
            tensors[key] = torch.empty(shape, device="meta")
    return tensors


def expand(pattern: str) -> list[str]:
    """`a.{0..2}.b` to a.0.b, a.1.b, a.2.b."""
    if "{" not in pattern:
        return [pattern]
    before, rest = pattern.split("{", 1)
    numbers, after = rest.split("}", 1)
    first, last = map(int, numbers.split(".."))
    return [key for number in range(first, last + 1) for key in expand(f"{before}{number}{after}")]


def without(tensors: dict, prefixes: tuple[str, ...]) -> dict:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_size_checkpoints_are_the_papers_models(architecture):
    tensors = full_size_tensors(architecture)
    config = infer_config(tensors)
    assert config.to_dict() == FULL_SIZE[architecture]().to_dict()
    table = sources(config)
    shapes = source_shapes(meta_model(config).state_dict(), table) | optional_shapes(config)
    assert shapes.pop("lm_head.weight")
    assert shapes == {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_and_back(architecture, inference):
    tensors = authors.checkpoint(architecture, inference)
    config, converted = convert_state_dict(tensors, OVERRIDES | {"timestep_token_id": 265 if inference else None})
    model = RosettaForCausalLMAndImageGeneration(config)
    model.load_state_dict(converted)
    reverted = revert_state_dict(config, model.state_dict())
    assert reverted.keys() == tensors.keys()
    assert all(torch.equal(reverted[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dtypes_are_kept(architecture):
    tensors = {key: tensor.bfloat16() for key, tensor in authors.checkpoint(architecture).items()}
    _, converted = convert_state_dict(tensors, OVERRIDES)
    assert {tensor.dtype for tensor in converted.values()} == {torch.bfloat16}


def test_experts_are_where_the_authors_number_them():
    tensors = authors.checkpoint("rosetta")
    _, converted = convert_state_dict(tensors, OVERRIDES)
    gate_up = converted["model.layers.2.mlp.pools.vae.experts.gate_up_proj"]
    theirs = "model.layers.2.mlp.experts.{}.{}_proj.weight"
    for expert in range(6):
        assert torch.equal(gate_up[expert, :24], tensors[theirs.format(6 + expert, "gate")])
        assert torch.equal(gate_up[expert, 24:], tensors[theirs.format(6 + expert, "up")])
    assert torch.equal(
        converted["model.layers.0.mlp.pools.vit.experts.down_proj"][1],
        tensors["model.layers.0.mlp.experts.4.down_proj.weight"],
    )


# Checkpoints of earlier stages


def test_moe_before_drawing_reads_and_sees():
    config, _ = convert_state_dict(without(authors.checkpoint("moe"), STAGES["before drawing"]), OVERRIDES)
    assert [t["name"] for t in config.token_types] == ["text", "vit"]
    assert config.expert_pools == {"all": 12}


def test_text_only_checkpoint_is_rosettas_foundation():
    tensors = without(authors.checkpoint("moe"), STAGES["text only"])
    config, converted = convert_state_dict(tensors)
    assert config.token_types == RosettaConfig().token_types[:1]
    assert config.expert_pools == {"text": 12}
    reverted = revert_state_dict(config, converted)
    assert reverted.keys() == tensors.keys()


@pytest.mark.parametrize("architecture", ["rosetta", "mot"])
def test_drawing_experts_without_latent_projections_get_new_ones(architecture):
    """As the released checkpoints that drawing starts from: the authors' code makes the projections when it loads."""
    tensors = without(authors.checkpoint(architecture), STAGES["before drawing"])
    overrides = OVERRIDES | {"latent_channels": 8, "latent_hidden_size": 64}
    (config, first), (_, second) = (convert_state_dict(tensors, overrides) for _ in range(2))
    assert config.token_types == FULL_SIZE[architecture]().token_types
    new = {key for key in first if key.startswith(("model.latent_in.", "latent_out."))}
    assert new and all(torch.equal(first[key], second[key]) for key in new)
    assert not first["latent_out.block.conv2.weight"].any()  # zero-initialised
    assert first["model.latent_in.block.conv1.weight"].std() > 0
    RosettaForCausalLMAndImageGeneration(config).load_state_dict(first)


def test_the_head_left_over_from_a_dense_checkpoint_is_ignored():
    tensors = authors.checkpoint("rosetta")
    _, plain = convert_state_dict(tensors, OVERRIDES)
    _, ignored = convert_state_dict(tensors | {"lm_head.weight": torch.zeros(320, 32)}, OVERRIDES)
    assert all(torch.equal(plain[key], ignored[key]) for key in plain)


# What does not fit


def test_all_keys_that_do_not_fit_are_listed():
    tensors = authors.checkpoint("rosetta")
    del tensors["model.layers.1.mlp.experts.7.up_proj.weight"], tensors["final_layer.model.1.0.bias"]
    tensors["model.layers.9x.weight"] = torch.zeros(1)
    tensors["model.layers.0.self_attn.v_proj.weight"] = torch.zeros(32, 31)
    with pytest.raises(ValueError) as error:
        convert_state_dict(tensors, OVERRIDES)
    assert str(error.value).splitlines()[1:] == [
        "  missing: model.layers.1.mlp.experts.7.up_proj.weight",
        "  missing: final_layer.model.1.0.bias",
        "  unexpected: model.layers.9x.weight",
        "  wrong shape: model.layers.0.self_attn.v_proj.weight must have [32, 32], got [32, 31]",
    ]


@pytest.mark.parametrize("prefix", ["model.layers.1.", "vit.blocks.2.", "patch_embed.", "model.layers.2.mlp.gate."])
def test_missing_parts_are_an_error(prefix):
    with pytest.raises(ValueError, match="missing"):
        convert_state_dict(without(authors.checkpoint("rosetta"), (prefix,)), OVERRIDES)


def test_a_long_list_is_cut():
    with pytest.raises(ValueError, match="and 32 more$"):  # of 2 * 36 tensors
        convert_state_dict(
            without(authors.checkpoint("rosetta"), ("model.layers.1.mlp.experts", "model.layers.2.mlp.experts.")),
            OVERRIDES,
        )


@pytest.mark.parametrize(
    "key", ["model.norm.weight", "model.layers.0.self_attn.query_layernorm.weight", "vit.pos_embed.weight"]
)
def test_a_missing_key_that_the_configuration_is_read_from(key):
    tensors = authors.checkpoint("rosetta")
    del tensors[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        convert_state_dict(tensors, OVERRIDES)


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match="authors' layout"):
        convert_state_dict({"transformer.wte.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"hidden": 32}, r"no \['hidden'\]"),
        ({"vision_config": {"depht": 4}}, r"no \['vision_config.depht'\]"),
        ({}, "`vision_config.deepstack_visual_indexes`, the 2 of the ViT's 4 blocks"),
        ({"vision_config": {"deepstack_visual_indexes": [1, 7]}}, "deepstack_visual_indexes"),
        (OVERRIDES | {"num_hidden_layers": 2}, "unexpected: model.layers.2"),
        (OVERRIDES | {"intermediate_size": 25}, "wrong shape"),
    ],
)
def test_overrides_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(authors.checkpoint("rosetta"), overrides)


def test_a_timestep_embedding_needs_its_token():
    with pytest.raises(ValueError, match="`timestep_token_id`"):
        convert_state_dict(authors.checkpoint("rosetta", inference=True), OVERRIDES)


def test_overrides_reach_nested_fields():
    config, _ = convert_state_dict(
        authors.checkpoint("rosetta"), OVERRIDES | {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
    )
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.vision_config.depth == 4 and config.vision_config.deepstack_visual_indexes == [1, 2]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tie_word_embeddings": False}, "not tied"),
        ({"expert_pools": {"text": 3, "vit": 3, "sound": 6}}, r"expert pools \['text', 'vit', 'sound'\]"),
        ({"shared": None}, "shared experts"),
    ],
)
def test_what_the_authors_layout_has_no_place_for(fields, message):
    types = [dict(t) for t in RosettaConfig().token_types]
    if "expert_pools" in fields:
        types[2]["expert_pool"] = "sound"
    if "shared" in fields:
        fields = {}
        types[2]["shared_expert"] = None
    pools = fields.pop("expert_pools", {"text": 3, "vit": 3, "vae": 6})
    config = RosettaConfig(token_types=types, expert_pools=pools, **fields)
    with pytest.raises(ValueError, match=message):
        revert_state_dict(config, {})
