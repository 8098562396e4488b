"""What is nobody else's business is refused or left out; what is missing or foreign is named."""

import json
import pickle
import re

import pytest
import torch

from hub_upload import push
from hub_upload.release import CHECKSUMS, prepared_release, sha256
from tests.hub_upload.conftest import REPO


TOKEN = "hf_" + "aBcDeFgHiJ" * 4


def append(file, text):
    file.write_text((file.read_text() if file.exists() else "") + text)


def change_json(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


# What must never be sent. Left out: not of a repository's layout. The values are what is looked for in what was sent.
LEFT_OUT = {
    "optimizer.pt": lambda file: torch.save({"exp_avg": torch.ones(3)}, file),
    "training_args.bin": lambda file: torch.save({"learning_rate": 1.0}, file),
    "pytorch_model.bin": lambda file: file.write_bytes(pickle.dumps({"weights": [1, 2, 3]})),
    "scheduler.pt": lambda file: torch.save({}, file),
    "rng_state.pth": lambda file: torch.save({}, file),
    ".env": lambda file: file.write_text(f"HF_TOKEN={TOKEN}"),
    "token": lambda file: file.write_text(TOKEN),
    "runs/events.out.tfevents.1": lambda file: file.write_bytes(b"log"),
    "__pycache__/pipeline.cpython-311.pyc": lambda file: file.write_bytes(b"code"),
    ".cache/huggingface/download/x.lock": lambda file: file.write_bytes(b""),
    "checkpoint-5/model.safetensors": lambda file: file.write_bytes(b"weights"),
    "vae/diffusion_pytorch_model.bin": lambda file: file.write_bytes(pickle.dumps(1)),
}


def test_what_does_not_belong_is_left_out(folder, hub, loads, capsys):
    for name, plant in LEFT_OUT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plant(folder / name)
    push(folder, REPO)
    printed = capsys.readouterr().out
    tree = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]].tree
    assert "model_index.json" in tree
    for name in LEFT_OUT:
        assert f"left out: {name}" in printed
        assert name not in tree
    sent = [*tree.values(), *hub.stored.values()]
    assert not any(TOKEN.encode() in data or data.startswith((b"PK", b"\x80")) for data in sent)


DISCLOSURES = {
    "a token in the card": (
        lambda f: append(f / "README.md", f"# A card\n\nuse {TOKEN}\n"),
        "README.md:3: a Hugging Face token",
    ),
    "a token in a configuration": (
        lambda f: change_json(f / "config.json", note=TOKEN),
        "config.json:1: a Hugging Face token",
    ),
    "a key in the record": (
        lambda f: append(f / "training.json", '{"stages": [], "command": "KEY=sk-' + "x1" * 20 + '"}'),
        "training.json:1: an API key",
    ),
    "a path in a configuration": (
        lambda f: change_json(f / "vae" / "config.json", _name_or_path="/home/somebody/vae"),
        "vae/config.json:1: a path of this machine, /home/somebody/vae",
    ),
    "a path in the tokenizer's": (
        lambda f: change_json(f / "tokenizer_config.json", name_or_path="C:\\Users\\somebody\\model"),
        "tokenizer_config.json:1: a path of this machine",
    ),
}


@pytest.mark.parametrize("planted", DISCLOSURES)
def test_disclosures_are_refused_with_their_place(planted, folder, hub, loads):
    plant, message = DISCLOSURES[planted]
    plant(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        push(folder, REPO)
    assert TOKEN not in str(error.value)  # it is not spread further
    assert not hub.requests and not loads


def test_this_machines_folders_are_refused_wherever_they_are(folder, hub, loads):
    change_json(folder / "config.json", note=f"from {folder.parent}/data")
    with pytest.raises(ValueError, match="config.json:1: a path of this machine"):
        push(folder, REPO)


def test_a_pickle_under_the_name_of_weights_is_refused(folder, hub, loads):
    (folder / "model-00002-of-00004.safetensors").write_bytes(pickle.dumps({"weights": [1]}))
    with pytest.raises(ValueError, match="model-00002-of-00004.safetensors must be a safetensors file"):
        push(folder, REPO)
    assert not hub.requests


@pytest.mark.parametrize(
    "name",
    ["config.json", "pipeline.py", "vae/config.json", "processor_config.json", "model-00003-of-00004.safetensors"],
)
def test_an_incomplete_folder_is_refused(name, folder, hub, loads):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"lacks .*{re.escape(name)}"):
        push(folder, REPO)
    assert not hub.requests


