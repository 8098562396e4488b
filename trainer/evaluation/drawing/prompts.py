"""Prompts to draw, from the files that benchmarks come as."""

import csv
import json
from pathlib import Path


PROMPT_COLUMNS = ("prompt", "caption")


def read_prompts(file: str | Path) -> list[dict]:
    """
    Args:
        file (`str` or `Path`): a `.txt` with a prompt a line, or a `.jsonl`, `.csv`, or `.json` (a list, or
            COCO's `{"annotations": [...]}`), whose records have a `prompt` or `caption`, maybe a `seed`, and whatever
            else a score reads, such as the `questions` of T2I-CompBench or what GenEval asks to `include`.

    Returns:
        `list[dict]`: each with its `prompt`, its `seed` if it has one, and its other columns.

    Raises:
        ValueError: if the file cannot be read so; it says which record.
    """
    file = Path(file)
    if file.suffix not in _READERS:
        raise ValueError(f"`prompts` must be a file of the kind {', '.join(_READERS)}, got '{file}'.")
    try:
        records = _READERS[file.suffix](file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"`prompts`: '{file}' cannot be read: {error}") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"`prompts`: '{file}' must hold a list of prompts that is not empty.")
    return [_checked(record, f"`prompts`: record {number} of '{file}'") for number, record in enumerate(records)]


def _checked(record, where: str) -> dict:
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be an object with a `prompt`, got {record!r}.")
    column = next((name for name in PROMPT_COLUMNS if name in record), None)
    if column is None:
        raise ValueError(f"{where} has neither of the columns {PROMPT_COLUMNS}, but {[*record]}.")
    prompt, seed = record[column], record.get("seed")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: `{column}` must be a text, got {prompt!r}.")
    found = {"prompt": prompt.strip(), **{name: value for name, value in record.items() if name != column}}
    if seed in (None, ""):
        found.pop("seed", None)
        return found
    try:
        found["seed"] = int(seed)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: `seed` must be an integer, got {seed!r}.") from None
    return found


def _annotations(text: str):
    content = json.loads(text)
    return content.get("annotations") if isinstance(content, dict) else content


_READERS = {
    ".txt": lambda text: [{"prompt": line} for line in text.splitlines() if line.strip()],
    ".jsonl": lambda text: [json.loads(line) for line in text.split("\n") if line.strip()],
    ".json": _annotations,
    ".csv": lambda text: [*csv.DictReader(text.splitlines(keepends=True))],
}


__all__ = ["read_prompts"]
