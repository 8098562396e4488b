"""Text and images in one answer, with one cache, in batches whose rows are at different places."""

from itertools import pairwise

import pytest
import torch

from modeling_rosetta import RosettaPipeline, answering_rosetta
from tests.conftest import VAE
from tests.modeling_rosetta.test_pipeline_source_images import BOTH, picture, pipeline


LAYOUTS = {
    "in order": {"layout": "in_order"},
    "in order, both, with time": {"layout": "in_order", "image_embeds_from": BOTH, "latent_prefix": True},
    "authors, training": {},
}
TALKS = [
    [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "ab"}]}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a longer question"}],
    [{"role": "user", "content": "c"}],
]


@pytest.fixture(scope="module", params=LAYOUTS)
def pipe(request, make_processor) -> RosettaPipeline:
    return pipeline(make_processor(**LAYOUTS[request.param]))


@pytest.fixture(scope="module")
def in_order(make_processor) -> RosettaPipeline:
    return pipeline(make_processor(**LAYOUTS["in order, both, with time"]))


def bias(processor) -> dict[int, float]:
    """What a model of random weights is made to say: letters, an image here and there, and at last an end."""
    letters = processor.tokenizer("abcdefghijklmnop")["input_ids"]
    return {**dict.fromkeys(letters, 50.0), processor.vision_start_token_id: 51.0, processor.turn_end_token_id: 50.0}


def ask(pipe, talk, seeds=(0,), **kwargs):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    asked = {"max_new_tokens": 20, "max_images": 2, "num_inference_steps": 2}
    asked["sequence_bias"] = [[[token], value] for token, value in bias(pipe.processor).items()]
    return pipe.answer(talk, **{**asked, "generator": generators, **kwargs})


def plain(message: dict) -> list:
    return [item["text"] if item["type"] == "text" else item["type"] for item in message["content"]]


def latents(message: dict) -> list[torch.Tensor]:
    return [item["latents"] for item in message["content"] if item["type"] == "latents"]


@pytest.mark.parametrize("how", [{}, {"guidance_scale": 2.0}, {"sees_drawings": True}], ids=["", "guided", "seen"])
def test_a_batch_answers_as_each_conversation_alone(pipe, how):
    together = ask(pipe, TALKS, range(3), **how)
    for seed, (message, talk) in enumerate(zip(together, TALKS, strict=True)):
        alone = ask(pipe, talk, [seed], **how)
        assert plain(message) == plain(alone)
        torch.testing.assert_close(latents(message), latents(alone), rtol=0, atol=1e-3)
    assert (
        len({len(plain(message)[0]) for message in together}) > 1
    )  # they open their first images at different places
    assert any(latents(message) for message in together)


@torch.no_grad()
def test_it_is_what_an_uncached_forward_predicts(pipe, monkeypatch):
    """Every token of text, and the whole way of every image, of whole rows without a cache."""
    kept, steps, seen = [], [], []
    keep, draw, step = answering_rosetta._Answer._keep, answering_rosetta._Answer.draw, pipe.scheduler.step

    def record(writer, rows):
        if not kept:
            images = [dict(writer.images[row]) for row in writer.rows]
            kept.append((writer.inputs, images, list(writer.rows)))
        keep(writer, rows)

    def record_draw(writer, *arguments):
        seen.append(writer.length)
        draw(writer, *arguments)

    monkeypatch.setattr(answering_rosetta._Answer, "_keep", record)
    monkeypatch.setattr(answering_rosetta._Answer, "draw", record_draw)
    monkeypatch.setattr(pipe.scheduler, "step", lambda *args, **kw: steps.append(args) or step(*args, **kw))
    messages = ask(pipe, TALKS, range(3), min_images=2)
    inputs, images, rows = kept[0]
    assert rows == [0, 1, 2] and len(seen) == 2 and len(steps) == 4
    batch = {key: torch.cat([own[key] for own in images if key in own]) for key in {k for own in images for k in own}}
    logits = pipe.transformer(**inputs, **batch, use_cache=False).logits
    processor, checked = pipe.processor, 0
    special = {*processor._vision_token_ids, processor.turn_start_token_id, processor.cfg_token_id}
    opens = processor.vision_start_token_id
    for token, value in bias(processor).items():
        logits[..., token] += value
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        real = inputs["attention_mask"][row].nonzero().flatten().tolist()
        start = real.index(next(i for i in reversed(real) if ids[i] == processor.turn_start_token_id))
        header = len(processor._headers["assistant"])
        for before, here in list(pairwise(real))[start + header :]:
            if ids[here] in special or inputs["token_type_ids"][row, here] != 0:
                continue
            allowed = logits[row, before].clone()
            allowed[[*(special - {opens})]] = -torch.inf
            if here > seen[-1]:  # no image may be opened any more
                allowed[opens] = -torch.inf
            assert allowed.argmax() == ids[here]
            checked += 1
    assert checked > 10
    # The second image of each row, at the first of its steps.
    length = seen[1]
    prefix = 2 if processor.latent_prefix else 0
    end = length + prefix + bool(prefix) + 16
    cut = {key: value[:, :end] for key, value in inputs.items()}
    is_latent = cut["token_type_ids"] == VAE
    tokens = torch.zeros(int(is_latent.sum()), 8)
    grids, times, noisy, clean = [], [], [], []
    for row, own in enumerate(images):
        sizes = own["latent_grid_hw"].prod(-1).tolist()
        parts = list(own["latents"].split(sizes))
        grids.append(own["latent_grid_hw"])
        times += [0.0] * (len(parts) - 1) + [1.0]
        noise = torch.randn(2, 1, 8, 4, 4, generator=torch.Generator().manual_seed(row))[1, 0]
        noisy += [*parts[:-1], noise.flatten(1).T]
        clean.append(parts[-1])
    tokens = torch.cat(noisy)
    vision = {key: batch[key] for key in batch if key in ("pixel_values", "image_grid_thw", "image_is_causal")}
    velocity = pipe.transformer(
        **cut,
        **vision,
        noisy_latents=tokens,
        latent_grid_hw=torch.cat(grids),
        timesteps=torch.tensor(times),
        use_cache=False,
    ).velocity
    own = velocity.split(torch.cat(grids).prod(-1).tolist())
    last = [sum(len(g) for g in grids[: i + 1]) - 1 for i in range(len(grids))]
    expected = torch.stack([own[i] for i in last]).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(steps[2][0], expected, rtol=0, atol=1e-3)
    assert [len(latents(message)) for message in messages] == [2, 2, 2]


