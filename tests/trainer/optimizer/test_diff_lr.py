"""DiffLR: who trains at which rate, decays and is under MAOP."""

import pytest
import torch

from modeling_rosetta import RosettaConfig
from trainer import diff_lr_groups
from trainer.optimizer.diff_lr import clean_parameter_name


BASE, GENERATION = 1e-5, 1e-4


def _groups(model, **arguments):
    groups = diff_lr_groups(model, model.config, BASE, GENERATION, **arguments)
    return {group["name"]: group for group in groups}


def _names(group):
    return {name for name, _ in group["params"]}


def _modules(model, *paths):
    """Names of the parameters in all layers below these paths."""
    return {
        name
        for name, _ in model.named_parameters()
        if any(f".{path}." in name and name.startswith("model.layers.") for path in paths)
    }


@pytest.mark.parametrize(
    ("variant", "generation", "shared_expert"),
    [
        (RosettaConfig, ["mlp.pools.vae"], "mlp.shared_experts.global"),
        (RosettaConfig.moe, [], "mlp.shared_experts.global"),
        (
            RosettaConfig.mot,
            [
                "mlp.pools.gen",
                "mlp.shared_experts.gen",
                "self_attn.streams.gen",
                "input_layernorm.gen",
                "post_attention_layernorm.gen",
            ],
            "mlp.shared_experts.und",
        ),
    ],
    ids=["Rosetta", "MoE", "MoT"],
)
def test_rates_and_maop(variant, generation, shared_expert, tiny_model):
    model = tiny_model(variant)
    groups = _groups(model).values()
    at_generation_rate = set().union(*(_names(group) for group in groups if group["lr"] == GENERATION))
    under_maop = set().union(*(_names(group) for group in groups if group["maop"]))
    assert at_generation_rate == _modules(model, *generation)
    assert under_maop == _modules(model, shared_expert) != set()
    assert {group["lr"] for group in groups} <= {BASE, GENERATION}


def test_tokens_before_an_image_leave_mots_generation_stream_its_rate(tiny_model):
    """In the authors' drawing they pass through it; it still serves nothing but generation."""
    types = RosettaConfig.mot().token_types
    prefix = {**types[2], "name": "latent_prefix", "embeds_from": "input_ids"}

    def with_prefix(**sizes):
        return RosettaConfig(token_types=[*types, prefix], expert_pools={"und": 7, "gen": 6}, **sizes)

    plain, prefixed = (_groups(tiny_model(variant)) for variant in (RosettaConfig.mot, with_prefix))
    assert {name: _names(group) for name, group in prefixed.items()} == {n: _names(g) for n, g in plain.items()}
    assert not any(".gen." in name for name in _names(prefixed["shared_expert"]))


def test_every_trained_parameter_is_in_one_group(tiny_model):
    model = tiny_model()
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    grouped = [pair for group in _groups(model).values() for pair in group["params"]]
    assert len(grouped) == len(trained) < len(list(model.parameters()))
    assert all(trained[name] is param for name, param in grouped)


def test_a_mounted_type_that_is_generated_gets_the_generation_rate(tiny_model, config):
    types = config().token_types
    types[1]["embeds_from"] = "noisy_latents"
    model = tiny_model()
    model.config.token_types = types
    assert _names(_groups(model)["generation"]) == _modules(model, "mlp.pools.vae", "mlp.pools.vit")


def test_without_shared_expert_for_text_nothing_is_under_maop(tiny_model, config):
    types = config().token_types
    types[0]["shared_expert"] = None
    model = tiny_model()
    model.config.token_types = types
    assert not any(group["maop"] for group in _groups(model).values())


def test_maop_can_be_left_out(tiny_model):
    assert not any(group["maop"] for group in _groups(tiny_model(), maop=False).values())


def test_latent_projections_on_request(tiny_model):
    model = tiny_model()
    latents = {name for name, _ in model.named_parameters() if "latent_" in name}
    assert _names(_groups(model)["base"]) >= latents
    groups = _groups(model, latent_projections_at_generation_rate=True)
    assert _names(groups["generation"]) == latents | _modules(model, "mlp.pools.vae")


def test_decay(tiny_model):
    model = tiny_model(RosettaConfig.mot)
    decay = {name for name, _ in model.named_parameters() if "norm" not in name and "bias" not in name}
    groups = _groups(model, weight_decay=0.3, decay_parameter_names=decay)
    for name, group in groups.items():
        assert group["weight_decay"] == (0.0 if name.endswith("_no_decay") else 0.3)
        assert all((parameter in decay) != name.endswith("_no_decay") for parameter in _names(group))
    assert list(groups) == ["base", "base_no_decay", "shared_expert", "generation", "generation_no_decay"]
    assert list(_groups(model)) == ["base", "shared_expert", "generation"]


def test_one_rate_without_generation_rate(tiny_model):
    model = tiny_model()
    assert {group["lr"] for group in diff_lr_groups(model, model.config, BASE)} == {BASE}


def _wrapped(module, name):
    wrapper = torch.nn.Module()
    wrapper.add_module(name, module)
    return wrapper


def test_wrapped_models_have_the_same_groups(tiny_model):
    model = tiny_model()
    expected = {name: _names(group) for name, group in _groups(model).items()}
    for layer in model.model.layers:
        layer.mlp.pools["vae"] = _wrapped(layer.mlp.pools["vae"], "_orig_mod")
    groups = diff_lr_groups(_wrapped(model, "module"), model.config, BASE, GENERATION)
    assert {group["name"]: _names(group) for group in groups} == expected


@pytest.mark.parametrize(
    "name",
    [
        "module.model.layers.0.mlp.weight",
        "_orig_mod.model.layers.0.mlp.weight",
        "module._orig_mod.model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.mlp.weight",
        "base_model.model.model.layers.0.mlp.weight",
        "module.base_model.model.model.layers.0.mlp.weight",
        "model.layers.0.mlp.weight",
    ],
)
def test_clean_names(name):
    assert clean_parameter_name(name) == "model.layers.0.mlp.weight"


def test_nothing_to_train(tiny_model):
    with pytest.raises(ValueError, match="`model` has no parameter"):
        _groups(tiny_model().requires_grad_(False))
