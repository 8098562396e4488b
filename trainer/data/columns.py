"""Values in the columns of a record, or a [`BadRecord`]."""

import random

from .bad_records import BadRecord
from .source import COLUMNS, DataSource


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # that stands where bytes were no UTF-8


def find(record: dict, source: DataSource, kind: str) -> str | None:
    """The first of the columns of a kind that has a value, else the first that is there."""
    given = getattr(source, kind)
    there = [name for name in (COLUMNS[kind] if given is None else (given,)) if name in record]
    return next((name for name in there if has_value(record[name])), there[0] if there else None)


def has_value(value) -> bool:
    """Not where a table has nothing for this record: `None`, NaN, nothing but spaces, an image without content."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        return value.get("bytes") is not None or bool(value.get("path"))
    if isinstance(value, list):
        return any(map(has_value, value))
    is_blank = isinstance(value, str) and not value.strip()
    is_nan = isinstance(value, float) and value != value
    return value is not None and not is_blank and not is_nan


def required(record: dict, source: DataSource, kind: str) -> str:
    """The column of a kind, which must be there."""
    column = find(record, source, kind)
    if column is None or record[column] is None:
        named = getattr(source, kind) or " or ".join(COLUMNS[kind])
        raise BadRecord("missing_column", f"there is no {named} in {sorted(record)}")
    return column


def caption_of(record: dict, source: DataSource, choose: random.Random) -> str:
    """The caption of a record; of several in a list, or of columns with weights, one is drawn."""
    weights = source.caption_column
    if isinstance(weights, dict):
        there = {name: weight for name, weight in weights.items() if has_value(record.get(name))}
        if not there:
            raise BadRecord("missing_column", f"there is none of {[*weights]} in {sorted(record)}")
        (column,) = choose.choices([*there], [*there.values()])
    else:
        column = required(record, source, "caption_column")
    captions = record[column]
    if isinstance(captions, list):
        captions = [caption for caption in captions if has_value(caption)]
        if not captions:
            raise BadRecord("empty", f"{column} is empty")
        return checked_text(choose.choice(captions), f"a caption of {column}")
    return checked_text(captions, column)


def checked_text(text, where: str) -> str:
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


__all__ = ["caption_of", "checked_text", "find", "has_value", "required"]
