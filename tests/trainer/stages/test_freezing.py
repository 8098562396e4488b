"""What a stage trains."""

import pytest

from tests.conftest import CONFIGS, TINY, sample, tiny_model
from trainer import train_backbone, train_projectors, train_token_types


PROJECTORS = {
    f"model.visual.{merger}.linear_fc2.{kind}"
    for merger in ("merger", "deepstack_merger_list.0")
    for kind in ("weight", "bias")
}


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_warm_up_trains_the_projectors_and_nothing_else():
    model = train_projectors(tiny_model()).train()
    assert trained(model) == PROJECTORS
    model(**sample("tut")).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == PROJECTORS


def test_the_joint_stages_train_all_but_the_vit():
    model = train_backbone(train_projectors(tiny_model()))
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert frozen and all(name.startswith("model.visual.") for name in frozen)
    assert not frozen & PROJECTORS
    assert "model.visual.blocks.0.mlp.linear_fc2.weight" in frozen  # a name like a projector's


def test_a_model_without_vit_has_no_projectors():
    from modeling_rosetta import RosettaForCausalLMAndImageGeneration

    config = CONFIGS["rosetta"](**TINY)
    config = type(config)(**TINY, token_types=config.token_types[:1], expert_pools={"text": 3})
    with pytest.raises(ValueError, match="no ViT"):
        train_projectors(RosettaForCausalLMAndImageGeneration(config))


def test_a_token_type_is_trained_with_what_serves_it_alone():
    model = tiny_model().train()
    model(**sample("tugt")).loss.backward()
    names = trained(train_token_types(model, "vit"))
    assert names == PROJECTORS | {n for n, _ in model.named_parameters() if ".pools.vit." in n}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == names  # none is left of what was trained
    names = trained(train_token_types(model, ["vit", "vae"]))
    assert any("latent_in" in n for n in names) and any("latent_out" in n for n in names)
    mot = trained(train_token_types(tiny_model("mot"), "vae"))
    assert any(".streams.gen." in n for n in mot) and not any(".streams.und." in n for n in mot)


@pytest.mark.parametrize(("name", "named"), [("audio", "must be among"), ("text", "no parameters of their own")])
def test_token_types_with_nothing_to_train_are_refused(name, named):
    model = tiny_model("moe")
    before = trained(model)
    with pytest.raises(ValueError, match=named):
        train_token_types(model, name)
    assert trained(model) == before
