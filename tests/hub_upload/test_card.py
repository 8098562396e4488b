"""The card says what the repository's files say, and nothing else; its metadata is valid."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hub_upload import model_card
from hub_upload.__main__ import main
from hub_upload.card import _memory
from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, mount, unmount
from tests.conftest import tiny_model
from tests.hub_upload.stand_in_hub import metadata_errors


STAGE = {
    "stage": "LM",
    "data": "the news",
    "steps": 12_000,
    "epochs": 1.5,
    "hyperparameters": {"learning_rate": 0.0003, "maop": False},
    "trained_parameters": 1_234_567,
    "processes": 8,
    "device": "an accelerator",
    "versions": {"torch": "2.13.0"},
    "results": {"loss on the news": 2.34567},
    "log": [],
}


@pytest.fixture(params=["rosetta", "moe", "mot", "text"])
def architecture(request, tmp_path) -> tuple[str, Path]:
    """A folder with no more than the configuration and the weights."""
    model = tiny_model("rosetta" if request.param == "text" else request.param)
    if request.param == "text":
        model.config.token_types, model.config.expert_pools = model.config.token_types[:1], {"text": 3}
    model.save_pretrained(tmp_path / "Tiny")
    return request.param, tmp_path / "Tiny"


@pytest.fixture
def recorded(folder) -> Path:
    """With a record of two stages, pictures and a benchmark."""
    stages = [STAGE, {**STAGE, "stage": "T2I", "hyperparameters": {"shield_steps": 5}, "results": {}}]
    (folder / "training.json").write_text(json.dumps({"command": "make it", "stages": stages}))
    (folder / "assets").mkdir()
    for name in ("curves.png", "drawn_stones.png"):
        (folder / "assets" / name).write_bytes(b"png")
    (folder / ".eval_results").mkdir()
    entry = {"dataset": {"id": "cais/mmlu", "task_id": "default"}, "value": 43.21}
    (folder / ".eval_results" / "mmlu.yaml").write_text(yaml.safe_dump([entry]))
    return folder


def test_it_is_of_the_architecture(architecture):
    name, folder = architecture
    card = model_card(folder, license="apache-2.0", language=["en"], base_model="Qwen/Qwen3-0.6B", datasets=["a/b"])
    assert metadata_errors(str(card)) == []
    assert card.data.pipeline_tag == ("text-generation" if name == "text" else "image-text-to-text")
    assert ("text-to-image" in card.data.tags) == (name != "text")
    assert card.data.license == "apache-2.0" and card.data.base_model == ["Qwen/Qwen3-0.6B"]
    rows = {row[0]: row for row in re.findall(r"\| (\w+) \| `(\w+)` \| (\w+) \| (\d+) \| (\w+) \| (\w+)", card.text)}
    vae = {
        "rosetta": ("vae", "noisy_latents", "vae", "6", "shared", "global"),
        "moe": ("vae", "noisy_latents", "all", "12", "shared", "global"),
        "mot": ("vae", "noisy_latents", "gen", "6", "gen", "gen"),
    }
    assert rows.get("vae") == vae.get(name)
    assert ("## Draw" in card.text) == (name != "text") == ("Image.open" in card.text)


def test_parameters_are_counted_as_in_the_paper(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    expected = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n or "embed_tokens" in n)
    assert f"| Parameters, layers and embeddings | {expected:,} |" in model_card(tmp_path, repo_id="Tiny").text


@pytest.mark.parametrize(("left_out", "tag"), [("vae", "image-text-to-text"), ("vit", "text-to-image")])
def test_the_task_is_what_the_model_does(left_out, tag, tmp_path):
    model = unmount(tiny_model(), left_out)
    model.save_pretrained(tmp_path)
    assert model_card(tmp_path, repo_id="Tiny").data.pipeline_tag == tag


def test_it_follows_a_mount(tmp_path):
    model = tiny_model()
    tone = {"name": "tone", "embeds_from": "tone_features", "feature_size": 5, "is_generated": True}
    mount(
        model, {**tone, "expert_pool": "tone", "attention_stream": "shared", "shared_expert": "global"}, num_experts=4
    )
    model.save_pretrained(tmp_path)
    assert "| tone | `tone_features` | tone | 4 | shared | global |" in model_card(tmp_path, repo_id="Tiny").text
    unmount(model, "tone")
    model.save_pretrained(tmp_path)
    assert "tone" not in model_card(tmp_path, repo_id="Tiny").text


def test_the_training_can_be_repeated_from_it(recorded):
    text = model_card(recorded).text
    for part in (
        "`make it`",
        "| LM | the news | 12,000 | 1.5 | 1,234,567 | 8 | an accelerator |",
        "| `learning_rate` | 0.0003 | - |",
        "| `shield_steps` | - | 5 |",
        "torch 2.13.0",
        "assets/curves.png",
        "![drawn stones](assets/drawn_stones.png)",
        "| LM | 2.346 |",
        "[cais/mmlu](https://huggingface.co/datasets/cais/mmlu) | default | 43.21",
    ):
        assert part in text, part


def test_nothing_is_claimed_that_no_file_says(folder):
    text = model_card(folder).text
    assert "No record of how the weights were trained" in text and "None are recorded." in text
    assert "No licence was stated" in text
    assert "curves" not in text


def test_its_examples_name_the_repository(folder):
    assert 'repo, revision = "someone/Tiny"' in model_card(folder, repo_id="someone/Tiny").text
    assert 'repo, revision = "Rosetta-0.1B"' in model_card(folder).text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"license": "Apache 2.0"}, "`license` must be an identifier"),
        ({"license": "other"}, "`license_name` and `license_link` must be given"),
        ({"license_name": "mine"}, "`license_name` and `license_link`"),
        ({"language": ["english"]}, "`language` must be a code"),
        ({"base_model": "a b"}, "`base_model` must be an id"),
        ({"datasets": ["a/b/c"]}, "`datasets` must be an id"),
        ({"repo_id": "a/b/c"}, "`repo_id` must be an id"),
    ],
)
def test_facts_that_the_hub_would_refuse(facts, message, folder):
    with pytest.raises(ValueError, match=message):
        model_card(folder, **facts)


def test_folders_of_something_else(folder, tmp_path):
    with pytest.raises(ValueError, match="must hold the config.json"):
        model_card(tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="must hold a Rosetta model"):
        model_card(folder)


def test_results_in_another_format_are_named(recorded):
    (recorded / ".eval_results" / "mmlu.yaml").write_text("value: 3")
    with pytest.raises(ValueError, match="mmlu.yaml must be a list of evaluation results"):
        model_card(recorded)


def test_the_command_previews_it(recorded, capsys):
    assert main(["card", str(recorded), "--license", "mit", "--language", "en", "de"]) == 0
    card = ModelCard(capsys.readouterr().out)
    assert card.data.license == "mit" and card.data.language == ["en", "de"]
    assert main(["card", str(recorded / "nothing")]) == 1
    assert "must hold the config.json" in capsys.readouterr().err


def test_the_template_of_the_package_is_the_projects():
    top = Path(__file__).parents[2]
    assert (top / "hub_upload" / "model_card.md").read_text() == (top / "model_card.md").read_text()


def test_samples_come_first_and_hyperparameters_last(recorded):
    headings = re.findall(r"^## (.*)$", model_card(recorded).text, re.MULTILINE)
    assert headings[0] == "Samples" and headings[-1] == "Hyperparameters"
    assert headings.index("Intended use and limits") < headings.index("Architecture")


def test_its_gallery_and_examples_are_of_what_was_given(recorded):
    given = {"prompt": 'a "red" stone', "question": "Which one?", "num_inference_steps": 20, "guidance_scale": 3.5}
    card = model_card(recorded, **given)
    assert card.data.widget == [{"text": 'a "red" stone', "output": {"url": "assets/drawn_stones.png"}}]
    assert metadata_errors(str(card)) == []
    draw, ask = re.findall(r"^```python\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)[1:3]
    assert 'a \\"red\\" stone' in draw and "num_inference_steps=20" in draw and "guidance_scale=3.5" in draw
    assert '"Which one?"' in ask and "These settings were found good" in card.text
    assert "is not recorded" in model_card(recorded).text


def test_memory_is_counted_by_dtype():
    with torch.device("meta"):
        model = RosettaForCausalLMAndImageGeneration(RosettaConfig())
    memory = {name: float(size.removesuffix(" MB").replace(",", "")) for name, size in _memory(model).items()}
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert experts == 28 * 12 * 3 * 1024 * 3072
    expected = [4 * total, 2 * total, *(2 * (total - experts) + experts * bits / 8 for bits in (9, 5))]
    assert list(memory.values())[:4] == pytest.approx([size / 1e6 for size in expected], abs=0.06)
    assert list(memory.values())[4] == pytest.approx(2 * 2 * 28 * 8 * 128 * 1000 / 1e6, abs=0.06)  # keys and values
