"""The shapes that conversations are written in, as messages for the processor, or a [`BadRecord`]."""

import re

from modeling_rosetta.conversation_rosetta import AUTHORS_TRAINING, IN_ORDER

from .bad_records import BadRecord
from .columns import checked_text, find, has_value, required
from .source import DataSource


ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
TOOL_KEYS = ("tool_calls", "function_call")
IMAGE_MARK = "<image>"
IMAGE_KEYS = ("image", "url", "path", "base64", "bytes")  # of an item, as in transformers


def conversation_of(record: dict, source: DataSource, layout: str = AUTHORS_TRAINING) -> list[dict] | None:
    """
    The conversation in a record, or `None` if it has none. It may be

    - columns that the source maps to the roles: `user_column`, `assistant_column`, `system_column`;
    - a list of turns, `from` and `value` (LLaVA, ShareGPT) or `role` and `content` (OpenAI, transformers, TRL), the
      latter a string or a list of items;
    - `prompt` and `completion`, both of them lists of turns (TRL), of which the completion is to be learnt, or both
      texts in the task `"mmu"`;
    - `texts`, a list of objects with `user` and `assistant` (the Cauldron);

    and beside it a `system` prompt.

    Images stand in a user's turn as marks `<image>` or as items; those that are not in the items come from the image
    column, in order. Without any mark or item they belong to the first turn of the user, but in LLaVA's shape. A
    turn's images come before its text, and may be written after it, as in LLaVA; one between texts has no place in the
    authors' layout. In order (`layout`), images stay where they are, and those in a turn of the assistant are to draw.

    Returns:
        `list[dict]`: messages as for [`RosettaProcessor.apply_chat_template`], with the images as the record has them,
        and with `weight` 0 where a turn is no target.

    Raises:
        BadRecord: if it is no conversation of user and assistant in turn, if a turn is a tool's, or if images and
            their marks differ in number.
    """
    messages = next((found for shape in SHAPES if (found := shape(record, source)) is not None), None)
    if messages is None:
        return None
    system = record.get(source.system_column or "system")
    if has_value(system):
        if messages and messages[0]["role"] == "system":
            raise BadRecord("bad_conversation", "there are a system prompt and a system turn")
        messages = [_message("system", system, source.system_column or "system"), *messages]
    messages = [_laid_out(message, layout) for message in messages]
    roles = [message["role"] for message in messages]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or len(dialogue) % 2 or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise BadRecord("bad_conversation", f"user and assistant must take turns, the user first; got {roles}")
    _put_in_images(messages, record, source, needs_marks=_is_of_llava(record, source))
    return messages


def _of_columns(record: dict, source: DataSource) -> list[dict] | None:
    if source.assistant_column is None:
        return None
    messages = []
    for role, columns in (("user", source.user_column), ("assistant", source.assistant_column)):
        columns = [columns] if isinstance(columns, str) else columns
        if missing := [column for column in columns if column not in record]:
            raise BadRecord("missing_column", f"there is no {missing[0]} in {sorted(record)}")
        texts = [checked_text(record[column], column) for column in columns if has_value(record[column])]
        messages.append(_message(role, "\n\n".join(texts), " and ".join(columns)))
    return messages


def _of_turns(record: dict, source: DataSource) -> list[dict] | None:
    column = find(record, source, "conversation_column")
    is_text = source.task == "lm" and find(record, source, "text_column") is not None
    if column is None or not has_value(record[column]) and (is_text or "prompt" in record or "texts" in record):
        return None
    return _turns(record[required(record, source, "conversation_column")], column)


def _of_prompt_and_completion(record: dict, source: DataSource) -> list[dict] | None:
    if not {"prompt", "completion"} <= record.keys():
        return None
    if source.task == "mmu" and isinstance(record["prompt"], str):  # about images, so a turn and its answer
        return [
            _message("user", record["prompt"], "prompt"),
            _message("assistant", record["completion"], "completion"),
        ]
    if not isinstance(record["prompt"], list):
        return None
    prompt, completion = (_turns(record[column], column) for column in ("prompt", "completion"))
    return [{**message, "weight": 0} for message in prompt] + completion


def _of_pairs(record: dict, source: DataSource) -> list[dict] | None:
    texts = record.get("texts")
    if not isinstance(texts, list) or not texts or not all(isinstance(pair, dict) for pair in texts):
        return None
    roles = ("user", "assistant")
    return [_message(role, pair.get(role), f"the {role} in texts") for pair in texts for role in roles]


SHAPES = (_of_columns, _of_turns, _of_prompt_and_completion, _of_pairs)


def _is_of_llava(record: dict, source: DataSource) -> bool:
    """Whose turns have a mark for each image."""
    column = find(record, source, "conversation_column")
    turns = record[column] if column is not None and isinstance(record[column], list) else []
    return any(isinstance(turn, dict) and turn.get("from") is not None for turn in turns)


