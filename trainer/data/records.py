"""A record of each task as the processor's training sample, or a [`BadRecord`]."""

import random
from pathlib import Path

import torch
from PIL import Image

from modeling_rosetta.conversation_rosetta import AUTHORS_TRAINING
from modeling_rosetta.images_rosetta import read_image

from .bad_records import BadRecord, unusable_records
from .columns import caption_of, checked_text, find, has_value, required
from .conversations import conversation_of
from .drawing import cached_latents, drawing_sample
from .source import DataSource


MAX_ASPECT_RATIO = 200  # that Qwen2-VL's image processor takes


@unusable_records()
def training_sample(
    record: dict, source: DataSource, processor, max_length: int, choose: random.Random | None = None
) -> dict[str, torch.Tensor]:
    """
    Args:
        record (`dict`): of `source`.
        source (`DataSource`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a sample that is not a document, a text of the task `"lm"`, which can be
            cut.
        choose (`random.Random`, *optional*): draws one of several captions.

    Returns:
        `dict[str, torch.Tensor]`: as from `RosettaProcessor.training_sample`.

    Raises:
        BadRecord: if the record cannot be trained on, whatever the exception was.
    """
    record = source.parse(record)
    if source.task == "t2i":
        return _checked(_drawing_sample(record, source, processor, choose or random.Random(0)), max_length)
    layout = getattr(processor, "layout", AUTHORS_TRAINING)
    conversation = conversation_of(record, source, layout)
    if conversation is not None:
        return _checked(processor.training_sample(_with_pictures(conversation, source)), max_length)
    if {"prompt", "completion"} <= record.keys() and find(record, source, "text_column") is None:
        return _checked(_completion_sample(record, processor), max_length)
    _refuse_interleaved(record)
    if source.task == "mmu":
        required(record, source, "conversation_column")
    return _checked(processor.training_sample(_text(record, source)), None)


def _checked(sample: dict, max_length: int | None) -> dict:
    if max_length is not None and len(sample["input_ids"]) > max_length:
        raise BadRecord("too_long", f"{len(sample['input_ids'])} tokens, the most are {max_length}")
    # The first label of a sample is nobody's target.
    if not (sample["labels"][1:] != -100).any() and not {"latents", "latent_pixels"} & sample.keys():
        raise BadRecord("no_target", f"none of its {len(sample['input_ids'])} tokens is to be predicted")
    return sample


def _text(record: dict, source: DataSource) -> str:
    column = required(record, source, "text_column")
    return checked_text(record[column], column)


def _refuse_interleaved(record: dict):
    """Documents with pictures between their texts, as in OBELICS, have no place in the layout."""
    texts, images = record.get("texts"), record.get("images")
    if isinstance(texts, list) and isinstance(images, list):
        raise BadRecord("interleaved", f"{len(images)} images between {len(texts)} texts")


def _completion_sample(record: dict, processor) -> dict:
    """A text that goes on with a prompt, of which the completion is to be learnt."""
    prompt, completion = (
        processor.training_sample(checked_text(record.get(column), column)) for column in ("prompt", "completion")
    )
    opening = {key: values[:-1] for key, values in prompt.items()}  # without its end
    opening["labels"] = torch.full_like(opening["labels"], -100)
    completion["labels"] = completion["input_ids"].clone()
    return {key: torch.cat([opening[key], values]) for key, values in completion.items()}


def _with_pictures(conversation: list[dict], source: DataSource) -> list[dict]:
    for message in conversation:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = _image(part["image"], source)
                part["type"] = "image" if message["role"] == "user" else "latents"
    return conversation


@unusable_records()
def captioned_image(
    record: dict, source: DataSource, processor, choose: random.Random | None = None
) -> tuple[str, Image.Image]:
    """
    Caption and image of a record of the task `"t2i"`.

    Raises:
        BadRecord: if one of them cannot be used.
    """
    caption = caption_of(record, source, choose or random.Random(0))
    return caption, _image(record[required(record, source, "image_column")], source)


def _drawing_sample(record: dict, source: DataSource, processor, choose: random.Random) -> dict:
    if record.get("latents") is None:
        caption, image = captioned_image(record, source, processor, choose)
        return drawing_sample(processor, caption, image=image, sources=source_images(record, source))
    caption = caption_of(record, source, choose)
    sources = source_images(record, source)
    try:
        latents = cached_latents(record)
        source_latents = [cached_latents(record, f"source_{i}") for i in range(len(sources))]
    except ValueError as error:
        raise BadRecord("bad_latents", str(error)) from error
    return drawing_sample(processor, caption, latents=latents, sources=sources, source_latents=source_latents)


@unusable_records()
def source_images(record: dict, source: DataSource) -> list[Image.Image]:
    """
    The images that the image of a record of the task `"t2i"` is to be drawn from, if it has a column of them.

    Raises:
        BadRecord: if one of them cannot be used.
    """
    column = find(record, source, "source_column")
    if column is None or not has_value(record[column]):
        if source.source_column is not None:
            raise BadRecord("missing_column", f"there is no image in {source.source_column}")
        return []
    values = record[column] if isinstance(record[column], list) else [record[column]]
    return [_image(value, source) for value in values]


def _image(value, source: DataSource) -> Image.Image:
    """From an image, its bytes, its path or a `data:` URL: as inference reads it."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise BadRecord("missing_image", f"{value} is not fetched in training")
    if isinstance(value, str) and not value.startswith("data:"):
        value = Path(source.image_root, value)
    elif not isinstance(value, str | bytes | Image.Image):
        raise BadRecord("wrong_type", f"an image must be bytes or a path, got {type(value).__name__}")
    try:
        image = read_image(value)
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise BadRecord("missing_image", f"there is no file {value}") from error
        raise BadRecord("undecodable_image", str(error)) from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadRecord("bad_image_size", f"{image.width} x {image.height} pixels")
    return image


__all__ = ["captioned_image", "source_images", "training_sample"]
