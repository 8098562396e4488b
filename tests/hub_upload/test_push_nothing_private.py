"""A push sends nothing that is nobody else's business: it is left out, or refused before the first request."""

import json
import pickle
import re

import pytest
import torch

from hub_upload import push
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


def test_weights_of_another_time_are_left_out(folder, hub, loads):
    """An older single file beside the shards, which nothing loads."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(
        (folder / "model-00001-of-00004.safetensors").read_bytes()
    )
    push(folder, REPO)
    tree = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]].tree
    assert "model-00001-of-00002.safetensors" not in tree and "model-00001-of-00004.safetensors" in tree
