"""A saved repository to the Hub: checked first, then sent as one commit."""

import argparse
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from .card import add_facts, facts_of
from .fresh_process import load_as_a_stranger
from .hub_errors import ADVICE, hub_errors
from .release import CARD, belongs, prepared_release


@dataclass
class Remote:
    """
    The repository on the Hub, as it is before the push.

    Attributes:
        head (`str`, *optional*): the commit to push upon; `None` without a repository.
        private (`bool`)
        has_branch (`bool`): whether the revision exists.
        tags (`dict[str, str]`): commits by tag.
        files (`dict[str, RepoFile]`): by path.
    """

    head: str | None = None
    private: bool = False
    has_branch: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, RepoFile] = field(default_factory=dict)


@dataclass
class Changes:
    """Paths, by what happens to them."""

    new: list[str]
    changed: list[str]
    removed: list[str]
    same: list[str]

    def __str__(self) -> str:
        signs = (("+", self.new), ("~", self.changed), ("-", self.removed))
        lines = [f"  {sign} {path}" for sign, paths in signs for path in paths]
        return "\n".join([*lines, f"  {len(self.same)} files are there already"])


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    release: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    **facts,
) -> CommitInfo | None:
    """
    Publishes a saved repository: weights, code, processor, pipeline, VAE, card and checksums, in one commit. Before
    anything is sent, the folder is checked for completeness, foreign code and secrets, the token for the right to
    write, and the release is loaded, asked and drawn with in a fresh process without the project. After an
    interruption, the same call sends what is missing.

    Files on the Hub that a release may hold and this one does not, such as older weights, are removed in the same
    commit; others stay.

    Args:
        folder (`str` or `os.PathLike`): as `RosettaPipeline.save_pretrained` wrote it. It is not changed.
        repo_id (`str`): created if it does not exist. Without a namespace, it is the user's own.
        release (`str`, *optional*): the tag that the commit gets, e.g. `"v1.0"`.
        private (`bool`, *optional*): whether a new repository is private; an existing one must be so already.
        revision (`str`, *optional*): the branch, by default `"main"`; branched off `main` if it does not exist.
        create_pr (`bool`, defaults to `False`): open a pull request instead of committing to the branch.
        parent_commit (`str`, *optional*): the commit that the branch must be at; by default where it is when the push
            begins. If it has moved when the commit arrives, nothing changes.
        commit_message (`str`, *optional*)
        token (`str`, *optional*): by default the one that is logged in.
        dry_run (`bool`, defaults to `False`): check everything and say what would be done, but send nothing.
        facts: of [`model_card`], if the folder has no README.md.

    Returns:
        `CommitInfo`, or `None` of a dry run.

    Raises:
        ValueError: if the folder or an argument is not as it must be; nothing was sent.
        PermissionError, ConnectionError, OSError: from the Hub; the branch is as it was, unless they name the tag.
    """
    validate_repo_id(repo_id)
    if create_pr and (release is not None or revision not in (None, "main")):
        raise ValueError(
            "`create_pr` opens a pull request on main, which can be tagged once it is merged: `release` and "
            f"`revision` must not be given with it, got {release!r} and {revision!r}."
        )
    api, revision = HfApi(token=token), revision or "main"
    is_full = "/" in repo_id
    if not is_full:
        repo_id = destination(repo_id, token, only_looks=dry_run)
    with prepared_release(folder, repo_id, **facts) as prepared:
        for path in prepared.left_out:
            print(f"left out: {path}")
        # The Hub is asked before what takes long, checksums and loading.
        if is_full:
            destination(repo_id, token, only_looks=dry_run)
        with hub_errors(f"Looking at {repo_id}"):
            remote = look(api, repo_id, revision)
        changes = compare(prepared.operations, remote, belongs)
        _check_remote(repo_id, revision, remote, changes, private, parent_commit, release)

        print("Loading the release in a fresh process without the project ...", flush=True)
        print(f"It answers and draws: {load_as_a_stranger(prepared.folder)}")
        with hub_errors("Having the card's metadata checked"):
            check_metadata(api, prepared.folder / CARD)
        print(f"{repo_id} at {revision}, upon {remote.head or 'a new repository'}:\n{changes}", flush=True)
        if dry_run:
            print("A dry run: nothing was sent.")
            return None

        with hub_errors(f"Uploading to {repo_id}"):
            if remote.head is None:
                api.create_repo(repo_id, private=private, exist_ok=True)
                remote = look(api, repo_id, revision)
            if not remote.has_branch:
                api.create_branch(repo_id, branch=revision, revision=remote.head, exist_ok=True)
            # No .gitignore may thin out a release.
            api.preupload_lfs_files(
                repo_id, prepared.operations, revision=revision, create_pr=create_pr, gitignore_content=""
            )
            commit = api.create_commit(
                repo_id,
                [*prepared.operations, *(CommitOperationDelete(path) for path in changes.removed)],
                commit_message=commit_message or f"Upload {release or Path(prepared.folder).name}",
                revision=revision,
                create_pr=create_pr,
                parent_commit=remote.head,
            )
        print(f"Committed: {commit.pr_url or commit.commit_url}")
        if release is not None and release not in remote.tags:
            with hub_errors(f"{repo_id} is complete, but not tagged {release}"):
                api.create_tag(repo_id, tag=release, revision=commit.oid)
            print(f"Tagged: {release}")
        if commit.pr_url is None:
            print(f"To check it: python -m hub_upload verify {repo_id}@{release or commit.oid}")
    return commit


