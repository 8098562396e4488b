"""A record of each task as the processor's training sample, or a [`BadRecord`]."""

import io
import struct
from pathlib import Path

import torch
from PIL import Image

from .bad_records import BadRecord
from .drawing import cached_latents, drawing_sample
from .source import DataSource


COLUMNS = {
    "text_column": ("text",),
    "conversation_column": ("conversations", "messages"),
    "image_column": ("image", "images", "jpg", "jpeg", "png", "webp"),
    "caption_column": ("caption", "text", "txt"),
}
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # that stands where bytes were no UTF-8
IMAGE_MARK = "<image>"
MAX_ASPECT_RATIO = 200  # that Qwen2-VL's image processor takes


def training_sample(record: dict, source: DataSource, processor, max_length: int) -> dict[str, torch.Tensor]:
    """
    Args:
        record (`dict`): of `source`.
        source (`DataSource`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a sample.

    Returns:
        `dict[str, torch.Tensor]`: as from `RosettaProcessor.training_sample`.

    Raises:
        BadRecord: if the record cannot be trained on.
    """
    record = source.parse(record)
    sample = {"lm": _text_sample, "mmu": _understanding_sample, "t2i": _drawing_sample}[source.task](
        record, source, processor
    )
    if len(sample["input_ids"]) > max_length:
        raise BadRecord("too_long", f"{len(sample['input_ids'])} tokens, the most are {max_length}")
    return sample


def _text_sample(record: dict, source: DataSource, processor) -> dict:
    if _find(record, source, "conversation_column") is not None:
        return processor.training_sample(_conversation(record, source, processor, images=[]))
    return processor.training_sample(_text(record, source, "text_column", processor))


def _understanding_sample(record: dict, source: DataSource, processor) -> dict:
    column = _required(record, source, "image_column")
    values = record[column] if isinstance(record[column], list) else [record[column]]
    if not values:
        raise BadRecord("empty", f"there is no image in {column!r}")
    images = [_image(value, source) for value in values]
    return processor.training_sample(_conversation(record, source, processor, images))


def captioned_image(record: dict, source: DataSource, processor) -> tuple[str, Image.Image]:
    """
    Caption and image of a record of the task `"t2i"`.

    Raises:
        BadRecord: if one of them cannot be used.
    """
    caption = _text(record, source, "caption_column", processor)
    return caption, _image(record[_required(record, source, "image_column")], source)


def _drawing_sample(record: dict, source: DataSource, processor) -> dict:
    if "latents" not in record:
        caption, image = captioned_image(record, source, processor)
        return drawing_sample(processor, caption, image=image)
    caption = _text(record, source, "caption_column", processor)
    try:
        latents = cached_latents(record)
    except ValueError as error:
        raise BadRecord("bad_latents", str(error)) from error
    return drawing_sample(processor, caption, latents=latents)


def _find(record: dict, source: DataSource, kind: str) -> str | None:
    given = getattr(source, kind)
    return next((name for name in (COLUMNS[kind] if given is None else (given,)) if name in record), None)


def _required(record: dict, source: DataSource, kind: str) -> str:
    column = _find(record, source, kind)
    if column is None or record[column] is None:
        named = getattr(source, kind) or " or ".join(COLUMNS[kind])
        raise BadRecord("missing_column", f"there is no {named} in {sorted(record)}")
    return column


def _text(record: dict, source: DataSource, kind: str, processor) -> str:
    column = _required(record, source, kind)
    return _checked_text(record[column], column, processor)


def _checked_text(text, where: str, processor) -> str:
    if not isinstance(text, str):
        raise BadRecord("wrong_type", f"{where} must be a string, got {type(text).__name__}")
    if not text.strip():
        raise BadRecord("empty", f"{where} is empty")
    if REPLACEMENT in text:
        raise BadRecord("undecodable_text", f"{where} is not valid UTF-8")
    # It would become the mark of a turn or of an image that is not there.
    if special := [token for token in processor.tokenizer.all_special_tokens if token in text]:
        raise BadRecord("special_token", f"{where} holds {special[0]!r}")
    return text


def _conversation(record: dict, source: DataSource, processor, images: list[Image.Image]) -> list[dict]:
    """LLaVA's `from` and `value`, or `role` and `content`, with a mark `<image>` in the user's text for each image."""
    column = _required(record, source, "conversation_column")
    turns = record[column]
    if not isinstance(turns, list):
        raise BadRecord("wrong_type", f"{column} must be a list, got {type(turns).__name__}")
    messages, left = [], list(images)
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRecord("wrong_type", f"a turn of {column} must be an object, got {type(turn).__name__}")
        name = turn.get("from", turn.get("role"))
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise BadRecord("bad_conversation", f"the role of a turn must be one of {list(ROLES)}, got {name!r}")
        value = turn.get("value", turn.get("content"))
        text = _checked_text(value, f"a turn of {column}", processor)
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
    """From an image, its bytes, or its path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        image = value
    elif isinstance(value, bytes | str):
        file = io.BytesIO(value) if isinstance(value, bytes) else Path(source.image_root, value)
        try:
            image = Image.open(file).convert("RGB")
        except FileNotFoundError as error:
            raise BadRecord("missing_image", f"there is no file {value}") from error
        # All that Pillow's formats raise on damaged files.
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise BadRecord("undecodable_image", str(error)) from error
    else:
        raise BadRecord("wrong_type", f"an image must be bytes or a path, got {type(value).__name__}")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadRecord("bad_image_size", f"{image.width} x {image.height} pixels")
    return image


__all__ = ["training_sample"]
