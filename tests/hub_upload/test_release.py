"""What must not be published is refused or left out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hub_upload.disclosures import disclosures
from hub_upload.release import prepared_release
from tests.hub_upload.conftest import REPO


TOKEN = "hf_" + "aB3" * 12


def contents(folder) -> tuple[set[str], list[str]]:
    with prepared_release(folder, REPO) as release:
        return {operation.path_in_repo for operation in release.operations}, release.left_out


def test_a_saved_repository_is_a_release(saved):
    before = {file: file.stat().st_mtime_ns for file in saved.rglob("*")}
    with prepared_release(saved, REPO) as release:
        names = {operation.path_in_repo for operation in release.operations}
        lines = (release.folder / "SHA256SUMS").read_text().splitlines()
        links = release.folder
    assert names == {line.split("  ")[1] for line in lines} | {"SHA256SUMS"}
    assert {"README.md", "pipeline.py", "transformer/repository_rosetta.py", "vae/config.json"} <= names
    assert release.left_out == [] and not links.exists()
    assert {file: file.stat().st_mtime_ns for file in saved.rglob("*")} == before


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "checkpoint-10/optimizer.pt",
        "checkpoint-10/config.json",
        "training_args.bin",
        "pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "weights.pkl",
        "optimizer.safetensors",
        "model-00005-of-00005.safetensors",
        ".cache/huggingface/token",
        "__pycache__/pipeline.pyc",
        ".env",
        "serve.py",
        "runs/events.out.tfevents",
    ],
)
def test_what_does_not_belong_is_left_out(name, folder):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(TOKEN)
    names, left_out = contents(folder)
    assert name not in names and left_out == [name]


@pytest.mark.parametrize("name", ["model", "vae/diffusion_pytorch_model"])
def test_two_sets_of_weights_are_refused(name, folder):
    whole, index = (folder / f"{name}.safetensors{suffix}" for suffix in ("", ".index.json"))
    if not whole.exists():
        whole.write_bytes(b"older")
    if not index.exists():
        index.write_text(json.dumps({"weight_map": {"a": whole.name}}))
    with pytest.raises(ValueError, match="one set of weights.*safetensors and .*safetensors.index.json"):
        contents(folder)


@pytest.mark.parametrize(
    ("file", "line", "what"),
    [
        ("README.md", f"token={TOKEN}", "a Hugging Face token"),
        ("training.json", "ghp_" + 36 * "a", "a GitHub token"),
        ("NOTICE", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("README.md", "loaded from /home/me/run/model", "/home/me/run/model"),
        ("training.json", '"output_dir": "/scratch/me/run"', "/scratch/me/run"),
        ("README.md", r"C:\Users\me\run", "a path of this machine"),
    ],
)
def test_secrets_and_paths_are_refused_with_file_and_line(file, line, what, folder):
    text = '---\nlicense: mit\n---\n"' if file == "README.md" else '{"command": null, "stages": [],\n"note":\n"\n'
    (folder / file).write_text(text + line + '"}\n')
    if file != "README.md":
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match=f"{file}:4: ") as error:
        contents(folder)
    assert what in str(error.value) and TOKEN not in str(error.value)


def test_a_path_of_this_machine_in_a_configuration_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for path in ("/home/me/base", str(folder.parent / "base")):
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": path}, indent=2))
        with pytest.raises(ValueError, match=r"config.json:\d+: a path of this machine"):
            contents(folder)


def test_addresses_are_no_paths(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nhttps://example.org/home/me and ../data/x and /v1\n")
    assert "README.md" in contents(folder)[0]


def test_metadata_of_weights_is_read(folder):
    save_file({"bn": torch.ones(1)}, folder / "vae/diffusion_pytorch_model.safetensors", metadata={"token": TOKEN})
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors:1: a Hugging Face token"):
        contents(folder)


def test_a_pickle_by_another_name_is_refused(folder):
    torch.save({"weight": torch.ones(1)}, folder / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors must be a safetensors file"):
        contents(folder)


def test_changed_code_is_refused_by_name(folder):
    with (folder / "losses_rosetta.py").open("a") as file:
        file.write("# changed\n")
    (folder / "evil_rosetta.py").write_text("")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "a/b--evil.Model"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="byte for byte") as error:
        contents(folder)
    for name in ("losses_rosetta.py", "evil_rosetta.py", "a/b--evil.Model, in the `auto_map` of config.json"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model_index.json",
        "pipeline.py",
        "tokenizer.json",
        "model-00002-of-00004.safetensors",
        "vae/config.json",
        "transformer/repository_rosetta.py",
    ],
)
def test_what_is_missing_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"lacks {name}"):
        contents(folder)


def test_a_card_in_the_folder_is_the_card(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    with prepared_release(folder, REPO) as release:
        assert (release.folder / "README.md").read_text().endswith("Mine.\n")
    with pytest.raises(ValueError, match="`license` cannot be given"):
        with prepared_release(folder, REPO, license="mit"):
            pass


def test_no_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        contents(tmp_path / "none")


def test_folders_of_the_machine_are_found_wherever_they_are(tmp_path):
    (tmp_path / "config.json").write_text('{"note": "see /projects/mine/data", "other": "/projects/minerals"}')
    assert disclosures(tmp_path, [Path("/projects/mine")]) == [
        "config.json:1: a path of this machine, /projects/mine/data"
    ]
    assert disclosures(tmp_path) == []
