"""What is computed together is what is computed alone: drawings that join at a step, answers that join at a token."""

import asyncio
import re

import pytest
import torch
from PIL import Image

from examples.serving.answering import AnswerJob, Sampling
from examples.serving.drawing import DrawingJob, Drawings
from examples.serving.engine import Engine
from examples.serving.errors import RequestError
from examples.serving.metrics import Metrics
from examples.serving.settings import Settings
from modeling_rosetta import unmount
from tests.examples.serving_process import serving_pipeline


@pytest.fixture(scope="module", params=[True, False], ids=["timestep_token", "no_timestep_token"])
def pipe(request):
    return serving_pipeline(latent_prefix=request.param)


def drawing(prompt: str, seed: int, number: int = 1, **others) -> dict:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(number)]
    given = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent", **others}
    return {"prompt": prompt, "generator": generator, "num_images_per_prompt": number, **given}


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (shade, 255 - shade, 90))


def drawings() -> list[dict]:
    return [
        drawing("a red stone", 0),
        drawing("seven white doves on a wire", 1, number=2, num_inference_steps=3),
        drawing("x", 2, guidance_scale=1.0, num_inference_steps=6),
        drawing("a river", 3, height=32, width=64, negative_prompt="blue"),
        drawing("a moon", 4, guidance_scale=5.0, num_inference_steps=2),
        drawing("another river", 5, height=32, width=64),
        drawing("bolder", 6, image=[picture(20)], image_guidance_scale=1.5),
    ]


async def when(metrics: Metrics, steps: int):
    """After so many steps of images."""
    while metrics.image_steps._value.get() < steps:
        await asyncio.sleep(0.001)


async def items_of(job) -> list:
    return [item async for item in job.items()]


def run(pipe, conduct, **settings):
    """What `conduct(engine)` returns, with an engine that ends after it."""

    async def main():
        engine = Engine(pipe, Settings(**{"max_drawings": 32, **settings}), Metrics())
        try:
            return await asyncio.wait_for(conduct(engine), 60)
        finally:
            await asyncio.to_thread(engine.stop)

    return asyncio.run(main())


def test_a_drawing_that_joins_is_the_one_that_is_drawn_alone(pipe):
    async def conduct(engine):
        jobs = []
        for i, arguments in enumerate(drawings()):
            jobs.append(DrawingJob(arguments))
            engine.submit(jobs[-1])
            await when(engine.metrics, 2 * i + 1)
        return [(await items_of(job))[0] for job in jobs]

    together = run(pipe, conduct)
    for arguments, drawn in zip(drawings(), together, strict=True):
        torch.testing.assert_close(drawn, pipe(**arguments).images, rtol=1e-5, atol=2e-5)


def test_steps_of_one_size_are_one_run_of_the_transformer(pipe):
    rows = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["timesteps"])) if "timesteps" in given else None,
        with_kwargs=True,
    )

    async def conduct():
        batch = Drawings(pipe, 32, Metrics())
        batch.step([DrawingJob(arguments) for arguments in drawings()[:3]])
        batch.step([DrawingJob(arguments) for arguments in drawings()[3:5]])
        while batch.size:
            batch.step([])

    asyncio.run(conduct())
    handle.remove()
    # Guided images have two rows. The size of the fourth is another, so it has runs of its own.
    assert sorted(rows) == sorted([2 + 4 + 1, 2 + 4 + 1 + 2, 2 + 4 + 1 + 2, 2 + 1, 1, 1] + [2] * 4)


def conversation(pipe, text: str, shade: int | None = None) -> dict:
    images = [] if shade is None else [{"type": "image", "image": picture(shade)}]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def batch_of(pipe, conversation: list[dict]) -> dict:
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return dict(pipe.processor.apply_chat_template([conversation], **arguments, return_tensors="pt"))


def sampling(max_tokens: int = 8, temperature: float = 0.0, **others) -> Sampling:
    given = {"top_p": 1.0, "top_k": 0, "seed": 0, "stop": [], **others}
    return Sampling(max_tokens=max_tokens, temperature=temperature, **given)


def asked(pipe) -> list[tuple]:
    return [
        (conversation(pipe, "a red stone"), sampling(9), 1),
        (conversation(pipe, "what is this?", shade=3), sampling(5, temperature=0.7, seed=5), 2),
        (conversation(pipe, "x"), sampling(7, temperature=1.5, top_p=0.9), 1),
        (conversation(pipe, "seven white doves on a wire", shade=200), sampling(8), 1),
        (conversation(pipe, "and this?", shade=77), sampling(4, temperature=1.0, top_k=5, seed=2**63 - 1), 3),
    ]


def texts(pieces) -> dict[int, str]:
    found: dict[int, str] = {}
    for piece in pieces:
        found[piece.number] = found.get(piece.number, "") + piece.text
    return found


def test_an_answer_that_joins_is_the_one_that_is_written_alone(pipe):
    async def together(engine):
        jobs = [AnswerJob(batch_of(pipe, talk), how, number) for talk, how, number in asked(pipe)]
        for i, job in enumerate(jobs):
            engine.submit(job)
            while engine.metrics.answer_tokens._value.get() < i:
                await asyncio.sleep(0.001)
        return [texts(await items_of(job)) for job in jobs]

    async def alone(engine):
        found = []
        for talk, how, number in asked(pipe):
            job = AnswerJob(batch_of(pipe, talk), how, number)
            engine.submit(job)
            found.append(texts(await items_of(job)))
        return found

    expected = run(pipe, alone)
    assert run(pipe, together) == expected
    assert [len(found) for found in expected] == [1, 2, 1, 1, 3]
    assert len(set(expected[4].values())) > 1  # a seed for each


