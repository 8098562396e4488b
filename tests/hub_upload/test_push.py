"""What a push does to the repository on the Hub, and what it refuses."""

import pytest

from hub_upload import push as push_module
from hub_upload.__main__ import main
from hub_upload.push import push
from tests.hub_upload.conftest import REPO


def head(hub, branch="main"):
    repository = hub.repositories[REPO]
    return repository.commits[repository.branches[branch]]


def test_one_commit_and_a_tag(saved, hub, loads, capsys):
    commit = push(saved, REPO, release="v1.0", license="apache-2.0", commit_message="The first")
    repository = hub.repositories[REPO]
    assert [c.title for c in repository.commits.values()] == ["initial commit", "The first"]
    assert repository.tags == {"v1.0": commit.oid} and repository.branches == {"main": commit.oid}
    assert head(hub).tree["model_index.json"] == (saved / "model_index.json").read_bytes()
    assert b"license: apache-2.0" in head(hub).tree["README.md"]
    out = capsys.readouterr().out
    assert "+ config.json" in out and "Tagged: v1.0" in out
    assert [path.name for path in loads] == ["Rosetta-0.1B"] and loads[0] != saved


def test_older_weights_go_and_foreign_files_stay(saved, hub, loads, capsys):
    repository = hub.create(REPO)
    theirs = {"notes.txt": b"theirs", ".gitignore": b"config.json", "model.safetensors": b"old", "config.json": b"{}"}
    repository.commit("main", "theirs", theirs)
    push(saved, REPO)
    tree = head(hub).tree
    assert "model.safetensors" not in tree and tree["notes.txt"] == b"theirs"
    assert tree["config.json"] == (saved / "config.json").read_bytes()  # whatever a .gitignore says
    out = capsys.readouterr().out
    assert "- model.safetensors" in out and "~ config.json" in out


def test_pushing_the_same_again_is_no_commit(saved, hub, loads, capsys):
    first = push(saved, REPO, release="v1")
    second = push(saved, REPO, release="v1")
    assert second.oid == first.oid and len(hub.repositories[REPO].commits) == 2
    assert "30 files are there already" in capsys.readouterr().out


def test_a_dry_run_sends_nothing(saved, hub, loads, capsys):
    assert push(saved, REPO, dry_run=True) is None
    assert REPO not in hub.repositories and len(loads) == 1
    assert "+ model-00001-of-00004.safetensors" in capsys.readouterr().out
    assert all(request.startswith("GET") or "validate-yaml" in request for request in hub.requests)


def test_private_branch_and_pull_request(saved, hub, loads):
    push(saved, REPO, private=True, revision="next")
    repository = hub.repositories[REPO]
    assert repository.private
    assert list(head(hub).tree) == [".gitattributes"] and "config.json" in head(hub, "next").tree
    commit = push(saved, REPO, create_pr=True)
    assert commit.pr_url.endswith("/discussions/1")
    assert list(head(hub).tree) == [".gitattributes"] and "config.json" in head(hub, "refs/pr/1").tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"private": True}, "`private`.*is public"),
        ({"parent_commit": 40 * "0"}, "`parent_commit` must be where main"),
        ({"release": "v0"}, "`release` must be a new tag"),
        ({"create_pr": True, "release": "v2"}, "`create_pr`"),
        ({"license": "Apache 2"}, "`license`"),
    ],
)
def test_arguments_that_do_not_fit_are_named_and_nothing_is_sent(arguments, message, saved, hub, loads):
    repository = hub.create(REPO)
    repository.tags["v0"] = repository.branches["main"]
    with pytest.raises(ValueError, match=message):
        push(saved, REPO, **arguments)
    assert len(repository.commits) == 1 and not hub.stored and not loads


def test_what_does_not_load_is_not_sent(saved, hub, monkeypatch):
    def fail(folder):
        raise ValueError("does not work")

    monkeypatch.setattr(push_module, "load_as_a_stranger", fail)
    with pytest.raises(ValueError, match="does not work"):
        push(saved, REPO)
    assert REPO not in hub.repositories


def test_metadata_that_the_hub_refuses_is_not_sent(folder, hub, loads):
    (folder / "README.md").write_text("---\nlanguage: English\n---\n# A card\n")
    with pytest.raises(ValueError, match="language"):
        push(folder, REPO)
    assert REPO not in hub.repositories


def test_the_command_line(saved, hub, loads, capsys):
    command = ["push", str(saved), "--repo-id", REPO, "--release", "v1", "--license", "mit", "--language", "en"]
    assert main(command) == 0
    assert b"license: mit" in head(hub).tree["README.md"]
    assert main([*command[:4], "--parent-commit", 40 * "0"]) == 1
    assert "error: `parent_commit` must be" in capsys.readouterr().err
    assert main(["card", str(saved), "--license", "mit"]) == 0
    assert "# Rosetta-0.1B" in capsys.readouterr().out