def test_a_stream_is_the_answer(pipe):
    items: list = []
    whole = ask(pipe, TALKS[:2], range(2), min_images=1, on_item=lambda *item: items.append(item))
    for number, message in enumerate(whole):
        pieces = plain({"content": [item for place, item in items if place == number]})
        assert "".join(pieces) == "".join(plain(message)) and len(pieces) > len(plain(message))
    streamed = pipe.stream_answer(TALKS[1], num_inference_steps=1, min_images=1, max_new_tokens=4)
    again = pipe.answer(TALKS[1], num_inference_steps=1, min_images=1, max_new_tokens=4)
    assert "".join(plain({"content": list(streamed)})) == "".join(plain(again))
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer"):
        list(pipe.stream_answer(TALKS[1], max_new_tokens=0))


def test_whoever_stops_listening_stops_the_answer(in_order):
    stream = in_order.stream_answer(TALKS[1], num_inference_steps=2, min_images=1)
    next(stream)
    stream.close()
    assert ask(in_order, TALKS[1])["role"] == "assistant"  # the scheduler is free again


def test_what_was_drawn_can_be_asked_about(in_order):
    message = ask(in_order, TALKS[1], min_images=1, sees_drawings=True)
    assert [item["type"] for item in message["content"] if item["type"] != "text"][:2] == ["latents", "image"]
    question = {"role": "user", "content": "and"}
    batch = in_order.processor.apply_chat_template(
        [*TALKS[1], message, question],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    drawn = torch.cat([latent.flatten(1).T for latent in latents(message)])
    assert torch.equal(batch["latents"], drawn)
    assert len(batch["image_grid_thw"]) == len(latents(message))
    assert ask(in_order, [*TALKS[0], message, question])["content"]


def test_limits(in_order):
    assert "latents" not in plain(ask(in_order, TALKS[1], max_images=0))
    assert len(latents(ask(in_order, TALKS[1], max_images=1))) <= 1
    message = ask(in_order, TALKS[2], max_new_tokens=3, max_images=0)
    assert len(in_order.processor.tokenizer("".join(plain(message)))["input_ids"]) <= 3
    drawn = ask(in_order, TALKS[2], max_new_tokens=3, min_images=2, height=32, width=64)
    assert [tuple(latent.shape[1:]) for latent in latents(drawn)] == [(2, 4), (2, 4)]
    assert {item["image"].size for item in drawn["content"] if item["type"] == "latents"} == {(64, 32)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1"),
        ({"max_images": -1}, "`max_images` must be an integer of at least 0"),
        ({"min_images": 3, "max_images": 2}, "`min_images` must be at most `max_images` = 2"),
        ({"height": 33}, "`height` must be a positive multiple of 16"),
        ({"generator": [torch.Generator()] * 2}, "`generator` must be one or one for each of 1"),
        ({"max_new_token": 3}, "max_new_token"),
    ],
)
def test_what_does_not_fit_is_named(in_order, arguments, message):
    with pytest.raises(ValueError, match=message):
        ask(in_order, TALKS[2], **arguments)
    without = RosettaPipeline(**{**in_order.components, "vae": None})
    with pytest.raises(ValueError, match="`vae` must be part of the pipeline"):
        without.answer(TALKS[2])
    with pytest.raises(ValueError, match="may hold"):
        in_order.answer([{"role": "user", "content": [{"type": "latents", "height": 64, "width": 64}]}])
