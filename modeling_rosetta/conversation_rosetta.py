"""A conversation: what its messages may hold, the text they become, and the turns in that text."""

from itertools import pairwise
from typing import NamedTuple


# What a message of each role may hold.
CONTENT_TYPES = {"system": ("text",), "user": ("text", "image"), "assistant": ("text", "latents")}

# What is not text stands between the vision marks. Images to understand stand before their turn, and a response ends
# without a line break, as the authors train.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- set content = [{"type": "text", "text": message.content}] if message.content is string else message.content -%}
    {%- for item in content if item.type == "image" -%}
        {{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
    {%- endfor -%}
    {{- "<|im_start|>" + message.role + "\\n" -}}
    {%- for item in content -%}
        {%- if item.type == "text" -%}
            {{- item.text -}}
        {%- elif item.type == "latents" -%}
            {{- "<|vision_start|><|vision_pad|><|vision_end|>" -}}
        {%- elif item.type != "image" -%}
            {{- "<|vision_start|><|" + item.type + "|><|vision_end|>" -}}
        {%- endif -%}
    {%- endfor -%}
    {{- "<|im_end|>" + ("" if message.role == "assistant" else "\\n") -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


class Turn(NamedTuple):
    """Where a turn `<|im_start|>role\\n content <|im_end|>` lies in a row of token ids."""

    role: str
    start: int
    content: int
    close: int  # of its <|im_end|>, or `end`
    end: int  # of the next turn's start


def find_turns(row: list[int], turn_start_id: int, turn_end_id: int, headers: dict[str, list[int]]) -> list[Turn]:
    """
    The turns of a row of token ids.

    Args:
        row (`list[int]`): token ids, with or without padding.
        turn_start_id, turn_end_id (`int`): ids of `<|im_start|>` and `<|im_end|>`.
        headers (`dict[str, list[int]]`): the tokens between `<|im_start|>` and the content, for each role.

    Raises:
        ValueError: if a turn has none of the roles of `headers`.
    """
    starts = [i for i, token in enumerate(row) if token == turn_start_id]
    turns = []
    for start, end in pairwise([*starts, len(row)]):
        role = next((r for r, header in headers.items() if row[start + 1 : start + 1 + len(header)] == header), None)
        if role is None:
            raise ValueError(f"`text`: the turn at token {start} has none of the roles {list(headers)}.")
        content = start + 1 + len(headers[role])
        close = next((i for i in range(content, end) if row[i] == turn_end_id), end)
        turns.append(Turn(role, start, content, close, end))
    return turns


def read_conversation(conversation: list[dict], feature_keys: list[str] = ()) -> dict:
    """
    Checks a conversation and takes it apart.

    Args:
        conversation (`list[dict]`)
        feature_keys (`list[str]`): types of further items that a user's or an assistant's message may hold.

    Returns:
        `dict[str, list]`: `messages` for the chat template, and what they hold in order: `images`, `latents`,
        `latent_sizes` as (height, width), and `features`, a list for each of `feature_keys` that is there.

    Raises:
        ValueError: if a role or an item is unknown, or an item stands in a turn of the wrong role.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"`conversation` must be a list of messages, got {conversation!r}.")
    parts: dict = {"messages": [], "images": [], "latents": [], "latent_sizes": [], "features": {}}
    for i, message in enumerate(conversation):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in CONTENT_TYPES:
            raise ValueError(
                f"`conversation`: `role` of message {i} must be one of {list(CONTENT_TYPES)}, got {role!r}."
            )
        content = message.get("content")
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"`conversation`: `content` of message {i} must be a string or a list, got {content!r}.")
        allowed = [*CONTENT_TYPES[role], *(feature_keys if role != "system" else ())]
        items = []
        for item in content:
            kind = item.get("type") if isinstance(item, dict) else None
            if kind not in allowed:
                raise ValueError(f"`conversation`: message {i} of role {role!r} may hold {allowed}, got {kind!r}.")
            if kind == "text" and not isinstance(item.get("text"), str):
                raise ValueError(f"`conversation`: `text` of message {i} must be a string, got {item.get('text')!r}.")
            items.append({key: item[key] for key in ("type", "text") if key in item})
            if kind == "image":
                parts["images"] += [item[key] for key in ("image", "url", "path") if key in item]
            elif kind in feature_keys and kind in item:
                parts["features"].setdefault(kind, []).append(item[kind])
            elif "latents" in item:
                parts["latents"].append(item["latents"])
            elif "height" in item and "width" in item:
                parts["latent_sizes"].append((item["height"], item["width"]))
        parts["messages"].append({"role": role, "content": items})
    return parts


__all__ = ["CHAT_TEMPLATE", "CONTENT_TYPES", "Turn", "find_turns", "read_conversation"]
