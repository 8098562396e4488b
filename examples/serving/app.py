"""The application: OpenAI's endpoints over one engine."""

import asyncio
import base64
import copy
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from modeling_rosetta import RosettaPipeline

from .answering import AnswerJob, Piece, Sampling
from .drawing import DrawingJob
from .engine import Engine
from .errors import RequestError, add_error_handlers, from_value_error
from .gate import Gate
from .jobs import Job
from .metrics import Metrics
from .pictures import image_of_bytes, image_of_url
from .protocol import ChatCompletion, ImageEdit, ImageGeneration, Message
from .settings import Settings


CHARACTERS_OF_TOKEN = 64  # more than this many in a token are not worth counting its tokens
MOST_STOPS, LONGEST_STOP = 4, 200
FORM_PARTS = 64


def create_app(name: str, load: Callable[[], RosettaPipeline], settings: Settings) -> FastAPI:
    """
    Args:
        name (`str`): what the model is called in requests.
        load (`Callable`): returns the pipeline, on its device; called when the application starts.
        settings ([`Settings`])
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.server = server = Server(name, await asyncio.to_thread(load), settings, metrics)
        yield
        await asyncio.to_thread(server.engine.stop)

    app = FastAPI(title="Rosetta", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    add_error_handlers(app)

    @app.get("/health")
    async def health(request: Request):
        is_running = request.app.state.server.engine.is_running
        return JSONResponse({"status": "ok" if is_running else "failed"}, 200 if is_running else 503)

    @app.get("/metrics")
    async def figures():
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(request: Request):
        return {"object": "list", "data": [request.app.state.server.card]}

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str):
        request.app.state.server.check_model(model)
        return request.app.state.server.card

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatCompletion):
        return await request.app.state.server.chat(request, body)

    @app.post("/v1/images/generations")
    async def generations(request: Request, body: ImageGeneration):
        return await request.app.state.server.draw(request, body, {})

    @app.post("/v1/images/edits")
    async def edits(request: Request):
        server = request.app.state.server
        body, images = await read_form(request, server.settings)
        given = {"image": images, "strength": body.strength, "image_guidance_scale": body.image_guidance_scale}
        return await server.draw(request, body, given)

    return app


class Server:
    """What the endpoints do."""

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

    async def chat(self, request: Request, body: ChatCompletion):
        self.check_model(body.model)
        self._check_number(body.n, self.settings.max_answers)
        sampling = self._sampling(body)
        read = partial(self._read, body.messages, sampling.max_tokens)
        batch, sampling.max_tokens = await asyncio.get_running_loop().run_in_executor(self.reader, read)
        num_read = int(batch["attention_mask"].sum())
        job = AnswerJob(batch, sampling, body.n)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.name}
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(job, head, num_read, with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        texts, reasons, num_written = [""] * body.n, [""] * body.n, 0
        for piece in await self._all_items(request, job):
            texts[piece.number] += piece.text
            if piece.finish_reason is not None:
                reasons[piece.number] = piece.finish_reason
                num_written += piece.num_tokens
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": reason,
                "logprobs": None,
            }
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**head, "object": "chat.completion", "choices": choices, "usage": _usage(num_read, num_written)}

    async def draw(self, request: Request, body: ImageGeneration, given: dict):
        self.check_model(body.model)
        self._check_number(body.n, self.settings.max_drawings)
        if self.pipe.transformer.config.token_type_index("noisy_latents") is None:
            raise RequestError(f"The model '{self.name}' does not draw.", "model", code="model_does_not_draw")
        height, width = body.height_and_width()
        if height is not None and height * width > self.settings.max_drawn_pixels:
            raise RequestError(f"`size` may have {self.settings.max_drawn_pixels} pixels, got {body.size}.", "size")
        if body.num_inference_steps > self.settings.max_steps:
            raise RequestError(
                f"`num_inference_steps` may be at most {self.settings.max_steps}, got {body.num_inference_steps}.",
                "num_inference_steps",
            )
        if not body.prompt.strip():
            raise RequestError("`prompt` must not be empty.", "prompt")
        self._check_length(body.prompt, "prompt")
        self._check_length(body.negative_prompt or "", "negative_prompt")
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        job = DrawingJob(
            {
                "prompt": body.prompt,
                "negative_prompt": body.negative_prompt,
                "height": height,
                "width": width,
                "num_inference_steps": body.num_inference_steps,
                "guidance_scale": body.guidance_scale,
                "num_images_per_prompt": body.n,
                "generator": generators(seed, body.n),
                **given,
            }
        )
        (images,) = await self._all_items(request, job)
        data = await asyncio.to_thread(lambda: [{"b64_json": _png(image)} for image in images])
        size = f"{images[0].width}x{images[0].height}"
        return {"created": int(time.time()), "data": data, "size": size, "output_format": "png", "seed": seed}

    async def _all_items(self, request: Request, job: Job) -> list:
        """What a job tells, unless it takes too long or the client is gone."""

        async def collect():
            async with aclosing(self._items(job)) as items:
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

    async def _items(self, job: Job) -> AsyncIterator:
        self.engine.submit(job)
        try:
            async with asyncio.timeout(self.settings.time_limit), aclosing(job.items()) as items:
                async for item in items:
                    yield item
        except TimeoutError:
            message = f"The request took longer than {self.settings.time_limit} s, with its time in the queue."
            raise RequestError(message, status=504, code="timeout") from None

    async def _events(self, job: AnswerJob, head: dict, num_read: int, with_usage: bool) -> AsyncIterator[str]:
        """An answer as it is written, as server-sent events."""

        def event(choices: list[dict], **others) -> str:
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **others})}\n\n"

        def choice(number: int, delta: dict, reason: str | None = None) -> dict:
            return {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}

        for number in range(job.size):
            yield event([choice(number, {"role": "assistant", "content": ""})])
        num_written = 0
        try:
            async with aclosing(self._items(job)) as pieces:
                piece: Piece
                async for piece in pieces:
                    delta = {"content": piece.text} if piece.text else {}
                    yield event([choice(piece.number, delta, piece.finish_reason)])
                    num_written += piece.num_tokens if piece.finish_reason is not None else 0
        except Exception as error:
            known = error if isinstance(error, RequestError) else RequestError("The answer failed.", status=500)
            yield f"data: {json.dumps(known.body())}\n\n"
            return
        if with_usage:
            yield event([], usage=_usage(num_read, num_written))
        yield "data: [DONE]\n\n"

    def _read(self, messages: list[Message], max_tokens: int) -> tuple[dict, int]:
        """A conversation as the model takes it, and how many tokens its answer may have."""
        conversation, num_images = [], 0
        for i, message in enumerate(messages):
            role = "system" if message.role == "developer" else message.role
            parts = message.content
            if isinstance(parts, str):
                self._check_length(parts, f"messages[{i}].content")
                conversation.append({"role": role, "content": parts})
                continue
            content = []
            for j, part in enumerate(parts):
                param = f"messages[{i}].content[{j}]"
                if part.type == "text":
                    self._check_length(part.text, param + ".text")
                    content.append({"type": "text", "text": part.text})
                    continue
                if role != "user":
                    raise RequestError(f"'{param}': images are for messages of the role 'user', got '{role}'.", param)
                num_images += 1
                if num_images > self.settings.max_images:
                    raise RequestError(f"'messages' may have {self.settings.max_images} images.", param)
                image = image_of_url(part.image_url.url, param + ".image_url", self.settings)
                content.append({"type": "image", "image": image})
            conversation.append({"role": role, "content": content})
        try:
            batch = self.processor.apply_chat_template(
                [conversation],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"return_tensors": "pt", "padding": True},
            )
        except ValueError as error:
            raise from_value_error(error, "messages") from None
        room = self.context - batch["input_ids"].shape[1]
        if room < 1:
            raise RequestError(
                f"'messages' have {self.context - room} tokens, and with the answer there is room for {self.context}.",
                "messages",
                code="context_length_exceeded",
            )
        return dict(batch), min(max_tokens, room)

    def _sampling(self, body: ChatCompletion) -> Sampling:
        """Of a request; what it leaves out is as the model's own configuration says."""
        own = self.pipe.transformer.generation_config
        samples = bool(own.do_sample)
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            message = "Only one of `max_tokens` and `max_completion_tokens` can be given."
            raise RequestError(message, "max_tokens")
        name = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        max_tokens = getattr(body, name)
        if max_tokens is not None and max_tokens > self.settings.max_tokens:
            raise RequestError(f"`{name}` may be at most {self.settings.max_tokens}, got {max_tokens}.", name)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if len(stop) > MOST_STOPS or not all(0 < len(one) <= LONGEST_STOP for one in stop):
            message = f"`stop` may be {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters."
            raise RequestError(message, "stop")
        temperature = body.temperature
        if temperature is None:
            temperature = (own.temperature or 1.0) if samples else float(body.top_p is not None)
        return Sampling(
            max_tokens=max_tokens or self.settings.max_tokens,
            temperature=temperature,
            top_p=body.top_p if body.top_p is not None else (own.top_p or 1.0) if samples else 1.0,
            top_k=own.top_k or 0 if samples else 0,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            stop=stop,
        )

    def _check_number(self, number: int, most: int):
        if number > most:
            raise RequestError(f"`n` may be at most {most}, got {number}.", "n")

    def _check_length(self, text: str, param: str):
        if len(text) > self.context * CHARACTERS_OF_TOKEN:
            message = f"'{param}' has {len(text)} characters, more than {self.context} tokens can be."
            raise RequestError(message, param, code="context_length_exceeded")