def _turns(turns, column: str) -> list[dict]:
    if not isinstance(turns, list):
        raise BadRecord("wrong_type", f"{column} must be a list, got {type(turns).__name__}")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRecord("wrong_type", f"a turn of {column} must be an object, got {type(turn).__name__}")
        name, value = (
            next((turn[key] for key in keys if turn.get(key) is not None), None)
            for keys in (("from", "role"), ("value", "content"))
        )
        if name in TOOL_ROLES or any(turn.get(key) for key in TOOL_KEYS):
            raise BadRecord("tool_turn", f"a turn of {column} calls a tool or is a tool's, which no turn can be")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise BadRecord("bad_conversation", f"the role of a turn must be one of {list(ROLES)}, got {name!r}")
        weight = turn.get("weight")
        if weight not in (None, 0, 1):
            raise BadRecord("bad_conversation", f"the weight of a turn must be 0 or 1, got {weight!r}")
        messages.append(
            {**_message(role, value, f"a turn of {column}"), **({} if weight is None else {"weight": weight})}
        )
    return messages


def _message(role: str, value, where: str) -> dict:
    """A message of text and images, in order; `None` stands for an image of the image column."""
    if isinstance(value, list):
        parts = [_item(item, where) for item in value]
    else:
        parts = _parts(checked_text(value, where)) if role == "user" else [{"type": "text", "text": value}]
        checked_text(value, where)
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        raise BadRecord("empty", f"{where} is empty")
    return {"role": role, "content": parts}


def _laid_out(message: dict, layout: str) -> dict:
    """A message with its images where the layout has them: in the authors' the user's, before the text."""
    role, parts = message["role"], message["content"]
    if layout == IN_ORDER and role == "assistant":
        parts = [part for old in parts for part in (_parts(old["text"]) if old["type"] == "text" else [old])]
    texts = [i for i, part in enumerate(parts) if part["type"] == "text" and part["text"].strip()]
    images = [i for i, part in enumerate(parts) if part["type"] == "image"]
    if images and role != "user" and (role != "assistant" or layout != IN_ORDER):
        raise BadRecord("bad_conversation", f"a turn holds an image, and is the {role}'s")
    if layout != AUTHORS_TRAINING:
        return {**message, "content": [part for part in parts if part["type"] == "image" or part["text"]]}
    if images and texts and not (images[-1] < texts[0] or texts[-1] < images[0]):
        raise BadRecord("interleaved", "a turn has text on both sides of an image, or images on both sides of text")
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return {**message, "content": [*(parts[i] for i in images), {"type": "text", "text": text}]}


def _parts(text: str) -> list[dict]:
    """Text with marks as items. A mark may stand in a line of its own."""
    parts = []
    for piece in re.split(rf"({IMAGE_MARK}\n|\n{IMAGE_MARK}|{IMAGE_MARK})", text):
        parts.append({"type": "image", "image": None} if IMAGE_MARK in piece else {"type": "text", "text": piece})
    return parts


def _item(item, where: str) -> dict:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text":
        text = item.get("text")
        return {"type": "text", "text": checked_text(text, where) if has_value(text) else ""}
    if kind == "image_url":
        url = item.get("image_url")
        return {"type": "image", "image": url.get("url") if isinstance(url, dict) else url}
    if kind == "image":
        return {"type": "image", "image": next((item[key] for key in IMAGE_KEYS if item.get(key) is not None), None)}
    raise BadRecord(
        "wrong_type", f"an item of {where} must be a text or an image, got {kind or type(item).__name__!r}"
    )


def _put_in_images(messages: list[dict], record: dict, source: DataSource, needs_marks: bool):
    """The images of the image column where they belong."""
    slots = [part for message in messages for part in message["content"] if part["type"] == "image"]
    empty = [part for part in slots if part["image"] is None]
    if slots and source.task == "lm":
        raise BadRecord("image_count", f"there are {len(slots)} images, of which the task 'lm' has none")
    images = [] if source.task == "lm" else _images(record, source, is_needed=bool(empty))
    if images and not slots and not needs_marks:
        first = next(message for message in messages if message["role"] == "user")
        empty = [{"type": "image", "image": None} for _ in images]
        first["content"] = [*empty, *first["content"]]
    if len(images) != len(empty):
        raise BadRecord("image_count", f"there are {len(empty)} marks {IMAGE_MARK} for {len(images)} images")
    for part, image in zip(empty, images, strict=True):
        part["image"] = image


def _images(record: dict, source: DataSource, is_needed: bool) -> list:
    column = find(record, source, "image_column")
    if not is_needed and (column is None or not has_value(record[column])):
        return []
    values = record[required(record, source, "image_column")]
    values = values if isinstance(values, list) else [values]
    if not values:
        raise BadRecord("empty", f"there is no image in {column!r}")
    return values


__all__ = ["conversation_of"]
