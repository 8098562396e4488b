"""Whatever fails, the branch is as it was or complete, and pushing again finishes."""

from pathlib import Path

import pytest

from hub_upload import release
from hub_upload.push import push
from tests.hub_upload.conftest import REPO


@pytest.fixture
def with_card(saved, folder) -> Path:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A card\n")
    return folder


@pytest.fixture
def code(monkeypatch):
    """The package's code, found once rather than for each of many pushes."""
    files = release.code_files()
    monkeypatch.setattr(release, "code_files", lambda: files)


def tree(hub) -> dict[str, bytes]:
    repository = hub.repositories[REPO]
    return repository.commits[repository.branches["main"]].tree


def is_complete(hub) -> bool:
    listed = {line.split("  ")[1] for line in tree(hub)["SHA256SUMS"].decode().splitlines()}
    return set(tree(hub)) == listed | {"SHA256SUMS", ".gitattributes"}


def large_files(folder: Path) -> int:
    return len(list(folder.rglob("*.safetensors")))


@pytest.mark.parametrize("fault", ["refused", "lost"])
def test_failing_each_request_in_turn(fault, with_card, hub, loads, code):
    push(with_card, REPO, release="v1")
    number = len(hub.requests)
    assert number > 10 and is_complete(hub)
    states = set()
    for request in range(number):
        hub.repositories.clear(), hub.stored.clear(), hub.requests.clear()
        hub.fail_at, hub.lose_at = ((request, 403), None) if fault == "refused" else (None, request)
        try:
            push(with_card, REPO, release="v1")
        except OSError:
            pass
        hub.fail_at = hub.lose_at = None
        state = "none" if REPO not in hub.repositories else "untouched" if len(tree(hub)) == 1 else "complete"
        assert state != "complete" or is_complete(hub), request
        states.add(state)

        stored = len(hub.stored)
        hub.requests.clear()
        push(with_card, REPO, release="v1")
        assert is_complete(hub)
        assert hub.repositories[REPO].tags == {"v1": hub.repositories[REPO].branches["main"]}
        assert len(hub.repositories[REPO].commits) == 2  # the initial one and the release
        sent = sum(request.startswith("PUT /storage") for request in hub.requests)
        assert sent == large_files(with_card) - stored  # nothing that had arrived is sent again
    assert states == {"none", "untouched", "complete"}


def test_a_passing_failure_of_the_storage_is_got_over(with_card, hub, loads):
    failures = iter([500, 500])

    def fail_twice(request):
        hub.fail_on = ("PUT /storage", 503) if request.startswith("PUT") and next(failures, None) else None

    hub.before = fail_twice
    push(with_card, REPO)
    assert is_complete(hub)
    assert sum(request.startswith("PUT") for request in hub.requests) == large_files(with_card) + 2


def test_a_branch_that_moves_meanwhile_is_left_alone(with_card, hub, loads):
    hub.create(REPO)

    def move(request):
        if "/commit/" in request:
            hub.repositories[REPO].commit("main", "somebody else's", {"theirs.txt": b"theirs"})

    hub.before = move
    with pytest.raises(OSError, match="412.*has moved on.*push again on top"):
        push(with_card, REPO, release="v1")
    assert tree(hub) == {"theirs.txt": b"theirs"} and not hub.repositories[REPO].tags
    hub.before = lambda request: None
    push(with_card, REPO, release="v1")
    assert "theirs.txt" in tree(hub) and "model_index.json" in tree(hub)


def test_a_slow_hub_is_waited_for(with_card, hub, loads):
    hub.delay = 0.05
    push(with_card, REPO)
    assert is_complete(hub)


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("read-only token", PermissionError, "403.*write permission"),
        ("unknown token", PermissionError, "401.*hf auth login"),
        ("full quota", OSError, "storage is full"),
        ("no network", ConnectionError, "cannot be reached.*Check the network"),
    ],
)
def test_what_is_wrong_is_said(trouble, kind, message, with_card, hub, loads, monkeypatch):
    hub.create(REPO)
    if trouble == "full quota":
        hub.quota = 400_000
    elif trouble == "no network":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setenv("HF_TOKEN", trouble.split("-")[0].split()[0])
    with pytest.raises(kind, match=message):
        push(with_card, REPO)
    assert len(tree(hub)) == 1
