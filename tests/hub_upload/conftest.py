import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub

from hub_upload import publication
from tests.hub_upload.stand_in_hub import StandInHub
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


REPO = "someone/Rosetta-0.1B"


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A complete repository, in several shards. Not to be changed."""
    pipe = tiny_pipeline()
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    folder = tmp_path_factory.mktemp("saved") / "Rosetta-0.1B"
    pipe.save_pretrained(folder, max_shard_size="300KB")
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "Rosetta-0.1B"))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub, which huggingface_hub talks to with a token that may write."""
    with StandInHub().running() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # which remembers another endpoint
        monkeypatch.setenv("HF_TOKEN", "write")
        waits = SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
        monkeypatch.setattr(_http, "time", waits)  # between attempts
        yield hub


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """Stands in for loading in a fresh process, which takes seconds; the folders that were to be loaded."""
    loaded = []
    monkeypatch.setattr(publication, "load_as_a_stranger", lambda folder: loaded.append(folder) or {"answer": ""})
    return loaded
