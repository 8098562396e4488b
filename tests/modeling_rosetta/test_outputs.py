"""What is returned on request, and what is not kept without one."""

import weakref

import pytest
import torch

from tests.conftest import sample, tiny_model
from tests.modeling_rosetta.test_generation import prompt


LAYERS = 3


def eager_model():
    model = tiny_model()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def eager():
    return eager_model()


@torch.no_grad()
def test_attentions_are_the_weights_of_eager_attention(eager):
    inputs = prompt("tut")
    output = eager(**inputs, output_attentions=True)
    assert [a.shape for a in output.attentions] == [(1, 4, 14, 14)] * LAYERS
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(1, 4, 14))
    assert output.attentions[0][0, :, 0, 1:].abs().max() == 0 and output.attentions[0][0, :, 4, 5].min() > 0
    assert torch.equal(output.logits, eager(**inputs).logits) and eager(**inputs).attentions is None
    assert len(eager.model(**inputs, output_attentions=True).attentions) == LAYERS


WAYS = {
    "greedy": {},
    "uncached": {"use_cache": False},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {"assistant_model": eager_model()},
}


@pytest.mark.parametrize("kinds", ["t", "tut", "tgt"])
@pytest.mark.parametrize("way", WAYS)
def test_generate_returns_all_that_is_asked_of_it(eager, way, kinds):
    inputs, asked = prompt(kinds), ("attentions", "hidden_states", "scores", "logits")
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 115, "return_dict_in_generate": True}
    output = eager.generate(**inputs, **{**how, **WAYS[way]}, **{f"output_{name}": True for name in asked})
    rows = 2 if way in ("sample", "beams", "sampled beams") else 1
    length = inputs["input_ids"].shape[1]
    assert len(output.attentions) == len(output.hidden_states) == len(output.scores) == len(output.logits) == 3
    for step, (attentions, states, logits) in enumerate(
        zip(output.attentions, output.hidden_states, output.logits, strict=True)
    ):
        new = length + step if way == "uncached" or step == 0 else 1
        assert [tuple(a.shape) for a in attentions] == [(rows, 4, new, length + step)] * LAYERS
        assert [tuple(s.shape) for s in states] == [(rows, new, 32)] * (LAYERS + 1)
        assert logits.shape == output.scores[step].shape == (rows, 120)
        if way not in ("lookup", "assistant"):  # whose first tokens after the prompt transformers gives its states
            torch.testing.assert_close(eager.lm_head(states[-1][:, -1]), logits)
    assert (output.past_key_values is None) == (way == "uncached")
    assert len(output.sequences) == (1 if way == "sampled beams" else rows)


def test_hidden_states_and_attentions_keep_their_gradients(eager):
    output = eager(**prompt("tut"), output_hidden_states=True, output_attentions=True)
    for kept in (output.hidden_states[0], output.attentions[0]):
        kept.retain_grad()
    output.logits[0, -1, 7].backward()
    assert output.hidden_states[0].grad.any() and output.attentions[0].grad.any()
    eager.zero_grad()


@torch.no_grad()
def test_hidden_states_of_chosen_layers(rosetta):
    every = rosetta(**prompt("tut"), output_hidden_states=True).hidden_states
    chosen = rosetta(**prompt("tut"), output_hidden_states=[1]).hidden_states
    first = len(every) - len(
        chosen
    )  # before transformers 5.23, chosen ones were counted from the first layer's output
    assert [number for number, state in enumerate(chosen) if state is not None] == [1]
    assert torch.equal(chosen[1], every[first + 1])


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
def test_hidden_states_are_each_layers_input_and_the_last_hidden_state(rosetta):
    inputs, layers = prompt("tut"), []
    for layer in rosetta.model.layers:
        layer.register_forward_pre_hook(lambda _, args: layers.append(args[0]))
    output = rosetta(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states[:-1], layers, strict=True))
    torch.testing.assert_close(rosetta.lm_head(output.hidden_states[-1]), output.logits)
    rosetta.config.output_hidden_states = True
    assert len(rosetta(**inputs).hidden_states) == LAYERS + 1


@torch.no_grad()
def test_router_logits_are_returned_if_the_call_or_else_the_configuration_says_so(rosetta):
    batch = prompt("tug")
    asked = rosetta(**batch, output_router_logits=True).router_logits
    for model in (rosetta, rosetta.model):
        assert model(**batch).router_logits is None
        model.config.output_router_logits = True
        assert [list(layer) for layer in model(**batch).router_logits] == [["text", "vit", "vae"]] * LAYERS
        assert torch.equal(model(**batch).router_logits[1]["vae"], asked[1]["vae"])
        assert model(**batch, output_router_logits=False).router_logits is None
        assert rosetta(**sample("tug"), output_router_logits=False).router_logits is None
        model.config.output_router_logits = False
    assert rosetta(**sample("tug")).aux_loss > 0


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_router_logits_keep_their_gradients(rosetta, use_reentrant):
    rosetta.train().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    logits = rosetta(**sample("tug"), output_router_logits=True).router_logits
    sum(layer["text"].square().sum() for layer in logits).backward()
    assert all(layer.mlp.pools["text"].router.weight.grad.any() for layer in rosetta.model.layers)


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
