"""Files of weights are read tensor by tensor and written shard by shard; damaged ones are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_upload import weight_files
from hub_upload.weight_files import open_weights, parse_hub_source, write_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {f"layer.{i}": torch.randn(10, 10, generator=torch.Generator().manual_seed(i)) for i in range(5)}


@pytest.fixture
def folder(tensors, tmp_path):
    """Three shards and their index."""
    write_weights(tmp_path, {k: t.to("meta") for k, t in tensors.items()}, tensors.__getitem__, max_shard_size=800)
    return tmp_path


def same(files, tensors):
    return files.tensors.keys() == tensors.keys() and all(torch.equal(files.read(k), t) for k, t in tensors.items())


def test_shards_hold_what_was_written(folder, tensors):
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert same(open_weights(folder), tensors)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 400
    assert all(key in load_file(folder / file) for key, file in index["weight_map"].items())


def test_one_shard_is_in_memory_at_a_time(tensors, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(weight_files, "save_file", lambda shard, *args, **kwargs: events.append(sorted(shard)))
    write_weights(
        tmp_path,
        {k: t.to("meta") for k, t in tensors.items()},
        lambda key: events.append(key) or tensors[key],
        max_shard_size=800,
    )
    keys = sorted(tensors)
    assert events == [*keys[:2], keys[:2], *keys[2:4], keys[2:4], keys[4], keys[4:]]


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tensors, tmp_path):
    write_weights(tmp_path, {k: t.to("meta") for k, t in tensors.items()}, tensors.__getitem__, max_shard_size=10)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert same(open_weights(tmp_path), tensors)


def test_metadata_and_meta_tensors(tensors, tmp_path):
    write_weights(tmp_path, {"a": torch.empty(2, device="meta")}, lambda _: torch.ones(2), metadata={"x": "y"})
    files = open_weights(tmp_path)
    assert files.metadata == {"format": "pt", "x": "y"}
    assert files.tensors["a"].is_meta and files.tensors["a"].shape == (2,)


def test_a_file_a_folder_and_a_folder_within_are_found(tensors, tmp_path):
    inner = tmp_path / "release" / "hf_weights"
    inner.mkdir(parents=True)
    save_file(tensors, inner / "weights.safetensors")
    for source in (inner / "weights.safetensors", inner, tmp_path):
        assert same(open_weights(source), tensors)


def test_one_file_beside_shards_of_another_time_wins(folder, tensors):
    """As in the authors' loader."""
    save_file({"layer.0": torch.zeros(1)}, folder / "model.safetensors")
    assert open_weights(folder).tensors.keys() == {"layer.0"}


def cut(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def no_header(folder):
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"x" * 100)


def remove(folder):
    (folder / "model-00003-of-00003.safetensors").unlink()


def spoil_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def remove_all(folder):
    for file in folder.iterdir():
        file.unlink()


def split_up(folder):
    remove_all(folder)
    for name in ("a", "b"):
        (folder / name).mkdir()
        save_file({"x": torch.zeros(1)}, folder / name / "model.safetensors")


def twice(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file({"layer.0": torch.zeros(1)}, folder / "other.safetensors")


def integers(folder):
    remove_all(folder)
    save_file({"x": torch.zeros(1, dtype=torch.long)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "model-00002-of-00003.safetensors is damaged or incomplete"),
        (no_header, "model-00002-of-00003.safetensors is damaged or incomplete"),
        (remove, "model-00003-of-00003.safetensors is missing"),
        (spoil_index, "model.safetensors.index.json is damaged"),
        (remove_all, "no safetensors files"),
        (split_up, "several folders"),
        (twice, "'layer.0' stands in .* and in another file"),
        (integers, "must have one of the types"),
    ],
)
def test_damage_is_named(damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=f"`source`.*{message}"):
        open_weights(folder)


def test_hub_sources():
    assert parse_hub_source("owner/name") == ("owner/name", weight_files.PurePosixPath(), None)
    assert parse_hub_source("owner/name/a/b@v1") == ("owner/name", weight_files.PurePosixPath("a/b"), "v1")
    for source in ("name", "/no/such/folder", "./no/folder"):
        with pytest.raises(ValueError, match="`source` must be a file, a folder"):
            parse_hub_source(source)
