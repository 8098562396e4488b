"""`generate` with images and without, with a cache and without, padded and not."""

import pytest
import torch

from modeling_rosetta.positions_rosetta import get_rope_index
from tests.conftest import TEXT, VAE, VIT, sample, tiny_model
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


def prompt(kinds: str, seed: int = 0) -> dict:
    return {k: v for k, v in sample(kinds, seed).items() if k not in ("labels", "velocity_labels")}


def greedy(model, inputs: dict, **kwargs) -> torch.Tensor:
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, **kwargs)
    return out[:, inputs["input_ids"].shape[1] :]


def test_positions_of_text_and_images():
    types = torch.tensor([[TEXT] * 2 + [VIT] * 6 + [TEXT] + [VAE] * 2 + [TEXT]])
    positions = get_rope_index(types, {VIT: torch.tensor([[2, 3]]), VAE: torch.tensor([[2, 1]])})
    assert positions[0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8]
    assert positions[1, 0].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8]
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 6, 8]


def test_cached_generation_is_the_uncached_one(model):
    for kinds in ("t", "tut", "tgt", "tugt"):
        inputs = prompt(kinds)
        assert torch.equal(greedy(model, inputs), greedy(model, inputs, use_cache=False))


def test_generation_continues_what_a_full_forward_predicts(model):
    """Token by token, with the positions of the whole sequence computed anew each time."""
    inputs = prompt("tut")
    generated = greedy(model, inputs)
    for token in generated[0]:
        with torch.no_grad():
            logits = model(**inputs).logits
        assert logits[0, -1].argmax() == token
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token.view(1, 1)], dim=1)
        inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.zeros(1, 1, dtype=torch.long)], dim=1)


def left_padded(prompts: list[dict]) -> dict:
    length = max(p["input_ids"].shape[1] for p in prompts)
    batch = {
        key: torch.cat([torch.nn.functional.pad(p[key], (length - p[key].shape[1], 0)) for p in prompts])
        for key in ("input_ids", "token_type_ids")
    }
    real = [torch.arange(length) >= length - p["input_ids"].shape[1] for p in prompts]
    batch["attention_mask"] = torch.stack(real).long()
    for key in ("pixel_values", "image_grid_thw", "noisy_latents", "latent_grid_hw", "timesteps"):
        if values := [p[key] for p in prompts if key in p]:
            batch[key] = torch.cat(values)
    return batch


def test_batched_generation_with_left_padding_is_each_prompt_alone(model):
    prompts = [prompt("tut", 1), prompt("t", 2)]
    together = greedy(model, left_padded(prompts))
    for row, p in zip(together, prompts, strict=True):
        assert torch.equal(row, greedy(model, p)[0])


def test_each_beam_of_each_prompt_has_the_images_of_that_prompt(model):
    prompts = [prompt("tugt", 1), prompt("t", 2), prompt("tuut", 3), prompt("gtgt", 4)]
    batch = left_padded(prompts)
    batch["position_ids"] = model._prepare_position_ids_for_generation(batch["input_ids"], batch)
    ids, inputs = model._expand_inputs_for_generation(expand_size=2, input_ids=batch.pop("input_ids"), **batch)
    with torch.no_grad():
        rows = model(input_ids=ids, **inputs, logits_to_keep=1).logits
        for index, p in enumerate(prompts):
            alone = model(**p, logits_to_keep=1).logits[0]
            for row in rows[2 * index : 2 * index + 2]:
                torch.testing.assert_close(row, alone, rtol=0, atol=3e-5)
    assert greedy(model, prompts[0], num_beams=3).shape == (1, 6)
    with pytest.raises(ValueError, match="`pixel_values` has 4 entries, but the prompts need"):
        greedy(model, {**prompts[0], "pixel_values": prompts[0]["pixel_values"][:4]}, num_beams=3)


