"""One graph for text and for a drawing step, compiled or exported, that gives what the model gives."""

import pytest
import torch
from transformers import StaticCache

from tests.conftest import tiny_model
from tests.modeling_rosetta.test_generation import prompt


VAE = 2


@pytest.fixture(params=["rosetta", "mot"])
def model(request):
    return tiny_model(request.param, num_hidden_layers=2, timestep_token_id=111)


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def compiled(model):
    """Without code generation, which takes a C++ compiler minutes."""
    return torch.compile(model, fullgraph=True, backend="eager")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def drawing(kinds: str) -> dict:
    """With its grids as numbers, which a graph is made for."""
    inputs = prompt(kinds)
    return {**inputs, "latent_grid_hw": inputs["latent_grid_hw"].tolist(), "use_cache": False}


def test_text_is_one_graph(model):
    inputs = {"input_ids": prompt("tt")["input_ids"], "use_cache": False}
    inputs["attention_mask"] = torch.tensor([[0] * 3 + [1] * 6])
    close(compiled(model)(**inputs).logits, model(**inputs).logits)


def test_rows_of_all_types_are_one_graph(model):
    """Each pool then computes all tokens, of which its own are kept."""
    inputs = drawing("tgtgt")
    inputs["input_ids"][0, [3, 13]] = 111
    inputs["velocity_labels"] = inputs["noisy_latents"]
    output, expected = compiled(model)(**inputs), model(**inputs)
    for name in ("velocity", "logits", "flow_loss", "aux_loss"):
        close(getattr(output, name), getattr(expected, name))


def test_drawing_steps_are_one_graph_that_is_made_once(model):
    text, step = prompt("t"), {**drawing("g"), "use_cache": None, "token_type_ids": VAE}
    cache = model(**text, use_cache=True).past_key_values
    step |= {"position_ids": torch.arange(4, 10).expand(3, 1, -1), "past_key_values": cache}
    step |= {"attention_mask": torch.ones(1, 10, dtype=torch.long)}
    run = compiled(model)
    for time in (0.9, 0.5, 0.1):
        step["timesteps"] = torch.tensor([time])
        expected = model(**{**step, "token_type_ids": torch.full((1, 6), VAE)}).velocity
        cache.crop(-6)
        with torch.compiler.set_stance("default" if time == 0.9 else "fail_on_recompile"):
            close(run(**step).velocity, expected)
        cache.crop(-6)


def test_decoding_with_a_static_cache_is_one_graph(model):
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(**prompt("tut"), past_key_values=cache)
    kept, length = cache.layers[0].keys.clone(), cache.get_seq_length()
    assert int(length) == 14
    inputs = {"position_ids": torch.full((3, 1, 1), 12), "attention_mask": torch.ones(1, 15, dtype=torch.long)}
    step = {"input_ids": torch.tensor([[50]]), **inputs, "past_key_values": cache}
    logits = compiled(model)(**step).logits
    assert torch.equal(cache.layers[0].keys[:, :, :14], kept[:, :, :14]) and cache.layers[0].keys[:, :, 14].any()
    whole = prompt("tut")
    whole["input_ids"] = torch.cat([whole["input_ids"], step["input_ids"]], dim=1)
    whole["token_type_ids"] = torch.nn.functional.pad(whole["token_type_ids"], (0, 1))
    close(logits, model(**whole, logits_to_keep=1).logits)


def exported(model, **kwargs):
    # The exporter writes names of modules into its code, where `global` is a word of Python's own.
    for layer in model.model.layers:
        experts = layer.mlp.shared_experts
        if "global" in experts:
            experts["shared"] = experts.pop("global")
    return torch.export.export(model, (), **kwargs).module()


def test_text_of_any_length_is_exported():
    model = tiny_model(num_hidden_layers=2)
    inputs = {"input_ids": prompt("tt")["input_ids"], "use_cache": False}
    length = {"input_ids": {1: torch.export.Dim("length", min=2, max=512)}, "use_cache": None}
    expected = model(**inputs).logits
    run = exported(model, kwargs=inputs, dynamic_shapes=length)
    close(run(**inputs).logits, expected)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"]] * 2, dim=1)}
    close(run(**longer).logits, model(**longer).logits)


@pytest.mark.parametrize("kinds", ["g", "tg"])
def test_a_drawing_step_is_exported(kinds):
    model, inputs = tiny_model(num_hidden_layers=2), drawing(kinds)
    if kinds == "g":
        inputs["token_type_ids"] = VAE
    expected = model(**inputs).velocity
    close(exported(model, kwargs=inputs)(**inputs).velocity, expected)


def test_one_type_for_all_tokens_and_grids_as_numbers_need_no_compiler(model):
    inputs = prompt("g")
    expected = model(**inputs)
    assert torch.equal(model(**{**drawing("g"), "token_type_ids": VAE}).velocity, expected.velocity)
    training = {**drawing("g"), "token_type_ids": VAE, "velocity_labels": inputs["noisy_latents"]}
    loss = model(**inputs, velocity_labels=inputs["noisy_latents"]).flow_loss
    assert torch.equal(model(**training).flow_loss, loss)
    with pytest.raises(ValueError, match="`token_type_ids` must be below 3, got 3"):
        model(**{**drawing("g"), "token_type_ids": 3})
    with pytest.raises(ValueError, match="`token_type_ids` must be below 3, got 3"):
        model(prompt("t")["input_ids"], token_type_ids=torch.tensor([[0, 0, 3, 0]]))
