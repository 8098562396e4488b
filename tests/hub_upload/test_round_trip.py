"""Push, verify, and load from the Hub's id where the project cannot be imported."""

import os
import subprocess
import sys

import pytest
import torch

from hub_upload import push, verification, verify
from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from tests.hub_upload.conftest import REPO


IDS = torch.arange(10)[None]
STRANGER = """
import sys
sys.modules["modeling_rosetta"] = None
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForCausalLM, AutoProcessor

trust = {"trust_remote_code": True, "revision": "v1.0"}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **trust)
AutoProcessor.from_pretrained(sys.argv[1], **trust)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **trust)
ids = torch.arange(10)[None]
torch.save([model(ids).logits.detach(), pipe.transformer(ids).logits.detach()], "logits.pt")
"""


@pytest.fixture
def fresh(monkeypatch) -> list:
    """Stands in for loading from the Hub in a fresh process; what was to be loaded."""
    loaded = []
    monkeypatch.setattr(
        verification, "load_from_hub_as_a_stranger", lambda *arguments: loaded.append(arguments) or {"answer": ""}
    )
    return loaded


def test_round_trip(saved, hub, tmp_path, capsys):
    push(saved, REPO, release="v1.0", license="apache-2.0")
    assert verify(REPO, "v1.0") == []
    assert capsys.readouterr().out.count("'drawing': [3, 64, 64]") == 2
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-I", "-c", STRANGER, REPO], cwd=tmp_path, env=environment, check=True)
    expected = RosettaForCausalLMAndImageGeneration.from_pretrained(saved)(IDS).logits
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.equal(logits, expected)


def test_verify_says_what_differs(saved, hub, loads, fresh):
    push(saved, REPO)
    tree = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]].tree
    assert verify(REPO) == [] and len(fresh) == 1
    tree["tokenizer.json"] += b" "
    del tree["chat_template.jinja"]
    tree["model-00005-of-00005.safetensors"] = b"?"
    assert verify(REPO) == [
        "chat_template.jinja: is missing",
        "tokenizer.json: is not what was released",
        "model-00005-of-00005.safetensors: was not released",
    ]
    del tree["SHA256SUMS"]
    assert [line.split(":")[0] for line in verify(REPO)] == ["SHA256SUMS"]


def test_verify_runs_foreign_code_only_if_it_is_trusted(saved, hub, loads, fresh):
    push(saved, REPO)
    tree = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]].tree
    tree["pipeline.py"] += b"\nprint('foreign')\n"
    tree["config.json"] = tree["config.json"].replace(b"modeling_rosetta.RosettaModel", b"a/b--evil.RosettaModel")
    differences = verify(REPO)
    assert not fresh
    assert any("pipeline.py" in line for line in differences) and any("a/b--evil" in line for line in differences)
    verify(REPO, trust_remote_code=True)
    assert len(fresh) == 1


def test_verify_of_a_repository_that_does_not_work_says_so(saved, hub, loads, monkeypatch):
    push(saved, REPO)

    def fail(*arguments):
        raise ValueError("does not work")

    monkeypatch.setattr(verification, "load_from_hub_as_a_stranger", fail)
    assert verify(REPO) == ["does not work"]


def test_what_is_not_there_is_named(hub):
    with pytest.raises(OSError, match=f"Looking at {REPO}.*404.*Check the spelling"):
        verify(REPO)
