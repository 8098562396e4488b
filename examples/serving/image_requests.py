"""`/v1/images`: a prompt, and perhaps images, become a job of the engine, and what it draws PNGs in base64."""

import asyncio
import base64
import io
import secrets
import time

import torch
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from .drawing import DrawingJob
from .errors import RequestError
from .pictures import image_of_bytes
from .protocol import ImageEdit, ImageGeneration
from .server import Server
from .settings import Settings


FORM_PARTS = 64


async def draw(server: Server, request: Request, body: ImageGeneration, given: dict):
    server.check_model(body.model)
    server.check_number(body.n, server.settings.max_drawings)
    if server.pipe.transformer.config.token_type_index("noisy_latents") is None:
        raise RequestError(f"The model '{server.name}' does not draw.", "model", code="model_does_not_draw")
    height, width = body.height_and_width()
    if height is not None and height * width > server.settings.max_drawn_pixels:
        raise RequestError(f"`size` may have {server.settings.max_drawn_pixels} pixels, got {body.size}.", "size")
    if body.num_inference_steps > server.settings.max_steps:
        raise RequestError(
            f"`num_inference_steps` may be at most {server.settings.max_steps}, got {body.num_inference_steps}.",
            "num_inference_steps",
        )
    if not body.prompt.strip():
        raise RequestError("`prompt` must not be empty.", "prompt")
    server.check_length(body.prompt, "prompt")
    server.check_length(body.negative_prompt or "", "negative_prompt")
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
            "generator": _generators(seed, body.n),
            **given,
        }
    )
    (images,) = await server.all_items(request, job)
    data = await asyncio.to_thread(lambda: [{"b64_json": _png(image)} for image in images])
    size = f"{images[0].width}x{images[0].height}"
    return {"created": int(time.time()), "data": data, "size": size, "output_format": "png", "seed": seed}


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


def _generators(seed: int, number: int) -> list[torch.Generator]:
    """For each image of a request: the first has the request's seed, each other the next."""
    return [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(number)]


def _png(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


__all__ = ["draw", "read_form"]
