"""The images of a conversation that become latents: to draw, or clean, for others to be drawn or answered from."""

import itertools
import reprlib
from dataclasses import replace
from numbers import Integral

import numpy as np
import torch
from PIL import Image

from .buckets_rosetta import nearest_bucket
from .conversation_rosetta import AUTHORS_INFERENCE, Drawing, fill, image_of
from .images_rosetta import read_image


def given_drawings(latents: list | None, latent_sizes: list | None) -> list[Drawing] | None:
    """From the arguments of a call."""
    if latents is not None and latent_sizes is not None:
        raise ValueError("`latents` and `latent_sizes` cannot be given together: latents have their size.")
    for name, given in (("latents", latents), ("latent_sizes", latent_sizes)):
        if not (given is None or isinstance(given, (list, tuple, np.ndarray, torch.Tensor))):
            raise ValueError(f"`{name}` must be a list, got {reprlib.repr(given)}.")
    if latents is not None:
        return [Drawing(latents=latent) for latent in latents]
    return None if latent_sizes is None else [Drawing(size=size) for size in latent_sizes]


def _filled_drawings(drawings: list[Drawing], given: list[Drawing] | None) -> list[Drawing]:
    """Those of the messages, where they were left out those given to the call."""
    slots = [None if drawing.is_left_out else drawing for drawing in drawings]
    filled = fill(slots, given, "latents") or []
    if len(filled) != len(drawings):  # an error that is found where they are counted
        return filled
    return [replace(new, is_context=old.is_context) for new, old in zip(filled, drawings, strict=True)]


def fill_in(contents: list[dict], given: dict, needs_images: bool) -> dict[str, list | None]:
    """
    The images and drawings of conversations, where they were left out those given to the call.

    Args:
        contents (`list[dict]`): from [`read_conversation`].
        given (`dict`): `images`, and `drawings` from [`given_drawings`].
        needs_images (`bool`): whether images to understand are given as themselves, too, and not as drawings only.
    """
    images, slots = given["images"], all_of(contents, "images")
    if any(slot is not None for slot in slots):
        flat, counts = (None, None) if images is None else image_list(images)
        left_out = [sum(slot is None for slot in content["images"]) for content in contents]
        if counts not in (None, left_out):
            raise ValueError(f"`images`: the messages leave out {left_out}, but {counts} were given to the call.")
        filled = iter(fill(slots, flat, "images"))
        kept = [len(c["images"]) - (n if flat is None else 0) for c, n in zip(contents, left_out, strict=True)]
        images = [list(itertools.islice(filled, count)) for count in kept]
    flat, number, drawings = image_list(images)[0], 0, []
    for content in contents:  # the images of all are one list
        for drawing in content["drawings"]:
            if drawing.number is not None:
                if number + drawing.number >= len(flat):
                    raise ValueError(f"`images`: {len(flat)} were given, fewer than the messages have.")
                drawing = replace(drawing, number=None, image=flat[number + drawing.number])
            drawings.append(drawing)
        number += len(content["images"])
    return {"images": images if needs_images else None, "drawings": _filled_drawings(drawings, given["drawings"])}


