"""Where a push goes, and whether it may, is known before any work is done."""

import pytest

from hub_upload import publication, push, release
from hub_upload.__main__ import main
from tests.hub_upload.conftest import REPO


@pytest.fixture
def no_work(monkeypatch):
    """No checksum is computed, and nothing is loaded."""

    def fail(*args, **kwargs):
        pytest.fail("work was done")

    monkeypatch.setattr(release, "CommitOperationAdd", fail)
    monkeypatch.setattr(publication, "load_as_a_stranger", fail)


def test_a_bare_name_is_the_users_from_the_start(saved, hub, loads, capsys):
    commit = push(saved, "digits", release="v1.0", license="mit")
    assert list(hub.repositories) == ["someone/digits"]
    repository = hub.repositories["someone/digits"]
    assert repository.tags == {"v1.0": commit.oid} and len(repository.commits) == 2
    assert b'repo, revision = "someone/digits"' in repository.commits[commit.oid].tree["README.md"]
    said = capsys.readouterr().out
    assert "The repository is someone/digits." in said and "hub_upload verify someone/digits@v1.0" in said
    requests = [request for request in hub.requests if "digits" in request]
    assert all("someone/digits" in request for request in requests if "create" not in request)
    again = push(saved, "digits", release="v1.0", license="mit")
    assert again.oid == commit.oid and list(hub.repositories) == ["someone/digits"]


def test_a_dry_run_knows_the_name_too(saved, hub, loads, capsys):
    assert main(["push", str(saved), "--repo-id", "digits", "--dry-run"]) == 0
    assert "someone/digits at main" in capsys.readouterr().out and not hub.repositories


@pytest.mark.parametrize("name", ["digits", REPO, "friends/digits"])
@pytest.mark.parametrize(
    ("token", "message"), [("read", "may only read.*write permission"), ("unknown", "401.*hf auth login")]
)
def test_the_right_to_write_is_asked_for_first(name, token, message, saved, hub, no_work, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=message):
        push(saved, name)
    assert not hub.repositories and len(hub.requests) == 1


def test_without_a_token_there_is_no_push(saved, hub, no_work, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(PermissionError, match="there is no token.*hf auth login"):
        push(saved, "digits")
    assert not hub.requests


def test_a_dry_run_of_a_full_id_needs_no_token(saved, hub, loads, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    assert push(saved, REPO, dry_run=True) is None


@pytest.mark.parametrize("dry_run", [True, False])
def test_offline_is_said_at_once(dry_run, saved, hub, no_work, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        push(saved, REPO, dry_run=dry_run)


def test_a_hub_that_cannot_tell_who_asks_is_pushed_to(saved, hub, loads):
    hub.fail_on = ("whoami", 404)
    push(saved, REPO)
    assert list(hub.repositories) == [REPO]
    with pytest.raises(OSError, match="404"):
        push(saved, "digits")


def test_somebody_elses_namespace_is_remarked_upon(saved, hub, loads, capsys):
    push(saved, "stranger/digits")
    assert "stranger/digits is neither yours nor of an organisation of yours" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a/b/c", "", "a b"])
def test_what_is_no_id_is_refused(name, saved, hub, no_work):
    with pytest.raises(ValueError):
        push(saved, name)
    assert not hub.requests


def test_a_folder_that_is_none_is_named_first(hub, tmp_path):
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        push(tmp_path / "none", REPO)
    assert not hub.requests


def test_a_conversion_asks_before_it_converts(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "read")
    monkeypatch.setattr("hub_upload.checkpoint_conversion.convert", lambda *args: pytest.fail("work was done"))
    assert main(["convert", "source", "target", "--tokenizer", "tokenizer", "--push", "digits"]) == 1
    assert "may only read" in capsys.readouterr().err
