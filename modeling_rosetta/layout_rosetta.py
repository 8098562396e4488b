"""The layouts of a conversation: where its images stand, what each is for, what is learnt, and the way back."""

from collections.abc import Iterator

import numpy as np
import torch

from .conversation_rosetta import AUTHORS_INFERENCE, LAYOUTS, Turn
from .latent_roles_rosetta import CONTEXT, COPY, DRAFT, DRAWN, EMPTY, has_latents
from .positions_rosetta import image_index


JOINT = "<｜joint_img_sep｜>"  # between the latents and the ViT tokens of one image
IMAGE_SOURCES = ("pixel_values", "noisy_latents")  # that an image to understand may be embedded from


def check_layout(layout: str, image_embeds_from: list[str], embeds_from: list[str], latent_prefix: bool):
    """Raises a `ValueError` that names the attribute of the processor."""
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {LAYOUTS}, got {layout!r}.")
    sources = list(image_embeds_from)
    if not sources or len({*sources}) < len(sources) or not {*sources} <= {*IMAGE_SOURCES}:
        raise ValueError(f"`image_embeds_from` must be one or both of {IMAGE_SOURCES}, got {image_embeds_from!r}.")
    if "noisy_latents" in sources and "noisy_latents" not in embeds_from:
        raise ValueError(f"`image_embeds_from`: no token type is embedded from 'noisy_latents', only {embeds_from}.")
    if layout == AUTHORS_INFERENCE and (not latent_prefix or sources != ["noisy_latents", "pixel_values"]):
        raise ValueError(
            "`layout`: the authors' inference has `latent_prefix` True and `image_embeds_from` ['noisy_latents', "
            f"'pixel_values'], got {latent_prefix} and {sources}."
        )


def check_slots(row: list[int], slots: set[int | None], start: int, end: int, joint: int | None):
    """Raises a `ValueError` if a placeholder in a row of token ids does not stand between the marks of an image."""
    for i, token in enumerate(row):
        if token not in slots:
            continue
        before = row[i - 1] if i else None
        after = row[i + 1] if i + 1 < len(row) else None
        if before not in (start, joint) or after not in (end, joint) or None in (before, after):
            raise ValueError(
                f"`text`: the image at token {i} must stand between <|vision_start|> and <|vision_end|>, or a slot "
                "is not closed."
            )


def slot_roles(
    row: list[int], slot_id: int, ends: set[int], turns: list[Turn], is_context: Iterator[bool], has_drafts: bool
) -> list[int]:
    """
    What each image among the latents of a training row is for.

    Args:
        row (`list[int]`): token ids, a placeholder for each image.
        slot_id (`int`): of the placeholder.
        ends (`set[int]`): ids of what closes an image and a turn. Where something else comes behind an image to draw,
            it is a draft.
        turns (`list[Turn]`): of the row.
        is_context (`Iterator[bool]`): for each image, whether it is never to be drawn.
        has_drafts (`bool`): `False` if images to draw are seen noisy by what stands behind them, as the authors train.
    """
    roles = []
    last = max((i for i, token in enumerate(row) if token not in ends), default=-1)
    for i, token in enumerate(row):
        if token != slot_id:
            continue
        role = next((turn.role for turn in turns if turn.start <= i < turn.end), "assistant")
        if next(is_context) or role != "assistant":
            roles.append(CONTEXT)
        else:
            roles.append(DRAFT if has_drafts and i < last else DRAWN)
    return roles


def labels_in_order(
    row: list[int], token_type_ids: list[int], turns: list[Turn], mark_ids: list[int], openings: list[int]
) -> list[int]:
    """
    Targets are the assistant's text, its ends and the openings of the images it draws; in a row without turns
    everything that is no mark of an image to understand. The first token never is one.

    Args:
        row, token_type_ids (`list[int]`)
        turns (`list[Turn]`): of the row.
        mark_ids (`list[int]`): of the tokens that stand around images.
        openings (`list[int]`): where images to draw open.
    """
    spoken = np.full(len(row), not turns)
    for turn in turns:
        if turn.role == "assistant":
            spoken[turn.content : turn.close + 1] = True
    targets = spoken & (np.array(token_type_ids) == 0) & ~np.isin(row, mark_ids)
    targets[openings] = spoken[openings]
    targets[0] = False
    return np.where(targets, row, -100).tolist()


