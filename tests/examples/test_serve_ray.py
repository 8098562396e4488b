"""Replicas of the server on Ray (`make test-ray`): two answer the same client, and one may die under load."""

import base64
import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import psutil
import pytest
import torch
from PIL import Image

from tests.examples.serving_process import serving, serving_pipeline


pytest.importorskip("ray.serve")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine
STEPS = 200  # so that a drawing takes long enough to be in flight when its replica dies


@pytest.fixture(scope="module")
def pipe():
    return serving_pipeline()


@pytest.fixture(scope="module")
def server(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    pipe.save_pretrained(folder / "tiny")
    options = ("--min_replicas=2", "--max_replicas=2", "--num_gpus=0", "--max_steps=1000")
    with serving(folder / "tiny", folder / "ray.log", *options, script="serve_ray.py") as running:
        yield running


def replicas(server) -> list[int]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child.pid for child in children if " ".join(child.cmdline()).startswith("ray::ServeReplica")]


def draw(client, seed: int) -> np.ndarray:
    body = {"seed": seed, "num_inference_steps": STEPS}
    response = client.images.generate(model="tiny", prompt=f"stone {seed}", extra_body=body)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(response.data[0].b64_json)))).astype(int)


def expected(pipe, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    image = pipe(f"stone {seed}", generator=generator, num_inference_steps=STEPS).images[0]
    return np.asarray(image).astype(int)


def test_two_replicas_answer_the_same_client(server, pipe):
    assert len(replicas(server)) == 2
    client = server.client()
    assert client.models.list().data[0].id == "tiny"
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(model="tiny", prompt="x", size="7x7")
    assert error.value.param == "size"
    talk = [{"role": "user", "content": "a red stone"}]
    whole = client.chat.completions.create(model="tiny", messages=talk, max_tokens=9, seed=0, temperature=1.0)
    for _ in range(4):  # of either
        chunks = client.chat.completions.create(
            model="tiny", messages=talk, max_tokens=9, seed=0, temperature=1.0, stream=True
        )
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert said == whole.choices[0].message.content


def test_a_replica_that_dies_loses_no_request_that_is_tried_again(server, pipe):
    client = server.client(max_retries=5)
    with ThreadPoolExecutor(16) as threads:
        drawings = [threads.submit(draw, client, seed) for seed in range(32)]
        while sum(drawing.done() for drawing in drawings) < 8:
            time.sleep(0.01)
        killed = replicas(server)[0]
        os.kill(killed, signal.SIGKILL)
        for seed, drawing in enumerate(drawings):
            assert np.abs(drawing.result() - expected(pipe, seed)).max() <= 1, seed
    for _ in range(600):
        if len(found := replicas(server)) == 2 and killed not in found:
            return
        time.sleep(0.1)
    raise AssertionError("The replica was not replaced.")
