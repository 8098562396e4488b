"""What the app shows, without the browser: answers, drawings with previews, routing."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from examples.playground import interface
from examples.playground.chat import messages_of, stream_answer
from examples.playground.drawing import stream_drawing
from examples.playground.routing import choices_for_prompt, expert_choices, heat_map
from examples.playground.streaming import MODEL_IN_USE
from modeling_rosetta import RosettaPipeline, decode_latents, unmount
from tests.examples.talkative import talkative_pipeline


@pytest.fixture(scope="module")
def pipe():
    return talkative_pipeline()


def test_what_gradio_holds_of_a_conversation_is_read_turn_by_turn():
    history = [
        {"role": "user", "content": [{"type": "file", "file": {"path": "a.png"}}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A stone."}]},
        {"role": "user", "content": "Sure?"},
    ]
    assert messages_of({"text": "And this?", "files": ["b.png"]}, history) == [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A stone."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Sure?"},
                {"type": "image", "image": "b.png"},
                {"type": "text", "text": "And this?"},
            ],
        },
    ]
    assert messages_of({"text": "", "files": []}, []) == [{"role": "user", "content": []}]


def test_an_answer_grows_to_what_generate_says(pipe):
    messages = messages_of({"text": "hello stone"}, [])
    inputs = pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = pipe.transformer.generate(**inputs, max_new_tokens=24, do_sample=False)
    said = pipe.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    grown = list(stream_answer(pipe, messages, max_new_tokens=24))
    assert grown[-1] == said and len(set(grown)) > 2
    assert all(after.startswith(before) for before, after in zip(grown, grown[1:], strict=False))


def test_previews_are_decoded_where_the_steps_lead(pipe):
    latents, foreseen = [], []

    def keep(pipe, step, timestep, tensors):
        latents.append(tensors["latents"])
        return {}

    arguments = {"num_inference_steps": 6, "guidance_scale": 2.0}
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = pipe("stone", generator=seeds, num_images_per_prompt=2, callback_on_step_end=keep, **arguments).images
    for step in (1, 3):  # two steps tell the velocity: x' - x = (t' - t) * v
        (before, after), (t, next_t) = latents[step - 1 : step + 1], pipe.scheduler.sigmas[step : step + 2]
        foreseen.append(before - t * (after - before) / (next_t - t))

    seen = list(stream_drawing(pipe, "stone", [3, 4], num_previews=3, **arguments))
    assert [(progress.step, progress.steps) for progress in seen] == [(step, 6) for step in (1, 2, 3, 4, 5, 6)]
    assert [progress.step for progress in seen if progress.images] == [2, 4, 6]
    assert [progress.is_drawn for progress in seen] == [False] * 5 + [True]
    for image, expected in zip(seen[-1].images, images, strict=True):
        np.testing.assert_array_equal(image, expected)
    for progress, clean in zip((seen[1], seen[3]), foreseen, strict=True):
        expected = (decode_latents(pipe.vae, clean) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
        np.testing.assert_allclose(np.stack([np.asarray(image) for image in progress.images]), expected, atol=1.5)


def test_who_stops_listening_stops_the_steps(pipe):
    counted = []
    handle = pipe.transformer.register_forward_hook(lambda *_: counted.append(1))
    drawing = stream_drawing(pipe, "stone", [0], num_inference_steps=200, guidance_scale=1.0)
    next(drawing)
    drawing.close()
    handle.remove()
    assert len(counted) < 4
    assert list(stream_drawing(pipe, "stone", [0], num_inference_steps=2))[-1].is_drawn  # the model is free


def test_who_stops_listening_stops_the_answer(pipe):
    counted = []
    handle = pipe.transformer.register_forward_hook(lambda *_: counted.append(1))
    answer = stream_answer(pipe, messages_of({"text": "stone"}, []), max_new_tokens=40)
    next(answer)
    answer.close()
    with MODEL_IN_USE:  # once it has ended
        pass
    handle.remove()
    assert len(counted) < 40


def test_an_error_is_raised_where_it_is_listened_to(pipe):
    with pytest.raises(ValueError, match="`strength` must be above 0"):
        next(stream_drawing(pipe, "stone", [0], image=Image.new("RGB", (64, 64)), strength=2.0))
    with pytest.raises(ValueError, match="nowhere.png"):
        next(stream_answer(pipe, messages_of({"text": "", "files": ["nowhere.png"]}, [])))
    assert not MODEL_IN_USE.locked()


@pytest.mark.parametrize("architecture", ["rosetta", "moe", "mot"])
def test_choices_are_those_of_the_routers(architecture):
    pipe = talkative_pipeline(architecture)
    model, config = pipe.transformer, pipe.transformer.config
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", (16, 16))}, {"type": "text", "text": "stone"}],
        },
        {"role": "assistant", "content": [{"type": "latents", "latents": torch.randn(8, 4, 4)}]},
    ]
    inputs = pipe.processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    chosen = {}
    for number, layer in enumerate(model.model.layers):
        for pool, module in layer.mlp.pools.items():
            module.router.register_forward_hook(
                lambda router, inputs, output, place=(number, pool): chosen.update({place: output[2].tolist()})
            )
    counts = expert_choices(model, inputs)
    types = inputs["token_type_ids"][0].tolist()
    assert set(types) == {0, 1, 2} and list(counts) == [t["name"] for t in config.token_types]
    expected = {name: torch.zeros_like(count) for name, count in counts.items()}
    for (number, pool), choices in chosen.items():
        tokens = [t for t in types if config.token_types[t]["expert_pool"] == pool]
        for token_type, experts in zip(tokens, choices, strict=True):
            for expert in experts:
                expected[config.token_types[token_type]["name"]][number, expert] += 1
    assert all(torch.equal(counts[name], expected[name]) for name in counts)
    assert [int(count[0].sum()) for count in counts.values()] == [types.count(t) * 2 for t in range(3)]
    pools = [config.expert_pools[token_type["expert_pool"]] for token_type in config.token_types]
    assert [tuple(count.shape) for count in counts.values()] == [(3, experts) for experts in pools]

    figure = heat_map(counts, config.num_experts_per_tok)
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title().split(",")[0] for axis in maps] == list(counts)
    np.testing.assert_allclose(maps[2].images[0].get_array(), counts["vae"].T / types.count(2))


def test_a_prompt_is_looked_into_with_its_drawing(pipe):
    alone = choices_for_prompt(pipe, "stone")
    assert list(alone) == ["text"]
    both = choices_for_prompt(pipe, "stone", Image.new("RGB", (16, 16)), draws=True, num_inference_steps=1)
    assert list(both) == ["text", "vit", "vae"] and int(both["vae"][0].sum()) == 16 * 2
    assert int(both["text"][0].sum()) > int(alone["text"][0].sum())


def test_a_page_has_what_its_model_can_do(pipe):
    def shown(pipe) -> tuple[list[str], list[str]]:
        components = [component["props"] for component in interface(pipe, "A model").config["components"]]
        tabs = [props["label"] for props in components if props.get("name") == "tab"]
        return tabs, next(props["sources"] for props in components if props.get("name") == "multimodaltextbox")

    assert shown(pipe) == (["Chat", "Draw", "See inside"], ["upload"])
    blind = RosettaPipeline(pipe.transformer, None, pipe.scheduler, pipe.processor)
    assert shown(blind) == (["Chat", "See inside"], ["upload"])
    reader = copy.deepcopy(pipe)
    unmount(reader.transformer, "vae")
    unmount(reader.transformer, "vit")
    assert shown(reader) == (["Chat", "See inside"], [])
    assert list(stream_answer(reader, messages_of({"text": "stone"}, []), max_new_tokens=8))[-1]
    assert list(choices_for_prompt(reader, "stone")) == ["text"]
