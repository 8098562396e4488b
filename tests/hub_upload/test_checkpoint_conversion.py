"""Files: complete repositories, the same bits back, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hub_upload import checkpoint_conversion, convert, revert
from hub_upload.__main__ import main
from hub_upload.weight_files import open_weights
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaPipeline, RosettaProcessor
from modeling_rosetta.repository_rosetta import AUTO_MAP
from tests.hub_upload import authors
from tests.hub_upload.authors import ARCHITECTURES, LATENTS, OVERRIDES
from tests.modeling_rosetta.test_pipeline_source_images import by_hand, draw, picture
from tests.modeling_rosetta.tiny_pipeline import TOKENIZER, noise, tiny_vae


# Runs where the project cannot be imported.
STRANGER = """
import sys, torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForCausalLM, AutoProcessor

repository, results = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained(repository, transformer=model, trust_remote_code=True)
draw = dict(height=48, width=80, num_inference_steps=6, generator=torch.Generator().manual_seed(3))
torch.save(
    {
        "latents": pipe("a red stone", output_type="latent", **draw).images,
        "size": pipe("a red stone", **draw).images[0].size,
        "rows": dict(processor.draw_prompt("a red stone", 48, 80)),
        "importable": "modeling_rosetta" in sys.modules or "hub_upload" in sys.modules,
    },
    results,
)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict:
    """What the authors' files come with: a VAE, and a tokenizer of images of 64 pixels alone."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_vae().save_pretrained(folder / "vae")
    (folder / "tokenizer").mkdir()
    for file in TOKENIZER.iterdir():
        (folder / "tokenizer" / file.name).write_text(file.read_text().replace("img_size_256", "img_size_none"))
    return {"vae": folder / "vae", "tokenizer": folder / "tokenizer", "overrides": OVERRIDES}


@pytest.fixture
def source(tmp_path) -> Path:
    """The checkpoint as their inference has it."""
    (tmp_path / "source").mkdir()
    save_file(authors.checkpoint("rosetta", inference=True), tmp_path / "source" / "model.safetensors")
    return tmp_path / "source"


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_stranger_draws_the_authors_latents(architecture, parts, tmp_path):
    """Converted files, in several shards, loaded by a fresh process without the project."""
    save_file(authors.checkpoint(architecture, inference=True), tmp_path / "model.safetensors")
    repository = tmp_path / "Rosetta-0.1B"
    convert(tmp_path / "model.safetensors", repository, **parts, max_shard_size="300KB")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", STRANGER, repository, tmp_path / "results.pt"],
        cwd=tmp_path,
        env={**environment, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    drawn, results = torch.load(tmp_path / "results.pt", weights_only=False), authors.sampling()
    assert not drawn["importable"]
    assert torch.equal(drawn["rows"]["input_ids"], results[f"{architecture}.in.input_ids"])
    last = results[f"{architecture}.step.5.latents"]
    torch.testing.assert_close(drawn["latents"], last, rtol=0, atol=LATENTS)
    assert drawn["size"] == (80, 48)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_draws_from_a_picture_as_an_uncached_forward(architecture, parts, tmp_path):
    """In the layout of the authors' inference."""
    save_file(authors.checkpoint(architecture, inference=True), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "target", **parts)
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "target").eval()
    given = {"layout": "authors_inference", "image_embeds_from": ["noisy_latents", "pixel_values"]}
    processor = RosettaProcessor.from_pretrained(tmp_path / "target", **given)
    processor.image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}
    pipe = RosettaPipeline(model, tiny_vae(), FlowMatchEulerDiscreteScheduler(), processor)
    pipe.set_progress_bar_config(disable=True)
    drawn = draw(pipe, "ab", image=picture(1), latents=noise(), guidance_scale=3.0, height=64, width=64)
    torch.testing.assert_close(drawn, by_hand(pipe, "ab", picture(1), noise(), 3.0), rtol=0, atol=2e-5)
    other = draw(pipe, "ab", image=picture(2), latents=noise(), guidance_scale=3.0, height=64, width=64)
    assert not torch.allclose(drawn, other, atol=1e-3)


