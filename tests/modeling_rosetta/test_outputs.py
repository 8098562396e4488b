"""What is returned on request, and what is not kept without one."""

import weakref

import pytest
import torch

from tests.conftest import tiny_model
from tests.modeling_rosetta.test_generation import prompt


LAYERS = 3


@pytest.fixture(scope="module")
def eager():
    model = tiny_model()
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def test_attentions_are_the_weights_of_eager_attention(eager):
    inputs = prompt("tut")
    output = eager(**inputs, output_attentions=True)
    assert [a.shape for a in output.attentions] == [(1, 4, 14, 14)] * LAYERS
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(1, 4, 14))
    assert output.attentions[0][0, :, 0, 1:].abs().max() == 0 and output.attentions[0][0, :, 4, 5].min() > 0
    assert torch.equal(output.logits, eager(**inputs).logits) and eager(**inputs).attentions is None
    assert len(eager.model(**inputs, output_attentions=True).attentions) == LAYERS


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_generate_returns_attentions_and_hidden_states(eager, how):
    asked = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    output = eager.generate(**prompt("tut"), max_new_tokens=3, do_sample=False, pad_token_id=0, **asked, **how)
    for steps, number in ((output.attentions, LAYERS), (output.hidden_states, LAYERS + 1)):
        assert len(steps) == 3 and all(len(step) == number for step in steps)


def test_attentions_of_other_implementations_are_refused(rosetta):
    asked = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 1}
    for call in (rosetta, rosetta.model):
        with pytest.raises(ValueError, match="`output_attentions` needs .* 'eager', got 'sdpa'"):
            call(**prompt("t"), output_attentions=True)
    with pytest.raises(ValueError, match="`output_attentions` needs"):
        rosetta.generate(**prompt("t"), **asked)
    with pytest.raises(ValueError, match="`output_attentions`"):
        rosetta.config.output_attentions = True


@torch.no_grad()
def test_hidden_states_are_each_layers_input_and_the_last_output(rosetta):
    inputs, layers = prompt("tut"), []
    for layer in rosetta.model.layers:
        layer.register_forward_pre_hook(lambda _, args: layers.append(args[0]))
    output = rosetta(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states[:-1], layers, strict=True))
    torch.testing.assert_close(
        rosetta.lm_head(rosetta.model.norm(output.hidden_states[-1])), output.logits, rtol=0, atol=1e-5
    )
    rosetta.config.output_hidden_states = True
    assert len(rosetta(**inputs).hidden_states) == LAYERS + 1


@torch.no_grad()
def test_router_logits_are_returned_if_the_configuration_says_so(rosetta):
    assert rosetta(**prompt("t")).router_logits is None
    rosetta.config.output_router_logits = True
    assert len(rosetta(**prompt("t")).router_logits) == LAYERS


@torch.no_grad()
@pytest.mark.parametrize("kinds", ["t", "tugt"])
def test_hidden_states_are_not_kept_when_nobody_asked(model, kinds):
    inputs, states, alive = prompt(kinds), [], []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, output: states.append(weakref.ref(output[0])))
    model.model.norm.register_forward_pre_hook(lambda *_: alive.extend(ref() is not None for ref in states))
    model(**inputs)
    assert alive == [False] * (LAYERS - 1) + [True]


@torch.no_grad()
def test_idle_pools_do_not_run(rosetta):
    ran = []
    for name, pool in rosetta.model.layers[1].mlp.pools.items():
        pool.router.register_forward_hook(lambda *_, name=name: ran.append(name))
    text = {**prompt("t"), "labels": prompt("t")["input_ids"]}
    output = rosetta(**text, output_router_logits=True)
    assert ran == ["text"]
    assert {name: tuple(logits.shape) for name, logits in output.router_logits[1].items()} == {
        "text": (4, 3),
        "vit": (0, 3),
        "vae": (0, 6),
    }
    assert output.capacity_rate["vit"].isnan() and output.capacity_rate["text"] > 0
    rosetta.train()
    torch.testing.assert_close(rosetta(**text).aux_loss, output.aux_loss)
    assert ran == ["text", "text", "vit", "vae"]  # in training each parameter has a gradient