async def read_form(request: Request, settings: Settings) -> tuple[ImageEdit, list]:
    """Of an edit: its fields, and its images."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("The body must be multipart/form-data, with the image as a file.")
    async with request.form(max_files=settings.max_images + 1, max_fields=FORM_PARTS) as form:
        files, fields = [], {}
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                if key not in ("image", "image[]"):
                    known = "`mask` is not supported: say what to change." if key == "mask" else "Unknown file."
                    raise RequestError(known, key)
                files.append(await value.read())
            elif key in fields:
                raise RequestError(f"'{key}' was given twice.", key)
            else:
                fields[key] = value
        if not files:
            raise RequestError("Missing required parameter: 'image', a file.", "image")
        if len(files) > settings.max_images:
            raise RequestError(f"'image' may be {settings.max_images} images.", "image")
        try:
            body = ImageEdit(**fields)
        except ValidationError as error:
            located = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise RequestValidationError(located, body=fields) from None
    return body, [await asyncio.to_thread(image_of_bytes, data, "image", settings) for data in files]


def generators(seed: int, number: int) -> list[torch.Generator]:
    """For each image of a request: the first has the request's seed, each other the next."""
    return [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(number)]


def _usage(num_read: int, num_written: int) -> dict:
    return {
        "prompt_tokens": num_read,
        "completion_tokens": num_written,
        "total_tokens": num_read + num_written,
    }


def _png(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


__all__ = ["create_app"]