def test_the_repository_is_complete(parts, source, tmp_path):
    target = tmp_path / "target"
    convert(source, target, **parts, facts={"license": "apache-2.0"})
    config = json.loads((target / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["RosettaForCausalLMAndImageGeneration"]
    assert config["dtype"] == "float32"
    assert config["timestep_token_id"] == 265 and config["image_token_id"] == 262
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [258, 256] and generation["pad_token_id"] == 256
    processor = json.loads((target / "processor_config.json").read_text())
    assert processor["latent_prefix"] and processor["base_size"] == 64
    assert processor["image_processor"]["size"] == {"shortest_edge": 512**2, "longest_edge": 2048**2}
    assert {"model_index.json", "pipeline.py", "vae", "scheduler", "tokenizer.json"} <= {
        f.name for f in target.iterdir()
    }
    card = (target / "README.md").read_text()
    assert "license: apache-2.0" in card and "# target" in card and "| vae |" in card
    assert not leftovers(tmp_path)


def test_training_files_lay_rows_out_as_training_does(parts, tmp_path):
    save_file(authors.checkpoint("mot"), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "target", **parts)
    processor = json.loads((tmp_path / "target" / "processor_config.json").read_text())
    assert not processor["latent_prefix"] and processor["latent_prefix_type"] == 0


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files_come_back_bit_for_bit(architecture, inference, parts, tmp_path):
    tensors = authors.checkpoint(architecture, inference)
    save_file(tensors, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "ours", **parts, max_shard_size="200KB")
    revert(tmp_path / "ours", tmp_path / "theirs", max_shard_size="200KB")
    files = open_weights(tmp_path / "theirs")
    assert list(files.tensors) == sorted(tensors)
    assert all(torch.equal(files.read(key), tensor) for key, tensor in tensors.items())
    assert (tmp_path / "theirs" / "config.json").read_text() == "{}"
    assert all(file.stat().st_size < 250_000 for file in (tmp_path / "theirs").glob("*.safetensors"))


def test_new_latent_projections_are_not_reverted(parts, tmp_path):
    """Until the weights are trained and saved again."""
    before = ("patch_embed.", "final_layer.", "time_embed")
    tensors = {k: t for k, t in authors.checkpoint("rosetta").items() if not k.startswith(before)}
    save_file(tensors, tmp_path / "model.safetensors")
    overrides = OVERRIDES | {"latent_channels": 8, "latent_hidden_size": 64}
    convert(tmp_path / "model.safetensors", tmp_path / "ours", **{**parts, "overrides": overrides})
    revert(tmp_path / "ours", tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == tensors.keys()

    model = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "trained")
    revert(tmp_path / "trained", tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == authors.checkpoint("rosetta").keys()


def test_dtype(parts, source, tmp_path):
    convert(source, tmp_path / "target", **parts, dtype=torch.bfloat16)
    written = open_weights(tmp_path / "target").tensors.values()
    assert {tensor.dtype for tensor in written} == {torch.bfloat16}
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "target", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    theirs = authors.checkpoint("rosetta")["model.layers.1.mlp.experts.5.up_proj.weight"]
    ours = model.model.layers[1].mlp.pools["vit"].experts.gate_up_proj[2, 24:]
    assert torch.equal(ours, theirs.bfloat16())


def spoil(source: Path, change):
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")


DAMAGES = {
    "truncated": (lambda s: os.truncate(s / "model.safetensors", 500_000), "damaged or incomplete"),
    "missing": (
        lambda s: spoil(s, lambda t: t.pop("vit.merger.linear_fc2.bias")),
        "missing: vit.merger.linear_fc2.bias",
    ),
    "unexpected": (lambda s: spoil(s, lambda t: t.update(x=torch.zeros(1))), "unexpected: x"),
    "misshapen": (
        lambda s: spoil(s, lambda t: t.update({"time_embed.mlp.0.bias": torch.zeros(31)})),
        r"time_embed.mlp.0.bias must have \[32\], got \[31\]",
    ),
    "not finite": (
        lambda s: spoil(s, lambda t: t["model.layers.2.mlp.experts.9.down_proj.weight"].fill_(torch.nan)),
        "model.layers.2.mlp.pools.vae.experts.down_proj' are not all finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_leave_the_target_as_it_was(damage, parts, source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("mine")
    spoiled, message = DAMAGES[damage]
    spoiled(source)
    with pytest.raises(ValueError, match=message):
        convert(source, target, **parts, check_finite=True)
    assert [file.name for file in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_text() == "mine"
    assert not leftovers(tmp_path)


def test_an_interruption_leaves_the_target_as_it_was(parts, source, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_conversion, "model_card", interrupted)  # after the weights are written
    (tmp_path / "overrides.json").write_text(json.dumps(OVERRIDES))
    options = ["--tokenizer", parts["tokenizer"], "--vae", parts["vae"], "--config", tmp_path / "overrides.json"]
    assert main(["convert", *map(str, [source, tmp_path / "target", *options])]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "target").exists() and not leftovers(tmp_path)


def test_parts_that_are_missing_or_do_not_fit(parts, source, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match="`vae` must be given"):
        convert(source, target, **{**parts, "vae": None})
    small = {**OVERRIDES, "vocab_size": 320}
    tokenizer = AutoTokenizer.from_pretrained(parts["tokenizer"])
    tokenizer.add_tokens([f"new{i}" for i in range(400)])
    tokenizer.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match="`tokenizer` has 7.. tokens, more than the 320"):
        convert(source, target, **{**parts, "tokenizer": tmp_path / "large", "overrides": small})
    assert not target.exists()


def test_damaged_repositories_are_not_reverted(parts, source, tmp_path):
    convert(source, tmp_path / "ours", **parts)
    file = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match="missing: model.norm.weight"):
        revert(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_the_command(parts, source, tmp_path, capsys):
    overrides = tmp_path / "overrides.json"
    overrides.write_text(json.dumps(OVERRIDES))
    options = ["--tokenizer", str(parts["tokenizer"]), "--vae", str(parts["vae"]), "--config", str(overrides)]
    assert main(["convert", str(source), str(tmp_path / "ours"), *options, "--language", "en"]) == 0
    assert "- en" in (tmp_path / "ours" / "README.md").read_text()
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--revert"]) == 0
    reverted = load_file(tmp_path / "theirs" / "model.safetensors")
    assert all(torch.equal(reverted[key], t) for key, t in authors.checkpoint("rosetta", inference=True).items())
    capsys.readouterr()

    assert main(["convert", str(source), str(tmp_path / "x")]) == 1
    assert "`--tokenizer` must be given" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "x"), *options]) == 1
    assert "`source` must be a file, a folder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "x"), "--revert", "--dtype", "float32"]) == 1
    assert "without the options ['dtype']" in capsys.readouterr().err


def test_from_the_hub_to_the_hub(parts, source, hub, loads, tmp_path, monkeypatch):
    """The authors' repository has several checkpoints in folders; the result is published in one commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    theirs = hub.create("authors/weights")
    weights = (source / "model.safetensors").read_bytes()
    tree = {f"checkpoints/{name}/hf_weights/model.safetensors": weights for name in ("A", "B")}
    commit = theirs.commit("main", "weights", {**tree, "README.md": b"x"})
    overrides = tmp_path / "overrides.json"
    overrides.write_text(json.dumps(OVERRIDES))
    options = ["--tokenizer", str(parts["tokenizer"]), "--vae", str(parts["vae"]), "--config", str(overrides)]

    assert main(["convert", "authors/weights", str(tmp_path / "x"), *options]) == 1  # A or B?
    given = [f"authors/weights/checkpoints/B@{commit.oid}", str(tmp_path / "ours"), *options, "--push", "me/Rosetta"]
    assert main(["convert", *given]) == 0
    assert not any("/A/" in request for request in hub.requests if "resolve" in request)
    mine = hub.repositories["me/Rosetta"]
    published = mine.commits[mine.branches["main"]].tree
    assert "model.safetensors" in published and "SHA256SUMS" in published
    card = published["README.md"].decode()
    assert "base_model:\n- authors/weights" in card or "base_model: authors/weights" in card
    assert 'repo, revision = "me/Rosetta"' in card and "checkpoints/B" in card

    revert(f"me/Rosetta@{mine.branches['main']}", tmp_path / "back")
    reverted = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(reverted[key], t) for key, t in authors.checkpoint("rosetta", inference=True).items())
