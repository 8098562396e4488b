"""Streamed upcycling is the upcycling in memory, and leaves nothing behind when it fails."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from hub_upload.__main__ import main
from hub_upload.checkpoint_upcycling import upcycle_checkpoint
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, text_config_from_dense, upcycle
from tests.modeling_rosetta.tiny_pipeline import TOKENIZER


IDS = torch.arange(12)[None]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def dense(request, tmp_path):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, tie_word_embeddings=request.param, **sizes
    )
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "dense")
    return model


def test_from_the_hub(dense, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    files = {file.name: file.read_bytes() for file in (tmp_path / "dense").iterdir()}
    hub.create("someone/dense").commit("main", "dense", files)
    upcycle_checkpoint("someone/dense@main", tmp_path / "streamed")
    streamed = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "streamed").eval()
    for model in (streamed, upcycle("someone/dense").eval()):
        torch.testing.assert_close(model(IDS).logits, dense(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["rosetta", "moe", "mot"])
def test_the_files_are_those_of_the_model_in_memory(dense, architecture, tmp_path):
    target = tmp_path / "Rosetta-0.1B"
    options = ["--architecture", architecture, "--max-shard-size", "30KB"]
    assert main(["upcycle", str(tmp_path / "dense"), str(target), *options]) == 0
    assert len(list(target.glob("model-*.safetensors"))) > 1
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(target).eval()
    expected = upcycle(dense, loaded.config).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(loaded(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)
    assert loaded.config.image_token_id == AutoTokenizer.from_pretrained(target).convert_tokens_to_ids("<|image_pad|>")


def test_a_stranger_loads_it(dense, tmp_path):
    upcycle_checkpoint(tmp_path / "dense", tmp_path / "new", dtype=torch.bfloat16)
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A;"
        "m = A.from_pretrained(sys.argv[1], trust_remote_code=True); assert 'modeling_rosetta' not in sys.modules;"
        "assert m.dtype == torch.bfloat16; m.generate(torch.arange(4)[None], max_new_tokens=2)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "new")], check=True, cwd=tmp_path, env=environment)


def test_what_cannot_be_upcycled_is_refused_and_leaves_nothing(dense, tmp_path, capsys):
    target = tmp_path / "new"
    config = text_config_from_dense(dense.config, vocab_size=10**5)
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="`config.num_hidden_layers` must be 2"):
        upcycle_checkpoint(tmp_path / "dense", target, config)
    shard = sorted((tmp_path / "dense").glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    assert main(["upcycle", str(tmp_path / "dense"), str(target)]) == 1
    assert "damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def _without_a_tokenizer(folder):
    for file in folder.iterdir():
        if "token" in file.name or file.name in ("vocab.json", "merges.txt", "chat_template.jinja"):
            file.unlink()


def test_a_dense_model_without_a_tokenizer_is_refused(dense, tmp_path, capsys):
    """transformers makes an empty one, which turns every text into nothing."""
    _without_a_tokenizer(tmp_path / "dense")
    assert main(["upcycle", str(tmp_path / "dense"), str(tmp_path / "new")]) == 1
    assert "`source`: " in (error := capsys.readouterr().err) and "has no tokenizer" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_a_tokenizer_of_more_tokens_than_the_embedding_has_is_refused(dense, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="`source`: .* has a tokenizer of .* rows in its embedding"):
        upcycle_checkpoint(tmp_path / "dense", tmp_path / "new")


def test_its_processor_has_all_special_tokens(dense, tmp_path):
    upcycle_checkpoint(tmp_path / "dense", tmp_path / "new")
    processor = AutoProcessor.from_pretrained(tmp_path / "new", trust_remote_code=True)
    config = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "new").config
    assert processor.embeds_from == ["input_ids"] and len(processor.tokenizer) <= config.vocab_size
    assert set(processor.special_tokens()) <= processor.tokenizer.get_vocab().keys()
    assert config.image_token_id == processor.image_token_id
    assert len(processor.training_sample("some words")["input_ids"]) > 2
