"""The server as a process: OpenAI's own client chats, streams, draws, edits, and is told what was wrong."""

import base64
import io
import json
import random
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from examples.serve import main
from tests.examples.malformed_requests import request, send
from tests.examples.serving_process import serving, serving_pipeline


STEPS = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipe():
    return serving_pipeline()


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    limits = ("--max_body=300000", "--max_pixels=65536", "--max_drawn_pixels=16384", "--max_tokens=64")
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(model, log, *limits) as running:
        yield running


@pytest.fixture
def client(server):
    return server.client()


def picture(shade: int = 30) -> Image.Image:
    return Image.new("RGB", (64, 64), (shade, 255 - shade, 90))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def question(text: str, *images: bytes) -> list[dict]:
    shown = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def said_by(pipe, talk: list[dict], max_tokens: int = 8) -> str:
    message = pipe.answer(talk, max_images=0, max_new_tokens=max_tokens)
    return re.sub("<｜.*?｜>", "", "".join(item["text"] for item in message["content"]))  # special tokens


def expected_answer(pipe, text: str, *images: Image.Image, max_tokens: int = 8) -> str:
    shown = [{"type": "image", "image": image} for image in images]
    talk = [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
    return said_by(pipe, talk, max_tokens)


def drawn(response) -> list[np.ndarray]:
    files = [base64.b64decode(item.b64_json) for item in response.data]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


def expected_drawing(pipe, prompt: str, seed: int, number: int = 1, **arguments) -> list[np.ndarray]:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(number)]
    images = pipe(prompt, generator=generator, num_images_per_prompt=number, **{**STEPS, **arguments}).images
    return [np.asarray(image).astype(int) for image in images]


