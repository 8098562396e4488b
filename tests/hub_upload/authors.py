"""The authors' tiny checkpoints, batches and results, from `tests/fixtures/parity`; figures of their code in fp32."""

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from hub_upload import convert_state_dict
from modeling_rosetta import RosettaForCausalLMAndImageGeneration


PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
ARCHITECTURES = ("rosetta", "moe", "mot")
# What shapes do not tell of the tiny checkpoints; the ids are those of the tiny tokenizer.
OVERRIDES = {
    "vision_config": {"deepstack_visual_indexes": [1, 2]},
    "image_token_id": 262,
    "vision_start_token_id": 259,
    "vision_end_token_id": 260,
    "balance_padding": True,
}
# Of logits, of velocities, of gradients relative to their largest.
LOGITS, VELOCITY, GRADIENTS = 2e-4, 2e-5, 1e-3
# Of latents after up to six guided steps: theirs are 2.1e-5 from those of float64, this project's 0.6e-5.
LATENTS = 4e-5


@lru_cache
def results(architecture: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one architecture."""
    return load_file(PARITY / f"{architecture}.safetensors")


@lru_cache
def losses() -> dict:
    """Losses and gradient norms of all architectures."""
    return json.loads((PARITY / "losses.json").read_text())


@lru_cache
def sampling() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the authors' inference."""
    return load_file(PARITY / "sampling.safetensors")


def checkpoint(architecture: str, inference: bool = False) -> dict[str, torch.Tensor]:
    """As their training saves it, or as their inference has it: with an embedding of the timestep token."""
    tensors = {k.removeprefix("sd."): v for k, v in results(architecture).items() if k.startswith("sd.")}
    if inference:
        prefix = f"{architecture}.sd_extra."
        tensors |= {k.removeprefix(prefix): v for k, v in sampling().items() if k.startswith(prefix)}
    return tensors


def model(architecture: str, inference: bool = False) -> RosettaForCausalLMAndImageGeneration:
    """The converted checkpoint."""
    overrides = OVERRIDES | ({"timestep_token_id": 265} if inference else {})
    config, tensors = convert_state_dict(checkpoint(architecture, inference), overrides)
    converted = RosettaForCausalLMAndImageGeneration(config)
    converted.load_state_dict(tensors)
    return converted.eval()


def packed_batch(architecture: str, name: str) -> dict:
    """The packed batch `name` ("mix" or "multi") as this project's model takes it."""
    given = {k.removeprefix(f"{name}.in."): v for k, v in results(architecture).items() if k.startswith(f"{name}.in.")}
    pixels = {k: v for k, v in results("rosetta").items() if k.startswith(f"{name}.in.pixel_values.")}
    images, drawn = len(pixels), len(given["t"])
    offsets, length = given["sample_offsets"], given["input_ids"].shape[1]
    positions = torch.arange(length)[None]
    sequence_ids = torch.bucketize(positions, offsets[1:-1], right=True)

    def tokens(key: str) -> torch.Tensor:
        return torch.cat([given[f"{key}.{i}"].flatten(1).T for i in range(drawn)])

    return {
        "input_ids": given["input_ids"],
        "token_type_ids": given["vit_mask"].long() + 2 * given["vae_mask"].long(),
        "sequence_ids": sequence_ids.masked_fill(positions >= offsets[-1], -1),
        "position_ids": given["position_ids"],
        # Theirs say what follows each token, the project's what stands there.
        "labels": torch.nn.functional.pad(given["labels"][:, :-1], (1, 0), value=-100),
        "pixel_values": torch.cat([pixels[f"{name}.in.pixel_values.{i}"] for i in range(images)]),
        "image_grid_thw": torch.stack([given[f"grid_thw.{i}"] for i in range(images)]),
        "noisy_latents": tokens("xt"),
        "latent_grid_hw": torch.tensor([given[f"x0.{i}"].shape[1:] for i in range(drawn)]),
        "timesteps": given["t"],
        "velocity_labels": tokens("velocity_target"),
    }


def velocity_tokens(architecture: str, name: str) -> torch.Tensor:
    """The velocities `(L, C)` that their model predicts for the batch `name`."""
    prefix = f"{name}.out.velocity."
    velocities = [v for k, v in sorted(results(architecture).items()) if k.startswith(prefix)]
    return torch.cat([velocity[0].flatten(1).T for velocity in velocities])
