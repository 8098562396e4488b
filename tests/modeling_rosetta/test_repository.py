"""A saved repository is complete, on its own, and survives what may happen to it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_rosetta
from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from modeling_rosetta.repository_rosetta import AUTO_MAP
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


PACKAGE = Path(modeling_rosetta.__file__).parent
IDS = torch.arange(10)[None]

# Runs where the project cannot be imported.
STRANGER = """
import sys, torch
from diffusers import DiffusionPipeline
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

repository, results, resaved = sys.argv[1:]
trust = {"trust_remote_code": True}
pipe = DiffusionPipeline.from_pretrained(repository, **trust)
model = AutoModelForCausalLM.from_pretrained(repository, **trust)
passed = DiffusionPipeline.from_pretrained(repository, transformer=model, vae=None, **trust)
half = DiffusionPipeline.from_pretrained(repository, dtype=torch.bfloat16, **trust)
passed.save_pretrained(resaved + "-without-vae")
blind = DiffusionPipeline.from_pretrained(resaved + "-without-vae", **trust)
idle = DiffusionPipeline.from_pretrained(repository, transformer=None, **trust)
said = []
for incomplete in (blind, idle):
    try:
        incomplete("a red stone", num_inference_steps=1)
    except ValueError as error:
        said.append(str(error))
