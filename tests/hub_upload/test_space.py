"""A Space: what it holds, that it is checked and tried first, one commit; downloaded again, it serves the app."""

import configparser
import re
import sys

import pytest
import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from hub_upload import push, push_space, space
from hub_upload.__main__ import main
from hub_upload.space import CHECKOUT, PLAYGROUND, prepared_space
from hub_upload.space_trial import try_space
from tests.hub_upload.conftest import REPO


SPACE = "someone/Rosetta-app"


@pytest.fixture
def released(hub, folder, loads):
    """The commit of a model on the Hub."""
    return push(folder, REPO).oid


@pytest.fixture
def tries(monkeypatch) -> list[dict[str, str]]:
    """Stands in for starting the app, which takes seconds; the files that were to be started."""
    tried = []

    def try_space(folder, token):
        tried.append({file.name: file.read_text() for file in folder.rglob("*") if file.is_file()})
        return {"answer": ""}

    monkeypatch.setattr(space, "try_space", try_space)
    return tried


def test_a_space_is_one_commit_of_the_app_its_requirements_and_its_card(hub, released, tries, capsys):
    assert main(["space", REPO, "--space-id", SPACE, "--prompt", "a stone", "a tree", "--question", "What?"]) == 0
    repository = hub.repositories[f"spaces/{SPACE}"]
    assert len(repository.commits) == 2  # that of the creation is the other
    tree = {path: data.decode() for path, data in repository.find("main").tree.items() if path != ".gitattributes"}
    parts = {f"playground/{file.name}": file.read_text() for file in PLAYGROUND.glob("*.py")}
    assert tree == parts | {name: tree[name] for name in ("app.py", "requirements.txt", "README.md")}
    assert tries[0]["app.py"] == tree["app.py"]
    assert f"load_pipeline({REPO!r}, revision={released!r})" in tree["app.py"]
    assert "prompts=('a stone', 'a tree'), questions=(('What?', None),)" in tree["app.py"]

    metadata = yaml.safe_load(tree["README.md"].split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py" and metadata["models"] == [REPO]
    assert capsys.readouterr().out.count("Committed:") == 1
    claimed = configparser.ConfigParser()
    claimed.read(CHECKOUT / "setup.cfg")
    for line in tree["requirements.txt"].splitlines():
        name = Requirement(line).name
        assert line in (claimed["options"]["install_requires"] + claimed["options.extras_require"]["app"]).split("\n")
        assert name != "gradio" or metadata["sdk_version"] in Requirement(line).specifier


def test_all_that_the_app_imports_is_in_the_space_or_required(tmp_path):
    with prepared_space(REPO, "0" * 40, ("x",), ("y",)) as folder:
        required = {Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()}
        sources = "\n".join(file.read_text() for file in folder.rglob("*.py"))
    imported = set(re.findall(r"^(?:from|import) (\w+)", sources, re.MULTILINE)) - sys.stdlib_module_names
    assert imported - {"playground"} <= {"PIL" if name == "pillow" else name for name in required}


def test_a_second_push_changes_what_has_changed(hub, released, tries, capsys):
    push_space(REPO, SPACE)
    repository = hub.repositories[f"spaces/{SPACE}"]
    repository.commit("main", "older", {**repository.find("main").tree, "playground/old.py": b"x", "notes.md": b"y"})
    push_space(REPO, SPACE, prompts=("a tree",))
    tree = repository.find("main").tree
    assert "playground/old.py" not in tree and tree["notes.md"] == b"y"
    said = capsys.readouterr().out
    assert "  ~ app.py\n  - playground/old.py\n" in said


def test_what_is_checked_before_anything_is_sent(hub, released, tries, monkeypatch):
    def fails(error, match, *arguments, **options):
        before = len([request for request in hub.requests if request.startswith(("POST /api/spaces", "PUT"))])
        with pytest.raises(error, match=match):
            push_space(*arguments, **options)
        after = len([request for request in hub.requests if request.startswith(("POST /api/spaces", "PUT"))])
        assert before == after and f"spaces/{SPACE}" not in hub.repositories

    fails(OSError, "Looking at nobody/none", "nobody/none", SPACE)
    fails(ValueError, "id", "a//b", SPACE)
    hub.create("someone/other").commit("main", "x", {"config.json": b"{}"})
    fails(ValueError, "`repo_id` must be of a Rosetta repository", "someone/other", SPACE)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "read")
        fails(PermissionError, "may only read", REPO, SPACE)
    with monkeypatch.context() as patch:
        patch.setattr(space, "PLAYGROUND", CHECKOUT / "nowhere")
        fails(ValueError, "run this from a checkout", REPO, SPACE)
    secret = "hf_" + "a" * 34
    fails(ValueError, "README.md|app.py:.*a Hugging Face token", REPO, SPACE, prompts=(secret,))
    with monkeypatch.context() as patch:
        patch.setattr(space, "TEXT", space.TEXT)
        patch.setattr(space, "version", lambda name: "7.0")
        fails(ValueError, "sdk_version", REPO, SPACE)
    tree = hub.repositories[REPO].find("main").tree
    hub.repositories[REPO].commit("main", "changed", {**tree, "pipeline.py": b"import os\n"})
    fails(ValueError, "must be that of the installed package, byte for byte. This is not: pipeline.py", REPO, SPACE)
    assert push_space(REPO, SPACE, revision=released, dry_run=True) is None
    assert f"spaces/{SPACE}" not in hub.repositories


def test_a_space_that_is_there(hub, released, tries):
    hub.create(f"spaces/{SPACE}")
    with pytest.raises(ValueError, match="exists and is public"):
        push_space(REPO, SPACE, private=True)
    with pytest.raises(ValueError, match="`parent_commit` must be where"):
        push_space(REPO, SPACE, parent_commit="0" * 40)
    head = hub.repositories[f"spaces/{SPACE}"].branches["main"]
    push_space(REPO, SPACE, parent_commit=head)
    assert hub.repositories[f"spaces/{SPACE}"].find("main").parent == head


def test_downloaded_again_it_serves_the_app(hub, released, tries, tmp_path):
    push_space(REPO, SPACE)
    folder = HfApi().snapshot_download(SPACE, repo_type="space", local_dir=tmp_path / "space")
    found = try_space(tmp_path / "space", "write")
    assert folder == str(tmp_path / "space") and found["drawings"] == 1 and isinstance(found["answer"], str)
    assert not [request for request in hub.requests if "gradio-" in request]  # the page tells nobody of itself
    assert not [*(tmp_path / "space").rglob("*.pyc")]  # what is tried is what is sent
    (tmp_path / "space" / "app.py").write_text("import modeling_rosetta\n")
    with pytest.raises(ValueError, match="without the project:(.|\n)*import of modeling_rosetta halted"):
        try_space(tmp_path / "space", "write")