def test_the_likeliest_answer_is_that_of_the_pipeline(pipe):
    talk = conversation(pipe, "what is this?", shade=3)
    message = pipe.answer(talk, max_images=0, max_new_tokens=12)

    async def conduct(engine):
        job = AnswerJob(batch_of(pipe, talk), sampling(12), 1)
        engine.submit(job)
        return await items_of(job)

    pieces = run(pipe, conduct)
    expected = re.sub("<｜.*?｜>", "", "".join(item["text"] for item in message["content"]))  # special tokens
    assert texts(pieces) == {0: expected} and expected
    assert pieces[-1].finish_reason == "length" and pieces[-1].num_tokens == 12


@pytest.mark.parametrize("length", [1, 2])
def test_an_answer_ends_before_a_stop_string_and_says_nothing_of_it(pipe, length):
    async def conduct(engine):
        found = []
        for stop in ([], None):
            text = texts(found[0])[0] if found else ""
            job = AnswerJob(batch_of(pipe, conversation(pipe, "a red stone")), sampling(60, temperature=1.0), 1)
            job.sampling.stop = ["never", text[2 : 2 + length]] if stop is None else stop
            engine.submit(job)
            found.append(await items_of(job))
        return found

    free, stopped = run(pipe, conduct)
    text = texts(free)[0]
    assert texts(stopped)[0] == text[: text.index(text[2 : 2 + length])]
    assert stopped[-1].finish_reason == "stop" and len(text) >= 4


def test_who_leaves_is_computed_no_further(pipe):
    async def conduct(engine):
        left, kept = DrawingJob(drawing("x", 0, num_inference_steps=20_000)), DrawingJob(drawings()[0])
        answer = AnswerJob(batch_of(pipe, conversation(pipe, "x")), sampling(100_000), 1)
        for job in (left, answer):
            engine.submit(job)
        await when(engine.metrics, 3)
        left.is_left = answer.is_left = True
        engine.submit(kept)
        (drawn,) = await items_of(kept)
        while any(batch.size for batch in engine._batches.values()):
            await asyncio.sleep(0.001)
        return drawn

    drawn = run(pipe, conduct)
    torch.testing.assert_close(drawn, pipe(**drawings()[0]).images, rtol=0, atol=2e-5)


def test_an_error_is_of_the_request_that_made_it(pipe):
    async def conduct(engine):
        jobs = [DrawingJob(drawing("x", 0, height=7)), DrawingJob(drawings()[0])]
        for job in jobs:
            engine.submit(job)
        with pytest.raises(RequestError, match="positive multiple") as error:
            await items_of(jobs[0])
        assert error.value.param == "size" and error.value.status == 400
        return await items_of(jobs[1])

    assert len(run(pipe, conduct)) == 1


def test_a_model_that_does_not_look_at_images_says_why_it_does_not_draw_from_them():
    blind = serving_pipeline()
    unmount(blind.transformer, "vit", processor=blind.processor)

    async def conduct(engine):
        job = DrawingJob(drawing("bolder", 0, image=[picture(9)]))
        engine.submit(job)
        with pytest.raises(RequestError, match="no token type of this model embeds from 'pixel_values'") as error:
            await items_of(job)
        return error.value.param

    assert run(blind, conduct) == "image"


def test_a_step_that_fails_fails_its_requests_and_the_engine_goes_on(pipe, monkeypatch):
    async def conduct(engine):
        batch, run = engine._batches[DrawingJob], engine._batches[DrawingJob]._run
        monkeypatch.setattr(batch, "_run", None)
        job = DrawingJob(drawings()[0])
        engine.submit(job)
        with pytest.raises(AttributeError):
            await items_of(job)
        monkeypatch.setattr(batch, "_run", run)
        again = DrawingJob(drawings()[0])
        engine.submit(again)
        return await items_of(again)

    assert len(run(pipe, conduct)) == 1


def test_what_does_not_fit_waits_in_line(pipe):
    async def conduct(engine):
        jobs = [DrawingJob(drawing("x", i, number=2)) for i in range(4)]
        for job in jobs:
            engine.submit(job)
        drawn = [(await items_of(job))[0] for job in jobs]
        return drawn, engine.metrics.together.labels("drawing")

    drawn, rows = run(pipe, conduct, max_drawings=3)
    assert [len(images) for images in drawn] == [2] * 4
    assert rows._sum.get() == 2 * 4 * 4 and sum(bucket.get() for bucket in rows._buckets[:2]) == 4 * 4


def test_a_stopped_engine_fails_what_is_left(pipe):
    async def main():
        engine = Engine(pipe, Settings(), Metrics())
        jobs = [DrawingJob(drawing("x", i, number=8, num_inference_steps=1000)) for i in range(2)]
        for job in jobs:
            engine.submit(job)
        await when(engine.metrics, 8)
        await asyncio.to_thread(engine.stop)
        for job in jobs:
            with pytest.raises(RequestError, match="shutting down"):
                await asyncio.wait_for(items_of(job), 5)

    asyncio.run(main())
