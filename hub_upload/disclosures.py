"""What files give away that must not be published: tokens, keys and folders of the machine they were made on."""

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open


SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a Hugging Face organisation's token": r"\bapi_org_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_SECRETS = {what: re.compile(pattern) for what, pattern in SECRETS.items()}
# An absolute path, and not the rest of an address or of a relative path.
_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|tmp|var|mnt|media|opt|srv|data|scratch|workspace|content|nfs|lustre|gpfs|fsx)"
    r"/[\w.-]+[^\s\"'`,;)]*"
    r"|(?<!\w)[A-Z]:\\{1,2}[\w .-]+\\[^\s\"'`,;)]*"
)
# Their entries may look like paths and are none.
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt"}


def disclosures(folder: Path, machine_folders: Iterable[Path] = ()) -> list[str]:
    """
    Args:
        folder (`Path`): all files in it are read; of safetensors files the metadata.
        machine_folders (`Iterable[Path]`): folders whose names must not occur either.

    Returns:
        `list[str]`: what was found, each as "file:line: what". A secret itself is not repeated.

    Raises:
        ValueError: if a file of weights is not safetensors.
    """
    own = [re.escape(str(path)) for path in machine_folders if len(path.parts) > 1]
    machine = re.compile(rf"(?<![\w.:/~-])(?:{'|'.join(own)})(?=[/\s\"'`,;)]|$)[^\s\"'`,;)]*") if own else None
    found = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        path = file.relative_to(folder).as_posix()
        for number, line in enumerate(_text(file).splitlines(), start=1):
            place = f"{path}:{number}"
            found += [f"{place}: {what}" for what, pattern in _SECRETS.items() if pattern.search(line)]
            if file.name not in VOCABULARIES and file.suffix != ".py":  # the code is the package's, byte for byte
                match = _PATH.search(line) or (machine and machine.search(line))
                found += [f"{place}: a path of this machine, {match.group()}"] if match else []
    return found


def _text(file: Path) -> str:
    if file.suffix != ".safetensors":
        return file.read_text(encoding="utf-8", errors="replace")
    try:
        with safe_open(file, framework="pt") as weights:
            metadata = weights.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file.name} must be a safetensors file: {error}.") from error
    return "\n".join(f"{name}: {value}" for name, value in metadata.items())


__all__ = ["disclosures"]