def image_list(images) -> tuple[list, list[int] | None]:
    """All images, and how many each text has if they were given as one list for each."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(item, (list, tuple)) for item in images):
        return list(itertools.chain(*images)), [len(item) for item in images]
    if images is None or isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        return list(() if images is None else images), None
    return [images], None


def all_of(contents: list[dict], key: str) -> list:
    return list(itertools.chain(*(content[key] for content in contents)))


def encode_drawings(drawings: list[Drawing], processor) -> tuple[dict, list[list[int]]]:
    """
    What a batch holds of them, and the grid (height, width) of each in tokens.

    Args:
        drawings (`list[Drawing]`)
        processor (`RosettaProcessor`)

    Returns:
        `dict`: `latents` `(L, C)` of all that have latents or `latent_pixels` `(P, 3)`, `uint8`, of all that have an
        image; and the grids.

    Raises:
        ValueError: if a latent or a size does not fit, an image cannot be read, or some have latents and others not.
    """
    grids, latents, pixels = [], [], []
    for i, drawing in enumerate(drawings):
        if drawing.size is not None:
            if np.shape(drawing.size) != (2,):
                size = reprlib.repr(drawing.size)
                raise ValueError(f"`latent_sizes`: size {i} must be (height, width), got {size}.")
            sides = zip(("height", "width"), drawing.size, strict=True)
            grids.append([_tokens(name, side, processor.latent_patch_size) for name, side in sides])
        elif drawing.latents is not None:
            latent = drawing.latents
            if not isinstance(latent, torch.Tensor) or latent.ndim != 3:
                shape = tuple(getattr(latent, "shape", ()))
                raise ValueError(
                    f"`latents`: latent {i} must be a tensor (C, h, w), got {type(latent).__name__} of shape {shape}."
                )
            latents.append(latent)
            grids.append(list(latent.shape[1:]))
        else:
            crops = drawing.is_context and processor.layout == AUTHORS_INFERENCE
            image = vae_image(read_image(drawing.image, f"`images`: image {i}"), processor, crops)
            pixels.append(image.flatten(1).T)
            grids.append([side // processor.latent_patch_size for side in image.shape[1:]])
    if latents and pixels:
        raise ValueError(
            f"`latents`: either all images must be given with their latents or none, got {len(latents)} with and "
            f"{len(pixels)} without."
        )
    channels = [len(latent) for latent in latents]
    if len(set(channels)) > 1:
        raise ValueError(f"`latents` must all have the same number of channels, got {reprlib.repr(channels)}.")
    if latents:
        return {"latents": torch.cat([latent.flatten(1).T for latent in latents])}, grids
    return {"latent_pixels": torch.cat(pixels)} if pixels else {}, grids


def with_latents_of_images(conversation: list[dict], processor, encode) -> list[dict]:
    """
    A conversation whose images to understand have their latents beside them, as what was drawn has, if the processor
    gives them as such.

    Args:
        conversation (`list[dict]`)
        processor (`RosettaProcessor`)
        encode (`Callable`): images `(N, 3, H, W)` in [-1, 1] to latents.
    """

    def encoded(item):
        kind = item.get("type") if isinstance(item, dict) else None
        sources = (item.get("embeds_from") or processor.image_embeds_from) if kind in ("image", "image_url") else ()
        if "noisy_latents" not in sources or item.get("latents") is not None:
            return item
        image = image_of(item, "an image")
        crops = processor.layout == AUTHORS_INFERENCE
        pixels = vae_image(read_image(image, "`conversation`: an image"), processor, crops).float() / 255 * 2 - 1
        return {**item, "type": "image", "image": image, "latents": encode(pixels[None])[0]}

    def of_message(message):
        content = message.get("content") if isinstance(message, dict) else None
        return {**message, "content": [*map(encoded, content)]} if isinstance(content, list | tuple) else message

    return [*map(of_message, conversation)] if isinstance(conversation, list | tuple) else conversation


def vae_image(image: Image.Image, processor, crops: bool = False) -> torch.Tensor:
    """
    An image in RGB as pixels `(3, height, width)`, `uint8`, for the VAE: resized to its training bucket without
    cropping, as the authors do in training, or cropped to its inference bucket, as they do with images to understand.
    """
    buckets = processor.inference_buckets if crops else processor.training_buckets
    height, width = buckets[nearest_bucket(image.height, image.width, buckets)]
    if crops:
        scale = max(height / image.height, width / image.width)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _tokens(name: str, size: int, patch_size: int) -> int:
    if not isinstance(size, Integral) or size < 1 or size % patch_size:
        raise ValueError(
            f"`{name}` of an image to draw must be a positive multiple of {patch_size} pixels, got {size!r}."
        )
    return int(size) // patch_size


__all__ = [
    "all_of",
    "encode_drawings",
    "fill_in",
    "given_drawings",
    "image_list",
    "vae_image",
    "with_latents_of_images",
]
