"""How MMMU reads answers: the rules of the parser in its own repository (Yue et al. 2024, eval/eval_utils.py)."""

import re


MARKS = (",", ".", "!", "?", ";", ":", "'")
LEAD_INS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
# With commas, scientific, and plain; each finds its own, so that 1,234 is also 234.
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def chosen(text: str, options: dict[str, str]) -> str | None:
    """The letter in brackets that comes last; else the lone one; else, of more than five words, the option that is
    quoted last."""
    for mark in MARKS:
        text = text.strip(mark)
    text = f" {text} "
    for pattern in ("({})", " {} "):
        places = {letter: text.rfind(pattern.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    if len(text.split()) > 5:
        places = {letter: text.lower().rfind(option.lower()) for letter, option in options.items()}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    return None


def names_open(text: str, right: str) -> bool:
    """Whether an answer to an open question, or the end of one of its sentences, holds the right words or number."""
    wanted = normalised(right)
    for found in open_answers(text):
        if isinstance(found, float):
            if found in wanted:
                return True
        elif any(isinstance(words, str) and words in found for words in wanted):
            return True
    return False


def open_answers(text: str) -> list[str | float]:
    """What follows "is", "so" and the like in each line, or everything; and the numbers in it."""
    text = text.strip().strip(".").lower()
    # Sentences that start with a capital are parted, too: after `lower()` there are none.
    lines, parts = re.split(r"\.\s(?=[A-Z])|\n", text), []
    for i, line in enumerate(lines):
        lead_ins = (*LEAD_INS, "=") if i == len(lines) - 1 else LEAD_INS
        ends = [line.split(lead_in)[-1].strip() for lead_in in lead_ins if lead_in in line]
        shortest = ""
        for end in ends:  # an empty one is the shortest, and then gives way to the next
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in MARKS:
            parts.append(shortest)
    parts = parts or [text]
    numbers = [number for part in parts for number in numbers_in(part)]
    return [found for part in (*parts, *numbers) for found in normalised(part)]


def numbers_in(text: str) -> list[str]:
    return [number for pattern in NUMBERS for number in re.findall(pattern, text)]


def normalised(text: str) -> list[str | float]:
    """A number to two decimals, or words in lower case; a single letter must have a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


__all__ = ["chosen", "names_open"]
