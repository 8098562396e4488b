"""Loads a repository in a fresh process without the project: see `stranger.py`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import constants


STRANGER = Path(__file__).with_name("stranger.py")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def load_as_a_stranger(folder: Path) -> dict:
    """
    Loads a folder through transformers and diffusers, in bf16, answers and draws; without network and tokens.

    Returns:
        `dict`: the `answer`, and the shape of the `drawing` if the model draws.

    Raises:
        ValueError: if anything of it fails, with the end of what the process said.
    """
    return _run([str(folder.resolve())], {"HF_HUB_OFFLINE": "1"})


def load_from_hub_as_a_stranger(repo_id: str, revision: str, cache: Path, token: str | None) -> dict:
    """As [`load_as_a_stranger`], of a repository on the Hub, whose files are downloaded into `cache`."""
    environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": constants.ENDPOINT}
    return _run([repo_id, revision], environment | ({"HF_TOKEN": token} if token else {}))


def _run(arguments: list[str], environment: dict[str, str]) -> dict:
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    with tempfile.TemporaryDirectory(prefix="stranger-") as home:
        results = Path(home) / "results.json"
        # -I: neither the current folder nor PYTHONPATH is searched for modules.
        process = subprocess.run(
            [sys.executable, "-I", str(STRANGER), str(results), *arguments],
            cwd=home,
            env={**inherited, "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", **environment},
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            said = "\n".join(f"  {line}" for line in process.stderr.strip().splitlines()[-12:])
            raise ValueError(f"The repository does not work in a fresh process without the project:\n{said}")
        return json.loads(results.read_text())


__all__ = ["load_as_a_stranger", "load_from_hub_as_a_stranger"]
