"""One model and its engine, as the endpoints see them."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from fastapi import Request

from modeling_rosetta import RosettaPipeline

from .engine import Engine
from .errors import RequestError
from .jobs import Job
from .metrics import Metrics
from .settings import Settings


CHARACTERS_OF_TOKEN = 64  # more than this many in a token are not worth counting its tokens


class Server:
    """
    What the endpoints share: the engine, what requests are held to, and how they wait.

    Args:
        name (`str`): of the model.
        pipe ([`RosettaPipeline`])
        settings ([`Settings`])
        metrics ([`Metrics`])
    """

    def __init__(self, name: str, pipe: RosettaPipeline, settings: Settings, metrics: Metrics):
        self.pipe, self.settings, self.name = pipe, settings, name
        self.engine = Engine(pipe, settings, metrics)
        self.card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "rosetta"}
        # The engine's processor reads prompts to draw; a tokenizer is for one thread.
        self.processor, self.reader = copy.deepcopy(pipe.processor), ThreadPoolExecutor(1, "reader")
        self.context = pipe.transformer.config.max_position_embeddings

    def check_model(self, name: str | None):
        if name not in (None, self.name):
            message = f"The model '{name[:100]}' does not exist: this server has '{self.name}'."
            raise RequestError(message, "model", 404, "model_not_found")

    async def all_items(self, request: Request, job: Job) -> list:
        """What a job tells, unless it takes too long or the client is gone."""

        async def collect():
            async with aclosing(self.items(job)) as items:
                return [item async for item in items]

        async def gone():
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(collect()), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise RequestError("The client has closed the connection.", status=499)
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    async def items(self, job: Job) -> AsyncIterator:
        self.engine.submit(job)
        try:
            async with asyncio.timeout(self.settings.time_limit), aclosing(job.items()) as items:
                async for item in items:
                    yield item
        except TimeoutError:
            message = f"The request took longer than {self.settings.time_limit} s, with its time in the queue."
            raise RequestError(message, status=504, code="timeout") from None

    def check_number(self, number: int, most: int):
        if number > most:
            raise RequestError(f"`n` may be at most {most}, got {number}.", "n")

    def check_length(self, text: str, param: str):
        if len(text) > self.context * CHARACTERS_OF_TOKEN:
            message = f"'{param}' has {len(text)} characters, more than {self.context} tokens can be."
            raise RequestError(message, param, code="context_length_exceeded")


__all__ = ["Server"]
