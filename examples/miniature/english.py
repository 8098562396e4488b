"""English that every Python has: the docstrings of its standard library and the topics of its `help()`."""

import ast
import hashlib
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics


HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class English:
    """Paragraphs to train and to test on. `sha256` names the text, which differs between versions of Python."""

    train: list[str]
    held_out: list[str]
    sha256: str


def load_english() -> English:
    """Paragraphs that differ in their letters, split after removing duplicates, so that none stands on both sides."""
    paragraphs = {}
    for text in [*standard_library_docstrings(), *(topics[name] for name in sorted(topics))]:
        for paragraph in re.split(r"\n\s*\n", text):
            paragraph = " ".join(paragraph.split())
            if is_prose(paragraph):
                paragraphs.setdefault(letters(paragraph), paragraph)
    paragraphs = [paragraphs[key] for key in sorted(paragraphs)]
    random.Random(0).shuffle(paragraphs)
    num_held_out = int(HELD_OUT_SHARE * len(paragraphs))
    sha256 = hashlib.sha256("\n".join(paragraphs).encode()).hexdigest()
    return English(paragraphs[num_held_out:], paragraphs[:num_held_out], sha256)


def standard_library_docstrings() -> list[str]:
    """Of the modules, classes and functions in the top-level modules of the standard library, which are only read."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
                docstrings.append(docstring)
    return docstrings


def is_prose(paragraph: str) -> bool:
    """At least 40 characters, of which 85% are letters or spaces; no interpreter session."""
    others = len(re.findall(r"[^\w ]|[\d_]", paragraph))
    return len(paragraph) >= 40 and others <= 0.15 * len(paragraph) and ">>>" not in paragraph


def letters(paragraph: str) -> str:
    """What makes two paragraphs the same: their letters, whatever their case, marks and spaces."""
    return re.sub(r"[\W\d_]", "", paragraph.casefold())
