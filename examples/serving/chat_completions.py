"""`/v1/chat/completions`: a conversation becomes a job of the engine, its pieces a response or a stream."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from fastapi import Request
from fastapi.responses import StreamingResponse

from .answering import AnswerJob, Piece, Sampling
from .errors import RequestError, from_value_error
from .pictures import image_of_url
from .protocol import ChatCompletion, Message
from .server import Server


MOST_STOPS, LONGEST_STOP = 4, 200


async def complete(server: Server, request: Request, body: ChatCompletion):
    server.check_model(body.model)
    server.check_number(body.n, server.settings.max_answers)
    sampling = _sampling(server, body)
    read = partial(_read, server, body.messages, sampling.max_tokens)
    batch, sampling.max_tokens = await asyncio.get_running_loop().run_in_executor(server.reader, read)
    num_read = int(batch["attention_mask"].sum())
    job = AnswerJob(batch, sampling, body.n)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": server.name}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(server, job, head, num_read, with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    texts, reasons, num_written = [""] * body.n, [""] * body.n, 0
    for piece in await server.all_items(request, job):
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


async def _events(server: Server, job: AnswerJob, head: dict, num_read: int, with_usage: bool) -> AsyncIterator[str]:
    """An answer as it is written, as server-sent events."""

    def event(choices: list[dict], **others) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **others})}\n\n"

    def choice(number: int, delta: dict, reason: str | None = None) -> dict:
        return {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}

    for number in range(job.size):
        yield event([choice(number, {"role": "assistant", "content": ""})])
    num_written = 0
    try:
        async with aclosing(server.items(job)) as pieces:
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


def _read(server: Server, messages: list[Message], max_tokens: int) -> tuple[dict, int]:
    """A conversation as the model takes it, and how many tokens its answer may have."""
    conversation, num_images = [], 0
    for i, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts = message.content
        if isinstance(parts, str):
            server.check_length(parts, f"messages[{i}].content")
            conversation.append({"role": role, "content": parts})
            continue
        content = []
        for j, part in enumerate(parts):
            param = f"messages[{i}].content[{j}]"
            if part.type == "text":
                server.check_length(part.text, param + ".text")
                content.append({"type": "text", "text": part.text})
                continue
            if role != "user":
                raise RequestError(f"'{param}': images are for messages of the role 'user', got '{role}'.", param)
            num_images += 1
            if num_images > server.settings.max_images:
                raise RequestError(f"'messages' may have {server.settings.max_images} images.", param)
            image = image_of_url(part.image_url.url, param + ".image_url", server.settings)
            content.append({"type": "image", "image": image})
        conversation.append({"role": role, "content": content})
    try:
        batch = server.processor.apply_chat_template(
            [conversation],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
    except ValueError as error:
        raise from_value_error(error, "messages") from None
    room = server.context - batch["input_ids"].shape[1]
    if room < 1:
        raise RequestError(
            f"'messages' have {server.context - room} tokens, and with the answer there is room for {server.context}.",
            "messages",
            code="context_length_exceeded",
        )
    return dict(batch), min(max_tokens, room)


def _sampling(server: Server, body: ChatCompletion) -> Sampling:
    """Of a request; what it leaves out is as the model's own configuration says."""
    own = server.pipe.transformer.generation_config
    samples = bool(own.do_sample)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "Only one of `max_tokens` and `max_completion_tokens` can be given."
        raise RequestError(message, "max_tokens")
    name = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
    max_tokens = getattr(body, name)
    if max_tokens is not None and max_tokens > server.settings.max_tokens:
        raise RequestError(f"`{name}` may be at most {server.settings.max_tokens}, got {max_tokens}.", name)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > MOST_STOPS or not all(0 < len(one) <= LONGEST_STOP for one in stop):
        message = f"`stop` may be {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters."
        raise RequestError(message, "stop")
    temperature = body.temperature
    if temperature is None:
        temperature = (own.temperature or 1.0) if samples else float(body.top_p is not None)
    return Sampling(
        max_tokens=max_tokens or server.settings.max_tokens,
        temperature=temperature,
        top_p=body.top_p if body.top_p is not None else (own.top_p or 1.0) if samples else 1.0,
        top_k=own.top_k or 0 if samples else 0,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        stop=stop,
    )


def _usage(num_read: int, num_written: int) -> dict:
    return {
        "prompt_tokens": num_read,
        "completion_tokens": num_written,
        "total_tokens": num_read + num_written,
    }


__all__ = ["complete"]