ids, noise = torch.arange(10)[None], torch.load(results)
torch.save(
    {
        "logits": model(ids).logits.detach(),
        "image": pipe("a red stone", num_inference_steps=2, latents=noise, output_type="pt").images,
        "latents": passed("a red stone", num_inference_steps=2, latents=noise, output_type="latent").images,
        "is_passed": passed.transformer is model,
        "blind": blind("a red stone", num_inference_steps=2, latents=noise, output_type="latent").images,
        "said": said,
        "dtypes": {p.dtype for part in (half.transformer, half.vae) for p in part.parameters()},
        "half_image": half("a red stone", num_inference_steps=2, output_type="pt").images,
        "classes": [
            type(loader.from_pretrained(repository, **trust)).__name__
            for loader in (AutoConfig, AutoProcessor, AutoModel, AutoModelForImageTextToText)
        ],
        "importable": "modeling_rosetta" in sys.modules,
    },
    results,
)
pipe.save_pretrained(resaved)
"""


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def repository(pipe, tmp_path_factory) -> Path:
    """In several shards, and with a dot in its name, as the released ones have."""
    directory = tmp_path_factory.mktemp("saved") / "Rosetta-0.1B"
    pipe.save_pretrained(directory, max_shard_size="300KB")
    return directory


@pytest.fixture(scope="module")
def stranger(repository) -> dict:
    """What a fresh process without the project makes of the repository."""
    home = repository.parent
    torch.save(noise(), home / "results.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", STRANGER, repository, home / "results.pt", home / "resaved"],
        cwd=home,
        env={**environment, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return torch.load(home / "results.pt", weights_only=False)


def files(directory: Path) -> set[str]:
    return {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}


def test_a_stranger_gets_the_same_numbers(stranger, pipe):
    assert not stranger["importable"]
    assert torch.equal(stranger["logits"], pipe.transformer(IDS).logits)
    draw = {"prompt": "a red stone", "num_inference_steps": 2, "latents": noise()}
    assert torch.equal(stranger["image"], pipe(**draw, output_type="pt").images)
    assert torch.equal(stranger["latents"], pipe(**draw, output_type="latent").images)


def test_a_stranger_loads_a_pipeline_without_a_part(stranger):
    assert torch.equal(stranger["blind"], stranger["latents"])
    without_vae, without_model = stranger["said"]
    assert "`output_type` must be 'latent' without a `vae`" in without_vae
    assert "`transformer` must be part of the pipeline to draw, it is None" in without_model


def test_a_stranger_gets_the_classes_and_dtypes_asked_for(stranger):
    model = "RosettaForCausalLMAndImageGeneration"
    assert stranger["classes"] == ["RosettaConfig", "RosettaProcessor", "RosettaModel", model]
    assert stranger["is_passed"]
    assert stranger["dtypes"] == {torch.bfloat16}
    assert stranger["half_image"].isfinite().all()


def test_a_repository_saved_again_is_the_same_but_for_its_shards(stranger, repository):
    saved, again = (
        {name: (path / name).read_bytes() for name in files(path) if not re.match(r"model.*safetensors", name)}
        for path in (repository, repository.parent / "resaved")
    )
    assert saved.keys() == again.keys()
    assert {name for name in saved if saved[name] != again[name]} <= {"config.json"}  # which now has the ViT's dtype
    for config in (saved["config.json"], again["config.json"]):
        assert json.loads(config)["auto_map"] == AUTO_MAP


def test_a_repository_saved_again_names_no_path_of_this_machine(stranger, repository):
    again = repository.parent / "resaved"
    for name in files(again):
        assert str(repository.parent).encode() not in (again / name).read_bytes(), name


def test_it_holds_one_copy_of_the_weights_and_of_the_tokenizer(repository, pipe):
    stored = sum((repository / file).stat().st_size for file in files(repository) if file.endswith(".safetensors"))
    tensors = [*pipe.transformer.state_dict().values(), *pipe.vae.state_dict().values()]
    tied = pipe.transformer.lm_head.weight
    assert stored < 1.1 * sum(t.nbytes for t in tensors) - tied.nbytes
    assert [file for file in files(repository) if Path(file).name == "tokenizer.json"] == ["tokenizer.json"]


def test_its_code_is_the_package_s(repository):
    for file in files(repository):
        if file.endswith(".py"):
            assert (repository / file).read_bytes() == (PACKAGE / Path(file).name).read_bytes(), file


def test_all_code_at_its_root_is_reached_from_pipeline_py(repository):
    """Otherwise diffusers would leave it on the Hub."""
    reached = {Path(file).name for file in get_relative_import_files(repository / "pipeline.py")}
    assert reached | {"pipeline.py"} == {path.name for path in repository.glob("*.py")}
    assert {target.split(".")[0] + ".py" for target in AUTO_MAP.values()} < reached


def test_saving_over_a_repository_leaves_foreign_files_and_no_old_weights(pipe, tmp_path):
    directory = tmp_path / "model"
    pipe.save_pretrained(directory, max_shard_size="300KB")
    (directory / "README.md").write_text("a card")
    (directory / "checkpoint-1").mkdir()
    pipe.save_pretrained(directory)
    assert (directory / "README.md").read_text() == "a card" and (directory / "checkpoint-1").is_dir()
    assert [file.name for file in directory.glob("model*.safetensors*")] == ["model.safetensors"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(directory)
    assert torch.equal(loaded(IDS).logits, pipe.transformer(IDS).logits)


@pytest.mark.parametrize("broken", ["transformer", "processor", "vae"])
def test_an_interrupted_save_changes_nothing(pipe, tmp_path, monkeypatch, broken):
    directory = tmp_path / "model"
    pipe.save_pretrained(directory)
    before = {file: (directory / file).read_bytes() for file in files(directory)}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(getattr(pipe, broken)), "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained(directory)
    assert {file: (directory / file).read_bytes() for file in files(directory)} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved_is_refused(pipe, tmp_path):
    (tmp_path / "file").touch()
    for arguments in ({"save_directory": tmp_path / "file"}, {"variant": "fp16"}, {"safe_serialization": False}):
        (name,) = arguments
        with pytest.raises(ValueError, match=name):
            pipe.save_pretrained(**{"save_directory": tmp_path / "model", **arguments})
    wrapped = tiny_pipeline()
    wrapped.transformer = torch.nn.Sequential(pipe.transformer)
    with pytest.raises(ValueError, match="transformer"):
        wrapped.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
