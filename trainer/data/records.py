"""A record of each task as the processor's training sample, or a [`BadRecord`]."""

from pathlib import Path

import torch
from PIL import Image

from modeling_rosetta.images_rosetta import read_image

from .bad_records import BadRecord, unusable_records
from .drawing import cached_latents, drawing_sample
from .source import COLUMNS, DataSource


ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # that stands where bytes were no UTF-8
IMAGE_MARK = "<image>"
MAX_ASPECT_RATIO = 200  # that Qwen2-VL's image processor takes


@unusable_records()
def training_sample(record: dict, source: DataSource, processor, max_length: int) -> dict[str, torch.Tensor]:
    """
    Args:
        record (`dict`): of `source`.
        source (`DataSource`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a sample that is not a document, a text of the task `"lm"`, which can be
            cut.

    Returns:
        `dict[str, torch.Tensor]`: as from `RosettaProcessor.training_sample`.

    Raises:
        BadRecord: if the record cannot be trained on, whatever the exception was.
    """
    record = source.parse(record)
    document = _document(record, source)
    if document is not None:
        sample = processor.training_sample(document)
    else:
        sample = {"lm": _conversation_sample, "mmu": _understanding_sample, "t2i": _drawing_sample}[source.task](
            record, source, processor
        )
    if document is None and len(sample["input_ids"]) > max_length:
        raise BadRecord("too_long", f"{len(sample['input_ids'])} tokens, the most are {max_length}")
    # The first label of a sample is nobody's target.
    if not (sample["labels"][1:] != -100).any() and not {"latents", "latent_pixels"} & sample.keys():
        raise BadRecord("no_target", f"none of its {len(sample['input_ids'])} tokens is to be predicted")
    return sample


def _document(record: dict, source: DataSource) -> str | None:
    """The text of a record that is one, and no conversation."""
    if source.task != "lm":
        return None
    conversation = _find(record, source, "conversation_column")
    is_text = _find(record, source, "text_column") is not None
    if conversation is not None and (_has_value(record[conversation]) or not is_text):
        return None
    return _text(record, source, "text_column")


def _conversation_sample(record: dict, source: DataSource, processor) -> dict:
    return processor.training_sample(_conversation(record, source, images=[]))


def _understanding_sample(record: dict, source: DataSource, processor) -> dict:
    column = _required(record, source, "image_column")
    values = record[column] if isinstance(record[column], list) else [record[column]]
    if not values:
        raise BadRecord("empty", f"there is no image in {column!r}")
    images = [_image(value, source) for value in values]
    return processor.training_sample(_conversation(record, source, images))


@unusable_records()
def captioned_image(record: dict, source: DataSource, processor) -> tuple[str, Image.Image]:
    """
    Caption and image of a record of the task `"t2i"`.

    Raises:
        BadRecord: if one of them cannot be used.
    """
    caption = _text(record, source, "caption_column")
    return caption, _image(record[_required(record, source, "image_column")], source)


def _drawing_sample(record: dict, source: DataSource, processor) -> dict:
    if record.get("latents") is None:
        caption, image = captioned_image(record, source, processor)
        return drawing_sample(processor, caption, image=image)
    caption = _text(record, source, "caption_column")
    try:
        latents = cached_latents(record)
    except ValueError as error:
        raise BadRecord("bad_latents", str(error)) from error
    return drawing_sample(processor, caption, latents=latents)


def _find(record: dict, source: DataSource, kind: str) -> str | None:
    """The first of the columns of a kind that has a value, else the first that is there."""
    given = getattr(source, kind)
    there = [name for name in (COLUMNS[kind] if given is None else (given,)) if name in record]
    return next((name for name in there if _has_value(record[name])), there[0] if there else None)


def _has_value(value) -> bool:
    """Not where a table has nothing for this record: `None`, NaN, nothing but spaces, an image without content."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        return value.get("bytes") is not None or bool(value.get("path"))
    if isinstance(value, list):
        return any(map(_has_value, value))
    is_blank = isinstance(value, str) and not value.strip()
    is_nan = isinstance(value, float) and value != value
    return value is not None and not is_blank and not is_nan


def _required(record: dict, source: DataSource, kind: str) -> str:
    column = _find(record, source, kind)
    if column is None or record[column] is None:
        named = getattr(source, kind) or " or ".join(COLUMNS[kind])
        raise BadRecord("missing_column", f"there is no {named} in {sorted(record)}")
    return column


def _text(record: dict, source: DataSource, kind: str) -> str:
    column = _required(record, source, kind)
    return _checked_text(record[column], column)


def _checked_text(text, where: str) -> str:
    """Text that can be trained on; what in it looks like a special token is text to the processor, too."""
    if not isinstance(text, str):
        raise BadRecord("wrong_type", f"{where} must be a string, got {type(text).__name__}")
    if not text.strip():
        raise BadRecord("empty", f"{where} is empty")
    if REPLACEMENT in text:
        raise BadRecord("undecodable_text", f"{where} is not valid UTF-8")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair that JSON escaped
        raise BadRecord("undecodable_text", f"{where} is not valid Unicode, {error}") from error
    return text


def _conversation(record: dict, source: DataSource, images: list[Image.Image]) -> list[dict]:
    """LLaVA's `from` and `value`, or `role` and `content`, with a mark `<image>` in the user's text for each image."""
    column = _required(record, source, "conversation_column")
    turns = record[column]
    if not isinstance(turns, list):
        raise BadRecord("wrong_type", f"{column} must be a list, got {type(turns).__name__}")
    messages, left = [], list(images)
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRecord("wrong_type", f"a turn of {column} must be an object, got {type(turn).__name__}")
        name, value = (
            next((turn[key] for key in keys if turn.get(key) is not None), None)
            for keys in (("from", "role"), ("value", "content"))
        )
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise BadRecord("bad_conversation", f"the role of a turn must be one of {list(ROLES)}, got {name!r}")
        text = _checked_text(value, f"a turn of {column}")
        num_marks = text.count(IMAGE_MARK) if role == "user" else 0
        if num_marks > len(left):
            raise BadRecord("image_count", f"there are more marks {IMAGE_MARK} than the {len(images)} images")
        content = [{"type": "image", "image": left.pop(0)} for _ in range(num_marks)]
        if num_marks:
            text = text.replace(f"{IMAGE_MARK}\n", "").replace(f"\n{IMAGE_MARK}", "").replace(IMAGE_MARK, "")
        messages.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
    if left:
        raise BadRecord("image_count", f"{len(left)} of {len(images)} images have no mark {IMAGE_MARK}")
    roles = [message["role"] for message in messages]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or len(dialogue) % 2 or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise BadRecord("bad_conversation", f"user and assistant must take turns, the user first; got {roles}")
    return messages


def _image(value, source: DataSource) -> Image.Image:
    """From an image, its bytes, or its path: as inference reads it."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        value = Path(source.image_root, value)
    elif not isinstance(value, bytes | Image.Image):
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


__all__ = ["captioned_image", "training_sample"]
