"""Tiny models of all architectures and a batch that holds every kind of token."""

import os
import sys
import tempfile
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "rosetta-test-datasets"))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402


TINY = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "latent_channels": 8,
    "latent_hidden_size": 64,
    "image_token_id": 119,
    "vision_start_token_id": 117,
    "vision_end_token_id": 118,
    "initializer_range": 0.2,
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}
CONFIGS = {"rosetta": RosettaConfig, "moe": RosettaConfig.moe, "mot": RosettaConfig.mot}
TEXT, VIT, VAE = 0, 1, 2


def tiny_model(architecture: str = "rosetta", **kwargs) -> RosettaForCausalLMAndImageGeneration:
    torch.manual_seed(0)
    config = CONFIGS[architecture](**{**TINY, **kwargs})
    model = RosettaForCausalLMAndImageGeneration(config).eval()
    with torch.no_grad():  # the zero-initialised convolutions would hide what comes before them
        model.model.latent_in.block.conv2.weight.normal_(std=0.1)
        model.latent_out.block.conv2.weight.normal_(std=0.1)
    return model


def sample(kinds: str, seed: int = 0) -> dict:
    """One sample: "t" is a few text tokens, "u" an image to understand, "g" an image to draw."""
    generator = torch.Generator().manual_seed(seed)
    types, grids_thw, grids_hw, pixels, latents, velocities = [], [], [], [], [], []
    for number, kind in enumerate(kinds):
        if kind == "t":
            types += [TEXT] * (4 + number)
        elif kind == "u":
            grid = (1, 4, 2 + 2 * (number % 2))
            grids_thw.append(grid)
            pixels.append(torch.randn(grid[1] * grid[2], 3 * 2 * 4 * 4, generator=generator))
            types += [VIT] * (grid[1] * grid[2] // 4)
        else:
            grid = (2, 3) if number % 2 else (3, 2)
            grids_hw.append(grid)
            latents.append(torch.randn(6, 8, generator=generator))
            velocities.append(torch.randn(6, 8, generator=generator))
            types += [VAE] * 6
    types = torch.tensor([types])
    ids = torch.randint(0, 110, types.shape, generator=generator).masked_fill(types != TEXT, 119)
    batch = {"input_ids": ids, "token_type_ids": types, "labels": ids.masked_fill(types != TEXT, -100)}
    batch["labels"][:, 0] = -100
    if pixels:
        batch |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids_thw)}
    if latents:
        batch |= {
            "noisy_latents": torch.cat(latents),
            "latent_grid_hw": torch.tensor(grids_hw),
            "timesteps": torch.rand(len(latents), generator=generator),
            "velocity_labels": torch.cat(velocities),
        }
    return batch


def pack(samples: list[dict], padding: int = 0) -> dict:
    """Samples in one row, with padding behind them."""
    packed = {key: [s[key] for s in samples if key in s] for key in {key for s in samples for key in s}}
    rows = ("input_ids", "token_type_ids", "labels")
    batch = {key: torch.cat(values, dim=1 if key in rows else 0) for key, values in packed.items()}
    lengths = [s["input_ids"].shape[1] for s in samples]
    batch["sequence_ids"] = torch.arange(len(samples)).repeat_interleave(torch.tensor(lengths))[None]
    for key, value in (("input_ids", 0), ("token_type_ids", TEXT), ("labels", -100), ("sequence_ids", -1)):
        batch[key] = torch.nn.functional.pad(batch[key], (0, padding), value=value)
    return batch


@pytest.fixture(params=list(CONFIGS))
def model(request) -> RosettaForCausalLMAndImageGeneration:
    return tiny_model(request.param)


@pytest.fixture
def rosetta() -> RosettaForCausalLMAndImageGeneration:
    return tiny_model()