def test_an_image_in_the_prompt_changes_the_answer_and_beams_work(rosetta):
    inputs = prompt("tut")
    changed = {**inputs, "pixel_values": inputs["pixel_values"] + 3}
    with torch.no_grad():
        assert not torch.allclose(rosetta(**inputs).logits[:, -1], rosetta(**changed).logits[:, -1])
    # Three beams of a text prompt; the best is at least as likely as the greedy one.
    text = prompt("t")
    assert greedy(rosetta, text, num_beams=3).shape == (1, 6)


MODES = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
    "uncached": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {"assistant_model": tiny_model()},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", ["tu", "tg", "t"])
def test_what_is_generated_is_text_also_after_an_image(rosetta, kinds, mode):
    inputs, seen = prompt(kinds), []
    length = inputs["input_ids"].shape[1]
    rosetta.model.register_forward_pre_hook(lambda _, __, kw: seen.append(kw["token_type_ids"]), with_kwargs=True)
    rosetta.generate(**inputs, max_new_tokens=4, pad_token_id=115, **{"do_sample": False, **MODES[mode]})
    assert torch.equal(seen[0][0, :length], inputs["token_type_ids"][0])
    following = [types[:, length:] for types in seen if types is not None]
    assert not any(types.any() for types in following) and len(seen) > 1
    assert len(following) == (4 if mode == "uncached" else 1)  # without types, all are text


def test_modes_agree_after_an_image(model):
    inputs = prompt("tu")
    expected = greedy(model, inputs)
    for mode in ("static", "uncached", "lookup", "assistant"):
        assert torch.equal(greedy(model, inputs, **MODES[mode]), expected), mode


@pytest.mark.parametrize("kinds", ["t", "tut", "tgt", "tu"])
def test_embeddings_in_place_of_ids(model, kinds):
    inputs = prompt(kinds)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    alone = {key: value for key, value in inputs.items() if key != "input_ids"}
    for how in ({}, {"num_beams": 2}):
        expected = greedy(model, inputs, **how)
        assert torch.equal(greedy(model, inputs, inputs_embeds=embeds, **how), expected)
        generated = model.generate(
            inputs_embeds=embeds, **alone, max_new_tokens=6, do_sample=False, pad_token_id=0, **how
        )
        assert torch.equal(generated, expected)


def test_a_drawing_can_be_asked_about(model):
    """`latents`, as the processor gives them, are noisy latents at time 0."""
    inputs = prompt("tgtut")
    inputs["timesteps"] = torch.zeros(1)
    asked = {key: value for key, value in inputs.items() if key not in ("noisy_latents", "timesteps")}
    asked["latents"] = inputs["noisy_latents"]
    for how in ({}, {"num_beams": 2}, {"use_cache": False}):
        assert torch.equal(greedy(model, asked, **how), greedy(model, inputs, **how))
    with torch.no_grad():
        assert torch.equal(model(**asked).logits, model(**inputs).logits)
        assert not torch.equal(model(**{**asked, "latents": asked["latents"] + 1}).logits, model(**inputs).logits)


def test_latents_beside_noisy_ones_are_refused(rosetta):
    inputs = prompt("tgt")
    with pytest.raises(ValueError, match="`latents` are clean images"):
        rosetta(**inputs, latents=inputs["noisy_latents"])
    latents = inputs["noisy_latents"]
    rest = {key: inputs[key] for key in ("input_ids", "token_type_ids")}
    with pytest.raises(ValueError, match="`latents` needs `latent_grid_hw`"):
        rosetta(**rest, latents=latents)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_stop_strings(mode):
    pipe = tiny_pipeline()
    model, tokenizer = pipe.transformer, pipe.processor.tokenizer
    letter = tokenizer("a")["input_ids"]
    always = {"sequence_bias": [[letter, 1000.0]], "stop_strings": ["aa"], "tokenizer": tokenizer}
    assert greedy(model, {"input_ids": torch.arange(10, 20)[None]}, **mode, **always).tolist() == [letter * 2]


def test_misspelt_arguments_of_generate_are_refused(rosetta):
    inputs = prompt("tut")
    inputs["pixel_value"] = inputs.pop("pixel_values")
    with pytest.raises(ValueError, match="pixel_value"):
        greedy(rosetta, inputs)
