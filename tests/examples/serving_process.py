"""The server as a process, on a model of tiny random parts."""

import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import openai
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_rosetta import RosettaPipeline
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


TOP = Path(__file__).parents[2]


def serving_pipeline(latent_prefix: bool = False) -> RosettaPipeline:
    """Which looks at images, as 4 tokens each. All its experts see all tokens: else rounding, which depends on the
    rest of a batch, might decide between two."""
    pipe = tiny_pipeline(latent_prefix=latent_prefix, expert_pools={"text": 2, "vit": 2, "vae": 2})
    edges = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16}
    pipe.processor.image_processor = Qwen2VLImageProcessorPil(patch_size=4, size=edges)
    return pipe


class ServerProcess:
    """
    Args:
        model (`Path`)
        log (`Path`): of what it prints.
        options: of the script.
        script (`str`): among the examples.

    Attributes:
        url (`str`)
        process (`subprocess.Popen`)
    """

    def __init__(self, model: Path, log: Path, *options: str, script: str = "serve.py"):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [sys.executable, TOP / "examples" / script, model, f"--port={port}", "--device=cpu", *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=TOP)

    def wait(self):
        for _ in range(3000):
            try:
                with urllib.request.urlopen(self.url + "/health") as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError(f"The server did not start: {self.log.read_text()}")

    def client(self, key: str = "none", **others) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, **{"max_retries": 0, "timeout": 60, **others})

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(self.url + "/metrics") as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = [line for line in lines if line.startswith(name) and all(label in line for label in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


@contextmanager
def serving(model: Path, log: Path, *options: str, script: str = "serve.py"):
    server = ServerProcess(model, log, *options, script=script)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
