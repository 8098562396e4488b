"""The arguments that all of transformers' processors take: honoured, without effect here, or refused by name."""

import reprlib
from numbers import Integral

from huggingface_hub.errors import StrictDataclassError
from transformers.processing_utils import AudioKwargs, ImagesKwargs, ProcessingKwargs, TextKwargs, VideosKwargs
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
from transformers.utils import TensorType


GROUPS = {"text_kwargs": TextKwargs, "images_kwargs": ImagesKwargs, "videos_kwargs": VideosKwargs}
GROUPS |= {"audio_kwargs": AudioKwargs}
REFUSED = (
    *("videos", "audio", "audios", "load_audio_from_video", "text_pair", "text_target", "text_pair_target", "stride"),
    *("is_split_into_words", "return_overflowing_tokens", "return_special_tokens_mask", "return_offsets_mapping"),
    *("return_length", "return_text_replacement_offsets"),
)
VALUES = {
    "padding": (None, False, True, *(strategy.value for strategy in PaddingStrategy)),
    "truncation": (None, False, True, *(strategy.value for strategy in TruncationStrategy)),
    "padding_side": (None, "left", "right"),
    "return_tensors": (None, *(kind.value for kind in TensorType if kind.value in ("pt", "np"))),
}
SIZES = ("max_length", "pad_to_multiple_of")


def read_arguments(processor, arguments: dict) -> tuple[dict, dict]:
    """
    Args:
        processor (`ProcessorMixin`)
        arguments (`dict`): of its call, flat or grouped as `text_kwargs`, `images_kwargs` and so on.

    Returns:
        `tuple[dict, dict]`: the arguments that regard text, and those of the image processor, over the defaults.

    Raises:
        ValueError: if one cannot be honoured or has a wrong value.
        TypeError: if there is no such argument.
    """
    known = {name: set(group.__annotations__) for name, group in GROUPS.items()}
    known["text_kwargs"] |= {"return_mm_token_type_ids", "return_text_replacement_offsets"}
    known["images_kwargs"] |= set(getattr(processor.image_processor, "valid_kwargs", ImagesKwargs).__annotations__)
    known["common_kwargs"] = set().union(*known.values())
    flat = {}
    for name, value in arguments.items():
        if name in known and not (value is None or isinstance(value, dict)):
            raise ValueError(f"`{name}` must be a dict, got {reprlib.repr(value)}.")
        flat |= (value or {}) if name in known else {name: value}
        if name in known and (unknown := set(value or {}) - known[name]):
            raise TypeError(f"`{name}` got an unexpected argument {unknown.pop()!r}.")
    for name, value in flat.items():
        if name in REFUSED and not changes_nothing(value):
            raise ValueError(f"`{name}` cannot be honoured by {type(processor).__name__}, got {reprlib.repr(value)}.")
        if name not in REFUSED and name not in known["common_kwargs"]:
            raise TypeError(f"{type(processor).__name__} got an unexpected argument {name!r}.")
    given = {name: value for name, value in arguments.items() if name not in REFUSED and value is not None}
    try:
        groups = processor._merge_kwargs(
            ProcessingKwargs, tokenizer_init_kwargs=processor.tokenizer.init_kwargs, **given
        )
    except StrictDataclassError as error:  # of several lines
        raise ValueError(" ".join(str(error).split())) from error
    text = groups["text_kwargs"]
    text.setdefault("return_mm_token_type_ids", groups.get("return_mm_token_type_ids"))
    for name, allowed in VALUES.items():
        value = getattr(text.get(name), "value", text.get(name))  # of an enumeration
        if not any(value is other or isinstance(value, str) and value == other for other in allowed):
            raise ValueError(f"`{name}` must be one of {list(allowed)}, got {reprlib.repr(value)}.")
    for name in SIZES:
        if (size := text.get(name)) is not None and (not isinstance(size, Integral) or size < 1):
            raise ValueError(f"`{name}` must be a positive integer, got {reprlib.repr(size)}.")
    if text.get("add_special_tokens") and processor.tokenizer.num_special_tokens_to_add():
        raise ValueError("`add_special_tokens` must be False: the layout has its own.")
    return text, groups["images_kwargs"]


def changes_nothing(value) -> bool:
    """Whether an argument was as good as left out."""
    return value is None or isinstance(value, bool | int | str | list | tuple | dict) and not value


__all__ = ["changes_nothing", "read_arguments"]
