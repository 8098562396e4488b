"""A Space: the app for a repository on the Hub, checked and tried first, then sent as one commit."""

import argparse
import configparser
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    SpaceCardData,
    get_token,
)
from huggingface_hub.utils import validate_repo_id

from .disclosures import disclosures
from .hub_errors import hub_errors
from .publication import check_metadata, compare, destination, look
from .release import CARD, files_in, foreign_code
from .space_trial import try_space


CHECKOUT = Path(__file__).parents[1]
PLAYGROUND = CHECKOUT / "examples" / "playground"
# What the app imports, of what the project requires.
NEEDED = ("torch", "transformers", "diffusers", "accelerate", "huggingface_hub", "safetensors", "pillow")
APP = '''"""{repo_id} in the browser: chat about images, draw, see which experts the tokens go to."""

from playground import interface, launch_options, load_pipeline


# The code of this commit is run: one that was read and tried.
pipe = load_pipeline({repo_id!r}, revision={revision!r})
page = interface(pipe, {repo_id!r}, prompts={prompts!r}, questions={questions!r})

if __name__ == "__main__":
    page.launch(**launch_options(pipe))
'''
TEXT = """
Chat about images, draw with live previews, and see which experts the tokens of a prompt go to, with
[{repo_id}](https://huggingface.co/{repo_id}) at commit `{revision}`.
"""


def push_space(
    repo_id: str,
    space_id: str,
    *,
    revision: str | None = None,
    prompts: tuple[str, ...] = ("a red apple",),
    questions: tuple[str, ...] = ("What can you do?",),
    private: bool | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> CommitInfo | None:
    """
    Publishes the app for a repository, pinned to its commit. Before anything is sent, the repository's code is
    compared with that of the installed package, the app is searched for secrets, the token is asked for the right to
    write, and the app is started in a fresh process without the project, where it answers and draws.

    Args:
        repo_id (`str`): the model, on the Hub.
        space_id (`str`): created if it does not exist. Without a namespace, it is the user's own.
        revision (`str`, *optional*): a branch, tag or commit of the model; by default `"main"`.
        prompts, questions (`tuple[str, ...]`): examples of what to draw and to ask.
        private (`bool`, *optional*): whether a new Space is private; an existing one must be so already.
        parent_commit (`str`, *optional*): the commit that the Space must be at; by default where it is when the push
            begins. If it has moved when the commit arrives, nothing changes.
        commit_message (`str`, *optional*)
        token (`str`, *optional*): by default the one that is logged in.
        dry_run (`bool`, defaults to `False`): check everything and say what would be done, but send nothing.

    Returns:
        `CommitInfo`, or `None` of a dry run.

    Raises:
        ValueError: if an argument, the repository or the app is not as it must be; nothing was sent.
        PermissionError, ConnectionError, OSError: from the Hub; the Space is as it was.
    """
    for one in (repo_id, space_id):
        validate_repo_id(one)
    api = HfApi(token=token)
    space_id = destination(space_id, token, only_looks=dry_run)
    with hub_errors(f"Looking at {repo_id}"):
        model = api.model_info(repo_id, revision=revision)
    _check_code(api, repo_id, model.sha)
    if model.private:
        print(f"{repo_id} is private: the Space needs a secret HF_TOKEN that may read it.")
    with hub_errors(f"Looking at {space_id}"):
        remote = look(api, space_id, "main", "space")
    if remote.head is not None and private and not remote.private:
        raise ValueError(f"`private` must not be True: {space_id} exists and is public.")
    if parent_commit is not None and parent_commit != remote.head:
        raise ValueError(f"`parent_commit` must be where {space_id} is, {remote.head}, got {parent_commit}.")

    with prepared_space(repo_id, model.sha, prompts, questions) as folder:
        print("Starting the app in a fresh process without the project ...", flush=True)
        print(f"It answers and draws: {try_space(folder, token or get_token())}")
        with hub_errors("Having the Space's metadata checked"):
            check_metadata(api, folder / CARD, "space")
        operations = [CommitOperationAdd(path, folder / path) for path in sorted(files_in(folder))]
        changes = compare(operations, remote, _belongs)
        print(f"{space_id}, upon {remote.head or 'a new Space'}:\n{changes}", flush=True)
        if dry_run:
            print("A dry run: nothing was sent.")
            return None
        with hub_errors(f"Uploading to {space_id}"):
            if remote.head is None:
                api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
                remote = look(api, space_id, "main", "space")
            commit = api.create_commit(
                space_id,
                [*operations, *(CommitOperationDelete(path) for path in changes.removed)],
                commit_message=commit_message or f"The app for {repo_id}",
                repo_type="space",
                parent_commit=remote.head,
            )
    print(f"Committed: {commit.commit_url}")
    return commit


@contextmanager
def prepared_space(
    repo_id: str, revision: str, prompts: tuple[str, ...], questions: tuple[str, ...]
) -> Iterator[Path]:
    """
    The folder of a Space: its app, what the app imports of this project, its requirements and its card.

    Raises:
        ValueError: if this is no checkout of the project, Gradio is not installed, or a file holds a secret.
    """
    if not PLAYGROUND.is_dir():
        raise ValueError(f"A Space needs {PLAYGROUND}: run this from a checkout of the project.")
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise ValueError('A Space is tried before it is sent: install Gradio, pip install -e ".[app]".') from error
    card_data = SpaceCardData(
        title=repo_id.split("/")[-1],
        emoji="🪨",
        colorFrom="indigo",
        colorTo="gray",
        sdk="gradio",
        sdk_version=gradio,
        app_file="app.py",
        models=[repo_id],
        short_description="Chat about images, draw, see the experts at work",
    )
    examples = {"prompts": tuple(prompts), "questions": tuple((question, None) for question in questions)}
    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        space = Path(folder)
        (space / PLAYGROUND.name).mkdir()
        for file in sorted(PLAYGROUND.glob("*.py")):
            shutil.copy(file, space / PLAYGROUND.name)
        (space / "app.py").write_text(APP.format(repo_id=repo_id, revision=revision, **examples), encoding="utf-8")
        (space / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()))
        card = RepoCard(f"---\n{card_data}\n---\n{TEXT.format(repo_id=repo_id, revision=revision)}")
        (space / CARD).write_text(str(card), encoding="utf-8")
        if found := disclosures(space, machine_folders=[Path.home(), Path.cwd()]):
            raise ValueError(
                "The Space holds what must not be published:\n" + "\n".join(f"  {line}" for line in found)
            )
        yield space


