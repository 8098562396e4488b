"""However saving ends, the folder is the old one or the new one."""

import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from modeling_rosetta.repository_rosetta import staged_directory
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def folder(pipe, tmp_path) -> Path:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text("a card")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")
    (folder / "link").symlink_to("README.md")
    return folder


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def fail_at(number: int, function, error: BaseException):
    """`function`, of which one call does its work and then fails, as if the process was interrupted there."""
    calls = iter(range(10_000))

    def failing(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(calls) == number:
            raise error
        return result

    return failing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        *((safetensors.torch, "save_file", number) for number in (0, 1)),
        *((shutil, "copyfile", number) for number in (0, 4)),
        *((Path, "write_text", number) for number in (0, 2)),
        (Path, "rename", 0),
    ],
)
def test_a_failure_on_the_way_leaves_the_folder_as_it_was(owner, name, number, error, pipe, folder, monkeypatch):
    before = contents(folder)
    with monkeypatch.context() as patch:
        failing = fail_at(number, getattr(owner, name), error)
        for place in ("transformers.modeling_utils.safe_save_file", "diffusers.models.modeling_utils.safetensors.torch"):
            if name == "save_file" and place.endswith("safe_save_file"):
                patch.setattr(place, failing)
        patch.setattr(owner, name, failing)
        with pytest.raises(type(error)):
            pipe.save_pretrained(folder)
    assert contents(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_replaced_is_put_back(folder, monkeypatch):
    before, rename = contents(folder), Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise PermissionError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        with staged_directory(folder) as staged:
            (staged / "config.json").write_text("{}")
    assert contents(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_a_repository_does_not_have_stays(has_links, pipe, folder, monkeypatch):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no links")))
    before = contents(folder)
    pipe.save_pretrained(folder)
    after = contents(folder)
    assert after.keys() == before.keys()
    for name in ("README.md", "checkpoint-1/optimizer.pt", "link"):
        assert after[name] == before[name]


def test_weights_stay_where_no_others_take_their_place(folder):
    before = contents(folder)
    with staged_directory(folder) as staged:
        (staged / "adapter_model.safetensors").write_bytes(b"an adapter")
    assert contents(folder) == {**before, "adapter_model.safetensors": b"an adapter"}
