"""How answers are read, as the authors' evaluation reads them. What cannot be read is `None`."""

import re
import string


LETTERS = "ABCDE"


def letter(text: str, first_word: bool = False, last_resort: bool = True) -> str | None:
    """
    The letter, A to E, that an answer names: a lone one; with `first_word` that of the first word, which may end in a
    mark; else the first capital that stands alone; and as a `last_resort` the first letter of a to e in any case, so
    that "based" is a B.
    """
    text = text.strip()
    words = text.split()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    if first_word and words:
        word = words[0].rstrip(".,!?;:")
        if len(word) == 1 and word.upper() in LETTERS:
            return word.upper()
    if found := re.search(r"\b([A-E])\b", text):
        return found[1]
    anywhere = (character.upper() for character in text if character.upper() in LETTERS)
    return next(anywhere, None) if last_resort else None


def yes_or_no(text: str) -> str | None:
    """The first word, which may end in marks, or "yes" before "no" anywhere."""
    words = text.lower().split()
    first = words[0].rstrip(".,!?;:") if words else ""
    if first in ("yes", "no"):
        return first
    return next((word for word in ("yes", "no") if re.search(rf"\b{word}\b", text.lower())), None)


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def without_brackets(text: str) -> str:
    """In lower case, without the pair of brackets that encloses it all."""
    return re.sub(r"^\((.+)\)$", r"\1", text.strip().lower()).strip()


def starts_with(text: str, right: str) -> bool:
    """Whether a text begins with the right answer, whatever the case and the marks at the end."""
    text, right = (part.strip().lower().rstrip(string.punctuation + " ").strip() for part in (text, right))
    return bool(right) and text.startswith(right)


def program(text: str) -> str:
    """The Python of an answer: what a fence holds, or what stands between [BEGIN] and [DONE], or up to the first
    [DONE] from the first line that starts with def, import or class, which leaves out a `from ... import` above it."""
    for pattern in (r"```(?:python)?\s*\n(.*?)```", r"\[BEGIN\](.*?)\[(?:DONE|END)\]"):
        if found := re.search(pattern, text, re.DOTALL):
            return found[1].strip()
    lines = re.split(r"\[(?:DONE|END)\]", text)[0].splitlines()
    starts = (i for i, line in enumerate(lines) if line.strip().startswith(("def ", "import ", "class ")))
    return "\n".join(lines[next(starts, 0) :]).strip()


__all__ = ["first_line", "letter", "program", "starts_with", "without_brackets", "yes_or_no"]