def requirements() -> list[str]:
    """What the app imports, in the ranges that `setup.cfg` claims."""
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    claimed = setup["options"]["install_requires"].split("\n")
    needed = [line for line in claimed if line.split(" ")[0] in NEEDED]
    return needed + [line for line in setup["options.extras_require"]["app"].split("\n") if line]


def _check_code(api: HfApi, repo_id: str, commit: str):
    patterns = ["*.py", "*config.json"]
    with hub_errors(f"Looking at the code of {repo_id}"), tempfile.TemporaryDirectory(prefix="code-") as folder:
        code = Path(api.snapshot_download(repo_id, revision=commit, allow_patterns=patterns, local_dir=folder))
        is_rosetta, foreign = (code / "pipeline.py").is_file(), foreign_code(code)
    if not is_rosetta:
        raise ValueError(f"`repo_id` must be of a Rosetta repository, {repo_id} has no pipeline.py.")
    if foreign:
        raise ValueError(
            f"The code of {repo_id} must be that of the installed package, byte for byte. This is not: "
            f"{'; '.join(foreign)}. Publish it again with this version of the package."
        )


def _belongs(path: str) -> bool:
    """Whether an older app has left a file of this name."""
    return PurePosixPath(path).match(f"{PLAYGROUND.name}/*.py")


def add_command(commands):
    """`python -m hub_upload space NAME/MODEL --space-id NAME/SPACE`."""
    parser = commands.add_parser("space", help="publish an app for a repository on the Hub as a Space")
    parser.add_argument("repository", metavar="NAME/MODEL[@REVISION]")
    parser.add_argument("--space-id", required=True, metavar="NAME/SPACE", help="SPACE alone is yours")
    parser.add_argument("--prompt", nargs="+", default=["a red apple"], help="examples of what to draw")
    parser.add_argument("--question", nargs="+", default=["What can you do?"], help="examples of what to ask")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    parser.add_argument("--parent-commit", metavar="SHA", help="the commit that the Space must be at")
    parser.add_argument("--commit-message", metavar="TEXT")
    parser.add_argument("--dry-run", action="store_true", help="check everything, send nothing")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace):
    repo_id, _, revision = options.repository.partition("@")
    push_space(
        repo_id,
        options.space_id,
        revision=revision or None,
        prompts=tuple(options.prompt),
        questions=tuple(options.question),
        private=options.private,
        parent_commit=options.parent_commit,
        commit_message=options.commit_message,
        dry_run=options.dry_run,
    )


__all__ = ["add_command", "prepared_space", "push_space", "requirements"]