def check_metadata(api: HfApi, card: Path, repo_type: str = "model"):
    """As `ModelCard.validate`, which in huggingface_hub 1 asks huggingface.co whatever the endpoint."""
    body = {"repoType": repo_type, "content": card.read_text(encoding="utf-8")}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
    if response.status_code == 400:
        raise ValueError(response.text)
    hf_raise_for_status(response)


def destination(repo_id: str, token: str | None = None, *, only_looks: bool = False) -> str:
    """
    The full id of a repository to push to, asked of the Hub before any work is done.

    Args:
        repo_id (`str`): without a namespace, it is in the user's own.
        token (`str`, *optional*): by default the one that is logged in.
        only_looks (`bool`, defaults to `False`): nothing will be written, so no token is needed for a full id.

    Raises:
        PermissionError, ConnectionError, OSError: if the token is unknown or may only read, or from the Hub.
    """
    if only_looks and "/" in repo_id:
        return repo_id
    with hub_errors(f"Asking who pushes {repo_id}"):
        try:
            me = HfApi(token=token).whoami()
        except HfHubHTTPError as error:
            if error.response.status_code == 404 and "/" in repo_id:  # a Hub of one's own that cannot tell
                return repo_id
            raise
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read" and not only_looks:
        raise PermissionError(f"Your token may only read: the Hub would answer 403 to {repo_id}. {ADVICE[403]}")
    if "/" not in repo_id:
        repo_id = f"{me['name']}/{repo_id}"
        print(f"The repository is {repo_id}.")
    names = [me["name"], *(organisation["name"] for organisation in me.get("orgs", []))]
    if repo_id.split("/")[0] not in names:
        print(f"{repo_id} is neither yours nor of an organisation of yours: {', '.join(names)}.")
    return repo_id


def look(api: HfApi, repo_id: str, revision: str, repo_type: str = "model") -> Remote:
    """The repository as it is."""
    try:
        main = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return Remote()
    try:
        head, has_branch = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha, True
    except RevisionNotFoundError:
        head, has_branch = main.sha, False
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return Remote(head, bool(main.private), has_branch, tags, files)


def compare(operations: list[CommitOperationAdd], remote: Remote, belongs: Callable[[str], bool]) -> Changes:
    """What the operations change; what `belongs` to a push and is not in this one is removed."""
    changes = Changes([], [], [], [])
    for operation in operations:
        there = remote.files.get(operation.path_in_repo)
        kind = changes.new if there is None else changes.same if _is_same(operation, there) else changes.changed
        kind.append(operation.path_in_repo)
    sent = {operation.path_in_repo for operation in operations}
    changes.removed = sorted(path for path in remote.files if belongs(path) and path not in sent)
    return changes


def _is_same(operation: CommitOperationAdd, there: RepoFile) -> bool:
    if there.size != operation.upload_info.size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        data = file.read()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _check_remote(
    repo_id: str,
    revision: str,
    remote: Remote,
    changes: Changes,
    private: bool | None,
    parent_commit: str | None,
    release: str | None,
):
    if remote.head is not None and private and not remote.private:
        raise ValueError(
            f"`private` must not be True: {repo_id} exists and is public. Make it private in its settings first."
        )
    if parent_commit is not None and parent_commit != remote.head:
        raise ValueError(
            f"`parent_commit` must be where {revision} of {repo_id} is, {remote.head}, got {parent_commit}. Look at "
            "what came in between, then push upon that."
        )
    tagged = remote.tags.get(release)
    if tagged is not None and (tagged != remote.head or changes.new or changes.changed or changes.removed):
        raise ValueError(f"`release` must be a new tag: {release} of {repo_id} is {tagged}, with other content.")


def add_command(commands):
    """`python -m hub_upload push DIR --repo-id NAME/MODEL`."""
    parser = commands.add_parser("push", help="check a saved repository and publish it as one commit")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--repo-id", required=True, metavar="NAME/MODEL", help="MODEL alone is yours")
    parser.add_argument("--release", metavar="TAG", help="tag the commit, e.g. v1.0")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="default: main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--parent-commit", metavar="SHA", help="the commit that the branch must be at")
    parser.add_argument("--commit-message", metavar="TEXT")
    parser.add_argument("--dry-run", action="store_true", help="check everything, send nothing")
    add_facts(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace):
    names = "release private revision create_pr parent_commit commit_message dry_run".split()
    given = {name: getattr(options, name) for name in names}
    push(options.folder, options.repo_id, **given, **facts_of(options))


__all__ = ["add_command", "check_metadata", "compare", "destination", "look", "push"]
