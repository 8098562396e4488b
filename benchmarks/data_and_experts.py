"""
What the data and the experts do to training: real tokens a second of packed rows over padded ones, and of a pool of 2,
4, 6, 8 or 10 experts for drawing over that of 2 (a token is routed to 2 in any). In turns within one run, on a model
that is small enough for a CPU. Prints the ratios and writes them as JSON.

    python benchmarks/data_and_experts.py [--output FILE] [--repeats N]
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from training_step import SIZES, VISUAL_SIZES, training_step  # noqa: E402
from turns import ratio, seconds_in_turns, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from trainer import RosettaDataCollator, flow_matching_targets  # noqa: E402


LENGTH, GRID = 512, (8, 8)  # of a row, and of an image to draw
TEXTS, DRAWINGS = 18, 6


def model(experts_for_drawing: int = 6) -> RosettaForCausalLMAndImageGeneration:
    sizes = {**SIZES, "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 2048}
    vision = {**VISUAL_SIZES, "vision_config": {**VISUAL_SIZES["vision_config"], "out_hidden_size": 256}}
    pools = {"text": 3, "vit": 3, "vae": experts_for_drawing}
    config = RosettaConfig(**sizes, **vision, intermediate_size=512, expert_pools=pools)
    return RosettaForCausalLMAndImageGeneration(config).train()


def samples() -> list[dict]:
    """Texts, lengths with a long tail up to a whole row, and images to draw behind a prompt of 32 tokens."""
    lengths = torch.empty(TEXTS).log_normal_(4.6, 0.8).long().clamp(16, LENGTH).tolist()
    lengths[0] = LENGTH
    texts = [torch.randint(3, 2048, (length,)) for length in lengths]
    made = [{"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "labels": ids} for ids in texts]
    tokens = GRID[0] * GRID[1]
    for _ in range(DRAWINGS):
        types = torch.tensor([0] * 32 + [2] * tokens)
        ids = torch.randint(3, 2048, types.shape)
        drawing = {"latents": torch.randn(tokens, 16), "latent_grid_hw": torch.tensor([GRID])}
        made.append({"input_ids": ids, "token_type_ids": types, "labels": ids.masked_fill(types > 0, -100), **drawing})
    return [made[i] for i in torch.randperm(len(made))]


def batch(packed: bool, of: list[dict]) -> dict[str, torch.Tensor]:
    made = RosettaDataCollator(0, LENGTH, packed=packed)(of)
    noisy, timesteps, velocity = flow_matching_targets(made.pop("latents"), made["latent_grid_hw"])
    return {**made, "noisy_latents": noisy, "timesteps": timesteps, "velocity_labels": velocity}


def drawings() -> dict[str, torch.Tensor]:
    """As many tokens to draw as a row has, and no text."""
    images = LENGTH // (GRID[0] * GRID[1])
    return {
        "input_ids": torch.full((1, LENGTH), 2),
        "token_type_ids": torch.full((1, LENGTH), 2),
        "noisy_latents": torch.randn(LENGTH, 16),
        "velocity_labels": torch.randn(LENGTH, 16),
        "latent_grid_hw": torch.tensor([GRID] * images),
        "timesteps": torch.rand(images),
    }


def steps_by_experts() -> dict[str, Callable[[], None]]:
    same = drawings()
    return {str(experts): training_step(model(experts), same) for experts in (2, 4, 6, 8, 10)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/data_and_experts.json"))
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    same = samples()
    batches = {"padded": batch(False, same), "packed": batch(True, same)}
    one = model()
    seconds = seconds_in_turns({name: training_step(one, made) for name, made in batches.items()}, arguments.repeats)
    by_experts = seconds_in_turns(steps_by_experts(), arguments.repeats)
    real = sum(len(sample["input_ids"]) for sample in same)
    result = {
        "tokens/s, packed over padded": ratio(seconds["padded"], seconds["packed"]),
        "share of real tokens": {name: real / made["input_ids"].numel() for name, made in batches.items()},
        "tokens/s, experts for drawing over 2": {
            experts: ratio(by_experts["2"], times) for experts, times in by_experts.items()
        },
    }
    print(json.dumps(result, indent=2))
    write(arguments.output, result)


if __name__ == "__main__":
    main()