def without_images(sample: dict[str, torch.Tensor], processor) -> dict[str, torch.Tensor]:
    """
    A training sample without its images that are context, those to understand and their marks: the twin that guidance
    by an image leads away from.

    Args:
        sample (`dict[str, torch.Tensor]`): of `RosettaProcessor.training_sample`.
        processor (`RosettaProcessor`)
    """
    ids, types = sample["input_ids"], sample["token_type_ids"]
    vision, latent = (_type_of(processor, source) for source in IMAGE_SOURCES)
    roles = _roles(sample)
    dropped = types == -1 if vision is None else types == vision
    if latent is not None and len(roles):
        image = image_index(types[None], latent, sample["latent_grid_hw"].prod(-1))[0]
        dropped |= (image >= 0) & (roles == CONTEXT)[image.clamp(min=0)]
    kept, start = torch.ones_like(dropped), None
    for i, token in enumerate(ids.tolist()):
        start = i if token == processor.vision_start_token_id else start
        if token == processor.vision_end_token_id and dropped[start:i].any():
            kept[start : i + 1] = False
    rest = {key: sample[key][kept] for key in ("input_ids", "token_type_ids", "labels")}
    rest["labels"][0] = -100
    gone = {"pixel_values", "image_grid_thw", "image_is_causal"}
    rest |= {key: value for key, value in sample.items() if key not in rest and key not in gone}
    if (roles == CONTEXT).any():
        drawn, of_source = roles != CONTEXT, sample["latent_grid_hw"][roles != COPY].prod(-1)
        for key in ("latents", "latent_pixels"):
            if key in rest:
                entries = of_source * (len(rest[key]) // int(of_source.sum()))
                rest[key] = rest[key][drawn[roles != COPY].repeat_interleave(entries)]
        rest["latent_grid_hw"], rest["latent_roles"] = rest["latent_grid_hw"][drawn], roles[drawn]
    return rest


def conversation_of(sample: dict[str, torch.Tensor], processor) -> list[dict]:
    """
    The messages that a sample was made of.

    Args:
        sample (`dict[str, torch.Tensor]`): of `RosettaProcessor.training_sample`, or one row of a batch with its
            images.
        processor (`RosettaProcessor`)

    Returns:
        `list[dict]`: as for `RosettaProcessor.apply_chat_template`. An image to understand is its `pixel_values` and
        `image_grid_thw`, one of the latents its `latents`, of type `"latents"` if it is to draw and else `"image"`;
        if it has both, they are one item.
    """
    ids, types = (torch.as_tensor(sample[key]).tolist() for key in ("input_ids", "token_type_ids"))
    images = _images(sample, processor)
    messages, waiting = [], []
    for turn in processor._turns(ids):
        items = [*waiting, *_items(ids, types, range(turn.content, turn.close), images, processor)]
        # What stands behind a turn opens the next one.
        waiting = [
            item
            for item in _items(ids, types, range(turn.close + 1, turn.end), images, processor)
            if item["type"] != "text"
        ]
        if not messages:  # or before the first one
            before = _items(ids, types, range(turn.start), images, processor)
            items = [item for item in before if item["type"] != "text"] + items
        messages.append({"role": turn.role, "content": items})
    return messages


def _items(ids: list[int], types: list[int], places: range, images: dict[int, dict], processor) -> list[dict]:
    items, text = [], []
    for i in places:
        if types[i] == 0 and ids[i] not in processor._vision_token_ids:
            text.append(ids[i])
            continue
        if text:
            items.append({"type": "text", "text": processor.tokenizer.decode(text)})
            text = []
        if i in images:
            if _shows_the_same(items[-1:], images[i], processor):
                items[-1] |= images[i]
            else:
                items.append(images[i])
    return [*items, {"type": "text", "text": processor.tokenizer.decode(text)}] if text else items


def _shows_the_same(before: list[dict], item: dict, processor) -> bool:
    """Whether the ViT tokens of `item` are of the image whose latents come before them."""
    is_twice = len(processor.image_embeds_from) == 2 and "pixel_values" in item
    return is_twice and any(old["type"] == "image" and "pixel_values" not in old for old in before)


def _images(sample: dict, processor) -> dict[int, dict]:
    """The item of each image but copies, by the place of its first token."""
    types, images = torch.as_tensor(sample["token_type_ids"])[None], {}
    vision, latent = (_type_of(processor, source) for source in IMAGE_SOURCES)
    if (grids := sample.get("image_grid_thw")) is not None:
        patches = sample["pixel_values"].split(grids.prod(-1).tolist())
        tokens = grids.prod(-1) // processor.image_processor.merge_size**2
        number = image_index(types, vision, tokens)[0].tolist()
        for i, (grid, own) in enumerate(zip(grids, patches, strict=True)):
            images[number.index(i)] = {"type": "image", "pixel_values": own, "image_grid_thw": grid}
    if (grids := sample.get("latent_grid_hw")) is not None:
        roles = _roles(sample)
        number = image_index(types, latent, grids.prod(-1))[0].tolist()
        given = iter(sample.get("latents", torch.empty(0)).split(grids[has_latents(roles)].prod(-1).tolist()))
        for i, (grid, role) in enumerate(zip(grids.tolist(), roles.tolist(), strict=True)):
            if role == EMPTY:
                images[number.index(i)] = {"type": "latents", "grid_hw": grid}
            elif role != COPY:
                kind = "image" if role == CONTEXT else "latents"
                images[number.index(i)] = {"type": kind, "latents": next(given).T.unflatten(1, grid)}
    return images


def _roles(sample: dict) -> torch.Tensor:
    number = len(sample.get("latent_grid_hw", ()))
    return torch.as_tensor(sample.get("latent_roles", [DRAWN] * number), dtype=torch.long)


def _type_of(processor, source: str) -> int | None:
    return processor.embeds_from.index(source) if source in processor.embeds_from else None


__all__ = [
    "IMAGE_SOURCES",
    "JOINT",
    "check_layout",
    "check_slots",
    "conversation_of",
    "labels_in_order",
    "slot_roles",
    "without_images",
]
