"""The ViT taken out of the repository of a Qwen3-VL."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from trainer.stages.vision_tower import load_vision_tower


WIDTH = 32
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny Qwen3-VL, and its repository in several files of bf16 weights."""
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT, vision_config=VISION)).bfloat16()
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder, max_shard_size="20KB")
    return type(model).from_pretrained(folder, dtype=torch.float32).model.visual, folder


def _features(tower):
    pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    return tower(pixels, grid_thw=torch.tensor([[1, 4, 4]])).pooler_output


def test_same_features_at_the_same_width(qwen):
    visual, folder = qwen
    tower = load_vision_tower(folder, WIDTH)
    assert all(parameter.dtype == torch.float32 for parameter in tower.parameters())
    assert torch.equal(_features(tower), _features(visual))


def test_new_projectors_at_another_width(qwen):
    visual, folder = qwen
    torch.manual_seed(1)
    tower = load_vision_tower(folder, 48)
    assert _features(tower).shape[-1] == 48
    for name, weight in tower.state_dict().items():
        if "merger" in name and "linear_fc2" in name:
            assert len(weight) == 48
            assert weight.std().item() == pytest.approx(0.02, rel=0.2) if "weight" in name else not weight.any()
        else:
            assert torch.equal(weight, visual.state_dict()[name])


def test_files_without_the_vit_are_not_read(qwen, tmp_path):
    visual, folder = qwen
    file_of = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in file_of.items() if ".visual." in name}
    assert needed < set(file_of.values())
    for file in folder.iterdir():
        if file.suffix != ".safetensors" or file.name in needed:
            (tmp_path / file.name).symlink_to(file)
    assert torch.equal(_features(load_vision_tower(tmp_path, WIDTH)), _features(visual))


def test_a_vit_of_its_own(qwen, tmp_path):
    visual, _ = qwen
    visual.save_pretrained(tmp_path)
    assert torch.equal(_features(load_vision_tower(tmp_path, WIDTH)), _features(visual))


def test_errors(qwen, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="is no Qwen3-VL, but of type 'qwen3'"):
        load_vision_tower(tmp_path, WIDTH)
    visual, folder = qwen
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    weights = {f"model.visual.{name}": weight for name, weight in visual.state_dict().items()}
    del weights["model.visual.merger.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lack 1 of the ViT, the first is 'merger.norm.weight'"):
        load_vision_tower(tmp_path, WIDTH)