def test_changed_and_added_code_is_refused(folder, hub, loads):
    append(folder / "modeling_rosetta.py", "\n# changed\n")
    (folder / "helpers_rosetta.py").write_text("print('mine')\n")
    change_json(folder / "processor_config.json", auto_map={"AutoProcessor": "somebody/else--code.Processor"})
    with pytest.raises(ValueError, match="byte for byte") as error:
        push(folder, REPO)
    for name in ("modeling_rosetta.py", "helpers_rosetta.py", "somebody/else--code.Processor"):
        assert name in str(error.value)
    assert not hub.requests


def test_checksums_are_of_all_that_is_sent_and_the_folder_is_not_changed(saved):
    before = {file: file.stat().st_mtime_ns for file in saved.rglob("*")}
    with prepared_release(saved, REPO) as release:
        lines = (release.folder / CHECKSUMS).read_text().splitlines()
        expected = {path: checksum for checksum, path in (line.split("  ") for line in lines)}
        sent = {operation.path_in_repo for operation in release.operations}
        assert set(expected) == sent - {CHECKSUMS}
        assert all(sha256(release.folder / path) == checksum for path, checksum in expected.items())
        staged = release.folder
    assert not staged.exists()
    assert {file: file.stat().st_mtime_ns for file in saved.rglob("*")} == before


def test_weights_of_another_time_are_left_out(folder, hub, loads):
    """An older single file beside the shards, which nothing loads."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(
        (folder / "model-00001-of-00004.safetensors").read_bytes()
    )
    push(folder, REPO)
    tree = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]].tree
    assert "model-00001-of-00002.safetensors" not in tree and "model-00001-of-00004.safetensors" in tree


def test_older_files_of_the_repository_go_in_the_same_commit(folder, hub, loads):
    older = {"model.safetensors": b"old", "notes.md": b"stays"}
    hub.create(REPO).commit("main", "older", older)
    push(folder, REPO)
    repository = hub.repositories[REPO]
    tree = repository.commits[repository.branches["main"]].tree
    assert "model.safetensors" not in tree and tree["notes.md"] == b"stays"
    assert len(repository.commits) == 3


def test_a_dry_run_checks_everything_and_sends_nothing(folder, hub, loads, capsys):
    assert push(folder, REPO, dry_run=True) is None
    assert len(loads) == 1 and REPO not in hub.repositories and not hub.stored
    assert "+ config.json" in capsys.readouterr().out


def test_a_pull_request_leaves_main_alone(folder, hub, loads):
    hub.create(REPO)
    commit = push(folder, REPO, create_pr=True)
    repository = hub.repositories[REPO]
    assert repository.branches["refs/pr/1"] == commit.oid
    assert len(repository.commits[repository.branches["main"]].tree) == 1


def test_a_new_branch_and_a_private_repository(folder, hub, loads):
    push(folder, REPO, revision="next", private=True)
    repository = hub.repositories[REPO]
    assert repository.private
    assert "config.json" in repository.commits[repository.branches["next"]].tree
    assert "config.json" not in repository.commits[repository.branches["main"]].tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"create_pr": True, "release": "v1"}, "`release` and `revision` must not be given"),
        ({"parent_commit": "0" * 40}, "`parent_commit` must be where main"),
        ({"license": "Apache 2"}, "`license` must be"),
        ({"language": ["English"]}, "`language` must be"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, folder, hub, loads):
    hub.create(REPO)
    with pytest.raises(ValueError, match=message):
        push(folder, REPO, **arguments)
    assert len(hub.repositories[REPO].commits) == 1 and not hub.stored
