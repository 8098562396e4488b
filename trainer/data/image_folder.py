"""A folder of images and their captions."""

import csv
import json
from io import StringIO
from pathlib import Path

from datasets import Dataset
from PIL import Image


def find_images(folder: Path, caption_column: str) -> list[tuple[Path, list[str]]]:
    """
    The image files of a folder with their captions, one or several each. No image is read.

    Args:
        folder (`Path`): with a `metadata.jsonl` (or `.csv`, `.parquet`) whose records have a `file_name`, or with a
            text file of the same name beside each image.
        caption_column (`str`): of the records; a text or a list of texts.

    Raises:
        ValueError: if something is missing or of another kind; it says which file.
    """
    if not folder.is_dir():
        raise ValueError(f"`images` must be a folder, '{folder}' is none.")
    if tables := sorted(file for file in folder.glob("metadata.*") if file.suffix in READERS):
        found = _listed(tables[0], caption_column)
    else:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in Image.registered_extensions())
        if lacking := [file.name for file in files if not file.with_suffix(".txt").is_file()]:
            raise ValueError(f"`images`: no metadata.jsonl in '{folder}', and no text beside {lacking[0]}.")
        found = [(file, _read_text(file.with_suffix(".txt"))) for file in files]
    captioned = [(file, _captions(caption, file)) for file, caption in found]
    if not captioned:
        raise ValueError(f"`images`: '{folder}' must hold images, each with a caption.")
    return captioned


def _listed(table: Path, caption_column: str) -> list[tuple[Path, str | list[str]]]:
    records = READERS[table.suffix](table)
    columns = list(dict.fromkeys(name for record in records for name in record))
    for argument, column in (("images", "file_name"), ("caption_column", caption_column)):
        if column not in columns:
            raise ValueError(f"`{argument}`: there is no '{column}' in '{table}', which has the columns {columns}.")
    if unnamed := [number for number, record in enumerate(records, 1) if not isinstance(record.get("file_name"), str)]:
        raise ValueError(f"`images`: record {unnamed[0]} of '{table}' must have a string as its file_name.")
    found = [(table.parent / record["file_name"], record.get(caption_column)) for record in records]
    if absent := [file for file, _ in found if not file.is_file()]:
        raise ValueError(f"`images`: '{table}' lists '{absent[0]}', which is not there.")
    return found


def _captions(caption, file: Path) -> list[str]:
    captions = [caption] if isinstance(caption, str) else caption
    is_list = isinstance(captions, list | tuple) and len(captions) > 0
    if not is_list or not all(isinstance(each, str) and each.strip() for each in captions):
        raise ValueError(f"`images`: the caption of '{file}' must be a text or a list of texts, got {caption!r}.")
    return [each.strip() for each in captions]


def _read_lines(file: Path) -> list[dict]:
    records = []
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"`images`: line {number} of '{file}' is no JSON: {error}.") from error
            if not isinstance(records[-1], dict):
                raise ValueError(f"`images`: line {number} of '{file}' must be an object, got {line.strip()[:80]!r}.")
    return records


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`images`: '{file}' is not UTF-8: {error}.") from error


READERS = {
    ".jsonl": _read_lines,
    ".csv": lambda file: list(csv.DictReader(StringIO(_read_text(file), newline=""))),
    ".parquet": lambda file: Dataset.from_parquet(str(file)).to_list(),
}


__all__ = ["find_images"]
