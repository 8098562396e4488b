"""The rows of tokens that images are drawn from: of prompts, and of what guidance leads away from."""

import reprlib

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature

from .latent_codec_rosetta import MEDIA_KEYS
from .latent_roles_rosetta import CONTEXT, EMPTY


ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask")


def drawing_rows(
    processor,
    prompt: str | list[str],
    height: int | None,
    width: int | None,
    negative_prompt: str | list[str] | None,
    do_classifier_free_guidance: bool,
    system_prompt: str | None,
    images: list[list] | None,
    guides_by_images: bool,
) -> BatchFeature:
    """See [`RosettaProcessor.draw_prompt`]."""
    prompts, negatives = _texts(processor, prompt, negative_prompt)
    if images is not None and len(images) != len(prompts):
        raise ValueError(f"`image` must be one or one list for each of the {len(prompts)} prompts, got {len(images)}.")
    height, width = (processor.base_size if size is None else size for size in (height, width))
    kinds = [(prompts, images, False)]
    if do_classifier_free_guidance:
        kinds.append((negatives or prompts, images, not negatives))
    if do_classifier_free_guidance and guides_by_images:
        kinds.append((negatives or prompts, None, not negatives))
    rows: dict[str, list] = {key: [] for key in ROW_KEYS}
    media: dict[str, list] = {}
    grids, roles = [], []
    for texts, own, is_dropped in kinds:
        batch = _encode(processor, texts, own, (height, width), system_prompt)
        if is_dropped:
            batch["input_ids"] = [
                np.where(processor._user_tokens(row), processor.cfg_token_id, row).tolist()
                for row in batch["input_ids"]
            ]
        for key in ROW_KEYS:
            rows[key] += batch[key]
        for key in MEDIA_KEYS:
            if key in batch:
                media.setdefault(key, []).append(torch.as_tensor(np.asarray(batch[key])))
        grids += batch["latent_grid_hw"]
        roles += batch.get("latent_roles", [EMPTY] * len(texts))
    padded = {**processor._pad(rows, "left"), "latent_grid_hw": grids}
    if CONTEXT in roles:
        padded["latent_roles"] = roles
    return BatchFeature({**padded, **{key: torch.cat(parts) for key, parts in media.items()}}, tensor_type="pt")


def _encode(processor, texts: list[str], images: list[list] | None, size: tuple, system_prompt: str | None):
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    slot = {"type": "latents", "height": size[0], "width": size[1]}
    conversations = []
    for i, text in enumerate(texts):
        shown = [] if images is None else [{"type": "image", "image": image} for image in images[i]]
        user = {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
        conversations.append([*system, user, {"role": "assistant", "content": [slot]}])
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, padding=False, truncation=False
    )


def _texts(processor, prompt, negative_prompt) -> tuple[list[str], list[str]]:
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    negatives = [] if negative_prompt is None else [negative_prompt] * len(prompts)
    negatives = list(negative_prompt) if isinstance(negative_prompt, (list, tuple)) else negatives
    plain_text = processor._plain_text()
    for name, texts in (("prompt", prompts), ("negative_prompt", negatives)):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{name}` must be a string or a list of strings, got {reprlib.repr(texts)}.")
        for i, text in enumerate(texts):
            plain_text.mark([text], f"`{name}`: prompt {i}")
    if negative_prompt is not None and len(negatives) != len(prompts):
        raise ValueError(
            f"`negative_prompt` must be one string or one for each of the {len(prompts)} prompts, "
            f"got {len(negatives)}."
        )
    return prompts, negatives


__all__ = ["drawing_rows"]
