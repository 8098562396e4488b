"""A conversation: what its messages may hold, the text they become, and the turns in that text."""

import re
import reprlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from .plain_text_rosetta import PlainText


AUTHORS_TRAINING, AUTHORS_INFERENCE, IN_ORDER = LAYOUTS = ("authors_training", "authors_inference", "in_order")
# What a message of each role may hold; in order, an assistant's also images to understand.
CONTENT_TYPES = {"system": ("text",), "user": ("text", "image"), "assistant": ("text", "latents")}
TEMPLATE_ROLES = re.compile(r"""["'](tool|developer)["']""")  # of text, in templates that read them
IMAGE_KEYS = ("image", "url", "path", "base64")
# What a message may say beside its content; a template that does not read it would drop it.
OTHER_KEYS = ("tool_calls", "function_call", "audio")

# What is not text stands between the vision marks. Images to understand stand before their turn, as the authors train,
# but for those that a layout puts in place; a response ends without a line break, as they train, too.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- set content = [{"type": "text", "text": message.content}] if message.content is string else message.content -%}
    {%- for item in content if item.type in ("image", "image_latents") and not item.in_place -%}
        {{- "<|vision_start|>" + ("<|image_pad|>" if item.type == "image" else "<|vision_pad|>") + "<|vision_end|>" -}}
    {%- endfor -%}
    {{- "<|im_start|>" + message.role + "\\n" -}}
    {%- set body -%}
        {%- for item in content -%}
            {%- if item.type == "text" -%}
                {{- item.text -}}
            {%- elif item.type == "latents" or (item.type == "image_latents" and item.in_place) -%}
                {{- "<|vision_start|><|vision_pad|><|vision_end|>" -}}
            {%- elif item.type == "image" and item.in_place -%}
                {{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
            {%- elif item.type == "joint_image" -%}
                {{- "<|vision_start|><|vision_pad|><｜joint_img_sep｜><|image_pad|><|vision_end|>" -}}
            {%- elif item.type not in ("image", "image_latents") -%}
                {{- "<|vision_start|><|" + item.type + "|><|vision_end|>" -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endset -%}
    {%- if message.role == "assistant" -%}
        {%- generation -%}
            {{- body + "<|im_end|>" -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- body + "<|im_end|>\\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


@dataclass
class Drawing:
    """
    An image among the latents, by what is known of it; nothing is, if it was left out of the conversation.

    Args:
        latents (`torch.Tensor` of shape `(C, h, w)`, *optional*)
        size (`tuple[int, int]`, *optional*): (height, width) in pixels, of an image to draw in inference.
        image (*optional*): the image, as [`~images_rosetta.read_image`] takes it.
        number (`int`, *optional*): in its place, which of the images to understand it is.
        is_context (`bool`): whether it is never to be drawn.
    """

    latents: Any = None
    size: Any = None
    image: Any = None
    number: int | None = None
    is_context: bool = False

    @property
    def is_left_out(self) -> bool:
        return self.latents is None and self.size is None and self.image is None and self.number is None


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


def read_conversation(
    conversation: list[dict],
    feature_keys: list[str],
    template: str,
    plain_text: PlainText,
    tokenize: bool,
    layout: str = AUTHORS_TRAINING,
    image_embeds_from: list[str] = ("pixel_values",),
) -> dict[str, list]:
    """
    Checks a conversation and takes it apart.

    Args:
        conversation (`list[dict]`)
        feature_keys (`list[str]`): types of further items that a user's or an assistant's message may hold.
        template (`str`): the chat template that will read the messages.
        plain_text (`PlainText`): marks what in the messages is text and would be a mark of the layout.
        tokenize (`bool`): as in [`PlainText.mark`].
        layout (`str`), image_embeds_from (`list[str]`): as of [`RosettaProcessor`].

    Returns:
        `dict[str, list]`: `messages` for the chat template, and what they hold in order, `None` where it was left
        out: `images`; `drawings`, each a [`Drawing`]; and a list for each of `feature_keys`.

    Raises:
        ValueError: if a role or an item is unknown, an item stands in a turn of the wrong role, or a message says
            what `template` does not read.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"`conversation` must be a list of messages, got {reprlib.repr(conversation)}.")
    parts = {"messages": [], "images": [], "drawings": [], **{key: [] for key in feature_keys}}
    types_of_role = {**dict.fromkeys(TEMPLATE_ROLES.findall(template), ("text",)), **CONTENT_TYPES}
    for i, message in enumerate(conversation):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in types_of_role:
            raise ValueError(
                f"`conversation`: `role` of message {i} must be one of {sorted(types_of_role)}, "
                f"got {reprlib.repr(role)}."
            )
        if unread := [key for key in OTHER_KEYS if message.get(key) and key not in template]:
            raise ValueError(
                f"`conversation`: message {i} has `{unread[0]}`, which the chat template does not read; "
                "leave it out or use a template of your own."
            )
        shown = ("image",) if layout == IN_ORDER and role == "assistant" else ()
        allowed = [*types_of_role[role], *shown, *(feature_keys if role in ("user", "assistant") else ())]
        items = [_read_item(item, f"message {i} of role {role!r}", allowed) for item in _content(message, i)]
        texts = [item["text"] for item in items if item["type"] == "text"]
        marked = iter(plain_text.mark(texts, f"`conversation`: message {i}", tokenize))
        content = []
        for item in items:
            kind = item["type"]
            if kind == "text":
                content.append({"type": "text", "text": next(marked)})
            elif kind == "image":
                content += _place_image(item, parts, layout, image_embeds_from)
            else:
                value = item["value"]
                if kind == "latents" and layout == IN_ORDER:
                    value = replace(value, is_context=message.get("weight") == 0)
                parts["drawings" if kind == "latents" else kind].append(value)
                content.append({"type": kind})
        others = {k: v for k, v in message.items() if k not in ("role", "content") and k in template}
        others = plain_text.mark_all(others, f"`conversation`: message {i}", tokenize)
        parts["messages"].append({**others, "role": role, "content": content})
    return parts


def _place_image(item: dict, parts: dict[str, list], layout: str, embeds_from: list[str]) -> list[dict]:
    """Adds an image to understand to `parts`; returns what the template is told of it. An item may say itself what it
    is given as: one that was drawn is in the context as latents already."""
    embeds_from = item["embeds_from"] or embeds_from
    if "noisy_latents" in embeds_from:
        number = len(parts["images"]) if item["latents"] is None else None
        parts["drawings"].append(Drawing(latents=item["latents"], number=number, is_context=True))
    if "pixel_values" in embeds_from or item["latents"] is None:
        parts["images"].append(item["value"])
    if layout == AUTHORS_INFERENCE:
        return [{"type": "joint_image"}]
    types = [{"noisy_latents": "image_latents", "pixel_values": "image"}[source] for source in embeds_from]
    return [{"type": kind, "in_place": layout == IN_ORDER} for kind in types]


def _content(message: dict, i: int) -> list:
    """The items of a message. No content is none, as with APIs that send `None` for it."""
    content = message.get("content", 0)
    content = [{"type": "text", "text": content or ""}] if content is None or isinstance(content, str) else content
    if not isinstance(content, (list, tuple)):
        given = reprlib.repr(content) if "content" in message else "none"
        raise ValueError(f"`conversation`: `content` of message {i} must be a string or a list, got {given}.")
    return content


def _read_item(item: dict, where: str, allowed: list[str]) -> dict:
    """Its `type` and, of a text, `text`; else `value`, `None` if it was left out of the item."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "image_url" and "image" in allowed:  # OpenAI's
        kind = "image"
    if not isinstance(kind, str) or kind not in allowed:
        raise ValueError(f"`conversation`: {where} may hold {allowed}, got {reprlib.repr(kind or item)}.")
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise ValueError(
                f"`conversation`: `text` of {where} must be a string, got {reprlib.repr(item.get('text'))}."
            )
        return {"type": "text", "text": item["text"]}
    if kind == "image":
        return {
            "type": kind,
            "value": image_of(item, where),
            "latents": item.get("latents"),
            "embeds_from": item.get("embeds_from"),
        }
    return {"type": kind, "value": _drawing(item, where) if kind == "latents" else item.get(kind)}


def image_of(item: dict, where: str):
    """The image of an item, `None` if it was left out."""
    if item.get("type") == "image_url":
        url = item.get("image_url")
        item = {"url": url.get("url") if isinstance(url, dict) else url}
    given = [key for key in IMAGE_KEYS if item.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"`conversation`: an image of {where} must have one of {list(IMAGE_KEYS)}, got {given}.")
    value = item[given[0]] if given else None
    if given == ["base64"] and isinstance(value, str) and not value.startswith("data:"):
        return f"data:image;base64,{value}"
    return value


def _drawing(item: dict, where: str) -> Drawing:
    if item.get("latents") is None and item.get("height") is not None and item.get("width") is not None:
        return Drawing(size=(item["height"], item["width"]))
    return (
        Drawing(latents=item["latents"]) if item.get("latents") is not None else Drawing(image=image_of(item, where))
    )


def fill(slots: list, given: list | None, name: str) -> list | None:
    """
    What the messages hold, and where they leave it out (`None`) what was given to the call, in order. If they leave
    all out, what was given as it is.

    Raises:
        ValueError: if the call was given more or less than the messages leave out.
    """
    open_slots = sum(slot is None for slot in slots)
    if open_slots == len(slots):
        return given
    if given is None:
        return [slot for slot in slots if slot is not None]
    if len(given) != open_slots:
        raise ValueError(f"`{name}`: the messages leave out {open_slots}, but {len(given)} were given to the call.")
    rest = iter(given)
    return [next(rest) if slot is None else slot for slot in slots]


__all__ = [
    "AUTHORS_INFERENCE",
    "AUTHORS_TRAINING",
    "CHAT_TEMPLATE",
    "CONTENT_TYPES",
    "IN_ORDER",
    "LAYOUTS",
    "Drawing",
    "Turn",
    "fill",
    "find_turns",
    "image_of",
    "read_conversation",
]