def same(images: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """But for rounding."""
    return len(images) == len(expected) and all(
        a.shape == b.shape and np.abs(a - b).max() <= 1 for a, b in zip(images, expected, strict=True)
    )


def test_it_says_what_it_serves(client, server):
    (card,) = client.models.list().data
    assert card.id == "tiny" and client.models.retrieve("tiny") == card
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("large")
    assert error.value.code == "model_not_found"


def test_it_chats_about_an_image(client, pipe):
    answer = client.chat.completions.create(
        model="tiny", messages=question("what is this?", png(picture())), max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == expected_answer(pipe, "what is this?", picture())
    usage, talk = answer.usage, [{"role": "user", "content": [{"type": "image", "image": picture()}]}]
    talk[0]["content"].append({"type": "text", "text": "what is this?"})
    length = len(pipe.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)[0])
    assert usage.prompt_tokens == length and usage.total_tokens == length + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 8


def test_a_conversation_has_turns_and_a_system(client, pipe):
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now?"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=talk, max_completion_tokens=8)
    assert answer.choices[0].message.content == said_by(pipe, talk)


def test_it_streams_what_it_would_say(client):
    how = {"model": "tiny", "messages": question("a story"), "max_tokens": 20, "n": 2, "seed": 3, "temperature": 1.2}
    whole = client.chat.completions.create(**how)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_seed_decides_what_is_sampled(client):
    def ask(**how):
        given = {"model": "tiny", "messages": question("a story"), "max_tokens": 20, "temperature": 1.0, **how}
        return client.chat.completions.create(**given).choices[0].message.content

    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert ask(seed=1, temperature=0) == ask(seed=2, temperature=0) == ask(seed=3, top_p=1e-6)
    text = ask(seed=1)
    assert ask(seed=1, stop=[text[1:3], "never"]) == text[: text.index(text[1:3])]


def test_it_draws_what_the_pipeline_draws(client, pipe):
    body = {"seed": 7, "guidance_scale": 2.0, "negative_prompt": "blue", **STEPS}
    response = client.images.generate(
        model="tiny", prompt="a red stone", n=2, size="64x32", response_format="b64_json", extra_body=body
    )
    expected = expected_drawing(
        pipe, "a red stone", 7, 2, height=32, width=64, guidance_scale=2.0, negative_prompt="blue"
    )
    assert same(drawn(response), expected) and response.size == "64x32"


def test_it_draws_from_an_image(client, pipe):
    image = ("picture.png", png(picture()))
    read = client.images.edit(model="tiny", image=image, prompt="bolder", extra_body={"seed": 1, **STEPS})
    assert same(drawn(read), expected_drawing(pipe, "bolder", 1, image=[picture()]))
    several = client.images.edit(model="tiny", image=[image, image], prompt="bolder", extra_body={"seed": 1, **STEPS})
    assert same(drawn(several), expected_drawing(pipe, "bolder", 1, image=[picture(), picture()]))
    over = client.images.edit(
        model="tiny", image=image, prompt="bolder", size="64x64", extra_body={"seed": 1, "strength": 0.5, **STEPS}
    )
    expected = expected_drawing(pipe, "bolder", 1, image=[picture()], strength=0.5, height=64, width=64)
    assert same(drawn(over), expected)


CHAT_ERRORS = {
    "max_tokens": ({"max_tokens": 65}, "at most 64, got 65"),
    "n": ({"n": 33}, "at most 32, got 33"),
    "stop": ({"stop": ["a"] * 5}, "may be 4 strings"),
    "temperature": ({"temperature": 3}, "less than or equal to 2"),
    "top_p": ({"top_p": 0}, "greater than 0"),
    "seed": ({"seed": -1}, "greater than or equal to 0"),
    "logprobs": ({"logprobs": True}, "not supported"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "not supported"),
    "stream": ({"extra_body": {"stream": "yes"}}, "valid boolean"),
    "beams": ({"extra_body": {"beams": 4}}, "Unrecognized request argument"),
    "messages": ({"messages": []}, "at least 1 item"),
    "messages[0].role": ({"messages": [{"role": "robot", "content": "x"}]}, "'developer', 'user'"),
    "messages[0].content[0].image_url": ({"messages": question("x", b"no image")}, "no image of PNG"),
    "messages[1].content[0]": (
        {
            "messages": [
                *question("x"),
                {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": data_url(b"")}}]},
            ]
        },
        "of the role 'user'",
    ),
}


@pytest.mark.parametrize("param", CHAT_ERRORS)
def test_an_error_of_a_chat_names_the_argument(client, param):
    given, said = CHAT_ERRORS[param]
    with pytest.raises(openai.BadRequestError, match=said) as error:
        client.chat.completions.create(**{"model": "tiny", "messages": question("x"), **given})
    assert error.value.param == param and error.value.type == "invalid_request_error"


IMAGE_ERRORS = {
    "size": [({"size": "65x64"}, "positive multiple of 16"), ({"size": "256x256"}, "may have 16384 pixels")],
    "n": [({"n": 9}, "at most 8"), ({"n": 0}, "greater than or equal to 1")],
    "prompt": [({"prompt": " "}, "not be empty"), ({"prompt": "<|vision_start|>" * 200}, "may have 512 tokens")],
    "num_inference_steps": [({"extra_body": {"num_inference_steps": 101}}, "at most 100")],
    "guidance_scale": [({"extra_body": {"guidance_scale": "much"}}, "valid number")],
    "response_format": [({"response_format": "url"}, "'b64_json'")],
}


@pytest.mark.parametrize("param", IMAGE_ERRORS)
def test_an_error_of_a_drawing_names_the_argument(client, param):
    for given, said in IMAGE_ERRORS[param]:
        with pytest.raises(openai.BadRequestError, match=said) as error:
            client.images.generate(**{"model": "tiny", "prompt": "x", **given})
        assert error.value.param == param


def test_an_error_of_an_edit_names_the_argument(client):
    image = ("picture.png", png(picture()))
    for param, given, said in (
        ("image", {"image": ("a.png", b"none")}, "no image of PNG"),
        ("image", {"image": ("a.png", png(Image.new("RGB", (512, 512))))}, "may have 65536 pixels, got 512 x 512"),
        ("mask", {"image": image, "mask": image}, "not supported"),
        ("strength", {"image": image, "extra_body": {"strength": 2}}, "less than or equal to 1"),
        (
            "image_guidance_scale",
            {"image": image, "extra_body": {"strength": 0.5, "image_guidance_scale": 2}},
            "together",
        ),
        ("colour", {"image": image, "extra_body": {"colour": "red"}}, "Unrecognized request argument"),
    ):
        with pytest.raises(openai.BadRequestError, match=said) as error:
            client.images.edit(**{"model": "tiny", "prompt": "x", **given})
        assert error.value.param == param


def mixed_request(number: int, client) -> object:
    """One of 64 that are all different, and what comes back."""
    match number % 4:
        case 0:
            body = {"seed": number, "num_inference_steps": 2 + number % 5, "guidance_scale": 1.0 + number % 3}
            size = "64x64" if number % 8 else "64x32"
            response = client.images.generate(
                model="tiny", prompt=f"stone {number}", n=1 + number % 3, size=size, extra_body=body
            )
            return drawn(response)
        case 1:
            image = ("picture.png", png(picture(number)))
            body = {"seed": number, **STEPS}
            return drawn(client.images.edit(model="tiny", image=image, prompt="bolder", extra_body=body))
        case 2:
            answer = client.chat.completions.create(
                model="tiny", messages=question(f"what is {number}?", png(picture(number))), max_tokens=6
            )
            return answer.choices[0].message.content
        case _:
            chunks = client.chat.completions.create(
                model="tiny", messages=question("a" * number), max_tokens=6, seed=number, temperature=1.0, stream=True
            )
            return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_of_64_at_once_none_is_lost_and_none_is_wrong(client, server):
    alone = [mixed_request(number, client) for number in range(64)]
    with ThreadPoolExecutor(64) as threads:
        together = list(threads.map(lambda number: mixed_request(number, client), range(64)))
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert same(other, one) if number % 4 < 2 else other == one, number
    assert server.metric("rosetta_rows_sum", kind="drawing") > server.metric("rosetta_rows_count", kind="drawing")


def test_malformed_requests_break_nothing(client, server, pipe):
    rng, statuses = random.Random(0), []
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    for _ in range(100):
        data, is_cut = request(rng, 300_000)
        status = send(address, data, is_cut)
        assert is_cut or status in (200, 400, 404, 405, 413), data[:2000]
        statuses.append(status)
    assert statuses.count(400) > 30 and statuses.count(200) > 0 and statuses.count(413) > 0
    answer = client.chat.completions.create(model="tiny", messages=question("hello"), max_tokens=8)
    assert answer.choices[0].message.content == expected_answer(pipe, "hello")
    assert server.metric("rosetta_requests_in_flight") == server.metric("rosetta_jobs_waiting") == 0


@pytest.fixture(scope="module")
def strict(model, tmp_path_factory):
    """With a key, room for two, little time, and answers and drawings without an end."""
    log = tmp_path_factory.mktemp("log") / "strict.log"
    limits = ("--api_key=secret", "--max_requests=2", "--time_limit=4", "--max_steps=1000000", "--max_tokens=32000")
    with serving(model, log, *limits, "--allow_remote_images") as running:
        yield running


def endless(client, **others):
    return client.images.generate(model="tiny", prompt="x", extra_body={"num_inference_steps": 20_000}, **others)


def until(condition):
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("It did not happen.")


def test_it_wants_its_key(strict):
    for key in ("wrong", "secre", "secret2"):
        with pytest.raises(openai.AuthenticationError) as error:
            strict.client(key).models.list()
        assert error.value.code == "invalid_api_key"
    assert strict.client("secret").models.list().data
    with urllib.request.urlopen(strict.url + "/health") as answer:  # for probes
        assert json.load(answer) == {"status": "ok"}


def test_there_is_a_line_and_a_time_limit(strict):
    with ThreadPoolExecutor(2) as threads:
        held = [threads.submit(endless, strict.client("secret")) for _ in range(2)]
        until(lambda: strict.metric("rosetta_requests_in_flight") == 2)
        with pytest.raises(openai.RateLimitError) as error:
            strict.client("secret").models.list()
        assert error.value.code == "too_many_requests" and error.value.response.headers["Retry-After"] == "1"
        for request in held:
            with pytest.raises(openai.InternalServerError) as error:
                request.result()
            assert error.value.status_code == 504 and error.value.code == "timeout"


def test_nothing_is_computed_for_a_client_that_has_left(strict):
    with pytest.raises(openai.APITimeoutError):
        endless(strict.client("secret", timeout=1))
    chunks = strict.client("secret").chat.completions.create(
        model="tiny", messages=question("a story"), temperature=2.0, stream=True, n=8
    )
    for _ in range(20):
        next(iter(chunks))
    chunks.close()
    until(lambda: strict.metric("rosetta_requests_in_flight") == 0)
    assert strict.metric("rosetta_requests_total", status="499") == 1
    time.sleep(0.1)
    done = [strict.metric(name) for name in ("rosetta_image_steps_total", "rosetta_answer_tokens_total")]
    time.sleep(0.3)
    assert done == [strict.metric(name) for name in ("rosetta_image_steps_total", "rosetta_answer_tokens_total")]


def test_it_fetches_nothing_from_this_machine(strict):
    for url in (strict.url + "/metrics", strict.url.replace("127.0.0.1", "localhost"), "http://[::1]/"):
        talk = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        with pytest.raises(openai.BadRequestError, match="not a public address") as error:
            strict.client("secret").chat.completions.create(model="tiny", messages=talk)
        assert error.value.param == "messages[0].content[0].image_url"


def test_it_ends_what_it_has_begun_before_it_stops(strict):
    """The last test of this server."""
    with ThreadPoolExecutor(1) as threads:
        given = {"model": "tiny", "prompt": "x", "extra_body": {"num_inference_steps": 40}}
        drawing = threads.submit(strict.client("secret").images.generate, **given)
        until(lambda: strict.metric("rosetta_requests_in_flight") == 1)
        strict.process.send_signal(signal.SIGTERM)
        assert len(drawing.result().data) == 1
    assert strict.process.wait(20) in (0, -signal.SIGTERM)
    with pytest.raises(OSError):
        urllib.request.urlopen(strict.url + "/health")


def test_what_cannot_be_served_is_said_before(model, capsys):
    for arguments, said in (
        (["nowhere/none"], "MODEL: 'nowhere/none' cannot be loaded"),
        ([str(model), "--dtype=half-a-float"], "--dtype must be 'auto' or a type of torch"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
