"""However saving ends, the folder is the old one or the new one."""

import os
import pkgutil
import shutil
from pathlib import Path

import pytest

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
    """`function`, one call of which fails after its work is done."""
    calls = iter(range(10_000))

    def failing(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(calls) == number:
            raise error
        return result

    return failing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("transformers.modeling_utils.safe_save_file", 0),
        ("safetensors.torch.save_file", 0),  # the VAE's
        *(("shutil.copyfile", number) for number in (0, 4)),
        *(("pathlib.Path.write_text", number) for number in (0, 2)),
        ("os.link", 1),
        ("pathlib.Path.rename", 0),
    ],
)
def test_a_failure_on_the_way_leaves_the_folder_as_it_was(function, number, error, pipe, folder, monkeypatch):
    before = contents(folder)
    owner, name = function.rsplit(".", 1)
    failing = fail_at(number, getattr(pkgutil.resolve_name(owner), name), error)
    with monkeypatch.context() as patch:
        patch.setattr(function, failing)
        if function == "os.link":
            patch.setattr("shutil.copy2", fail_at(0, shutil.copy2, error))  # which takes its place
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
