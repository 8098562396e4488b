"""A repository on the Hub, as anybody gets it: is it what was released, and does it work?"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token

from .fresh_process import load_from_hub_as_a_stranger
from .hub_errors import hub_errors
from .release import CHECKSUMS, belongs, files_in, foreign_code, sha256


def verify(
    repo_id: str, revision: str | None = None, *, token: str | None = None, trust_remote_code: bool = False
) -> list[str]:
    """
    Downloads a repository, all of it and once, into a temporary folder, has a fresh process without the project load
    it through transformers and diffusers, answer and draw, and compares what arrived with the checksums that it was
    released with, with those of the Hub, and the code with that of the installed package.

    Args:
        repo_id (`str`)
        revision (`str`, *optional*): a branch, tag or commit; by default `"main"`.
        token (`str`, *optional*): by default the one that is logged in.
        trust_remote_code (`bool`, defaults to `False`): whether to run the repository's code even if it is not, byte
            for byte, that of the installed package. Read it before.

    Returns:
        `list[str]`: what differs; nothing if all is well.

    Raises:
        PermissionError, ConnectionError, OSError: from the Hub.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        with hub_errors(f"Looking at {repo_id}"):
            commit = api.model_info(repo_id, revision=revision).sha
            # Not into the cache that is loaded from: whether the libraries ask for all of it is to be seen.
            patterns = ["*.py", "*config.json"]
            code = api.snapshot_download(repo_id, revision=commit, allow_patterns=patterns, cache_dir=f"{folder}/code")
        differences = [f"{code}: is not the code of the installed package" for code in foreign_code(Path(code))]
        cache = Path(folder) / "cache"
        if differences and not trust_remote_code:
            differences.append("not run: read the code above, then allow it with `trust_remote_code`")
        else:
            try:
                print(f"Loading {repo_id} at {commit} in a fresh process without the project ...", flush=True)
                worked = load_from_hub_as_a_stranger(repo_id, commit, cache, token or get_token())
                print(f"It answers and draws: {worked}")
            except ValueError as error:
                differences.append(str(error))
        with hub_errors(f"Downloading {repo_id}"):
            snapshot = Path(api.snapshot_download(repo_id, revision=commit, cache_dir=cache))
            found = api.verify_repo_checksums(repo_id, revision=commit, cache_dir=cache)
        differences += [f"{mismatch['path']}: is not what the Hub has" for mismatch in found.mismatches]
        return differences + _compare(snapshot)


def _compare(snapshot: Path) -> list[str]:
    """What differs from the checksums of the release."""
    if not (snapshot / CHECKSUMS).is_file():
        return [f"{CHECKSUMS}: is missing, so that nothing tells what was released"]
    lines = (snapshot / CHECKSUMS).read_text().splitlines()
    expected = {path: checksum for checksum, _, path in (line.partition("  ") for line in lines)}
    there = files_in(snapshot)
    differences = [f"{path}: is missing" for path in expected if path not in there]
    differences += [
        f"{path}: is not what was released"
        for path, checksum in expected.items()
        if path in there and sha256(snapshot / path) != checksum
    ]
    added = sorted(path for path in there - {CHECKSUMS} if belongs(path) and path not in expected)
    return differences + [f"{path}: was not released" for path in added]


def add_command(commands):
    """`python -m hub_upload verify NAME/MODEL[@REVISION]`."""
    parser = commands.add_parser("verify", help="download a repository and compare it with its release; try it")
    parser.add_argument("repository", metavar="NAME/MODEL[@REVISION]")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run its code even if it is not the package's"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace):
    repo_id, _, revision = options.repository.partition("@")
    differences = verify(repo_id, revision or None, trust_remote_code=options.trust_remote_code)
    if differences:
        raise ValueError(f"{options.repository} differs from what was released:\n" + "\n".join(differences))
    print(f"{options.repository} is what was released, and works.")


__all__ = ["add_command", "verify"]
