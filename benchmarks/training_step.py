"""
Time of a training step (forward and backward) over the time of the bare matrix products of its active parameters.

Rosetta, MoE and MoT are measured beside transformers' `Qwen3MoeForCausalLM` of the same active size, in turns within
one run, so that only ratios matter. Prints a table and writes it as JSON.

    python benchmarks/training_step.py [--output FILE] [--repeats N]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402
from turns import ratio, seconds_in_turns, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402


TOKENS, WIDTH, EXPERT_WIDTH, LAYERS, VOCABULARY = 1533, 512, 1536, 4, 8192
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
ACTIVE_EXPERTS = 3  # two routed and one shared; three routed in Qwen3Moe
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "tie_word_embeddings": True,
}
VISUAL_SIZES = {  # as small as they go: the towers are not what is measured
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 1024,
        "deepstack_visual_indexes": [],
    },
    "latent_channels": 16,
    "latent_hidden_size": 32,
    "image_token_id": 2,
    "vision_start_token_id": 0,
    "vision_end_token_id": 1,
}


def bare_matrix_products() -> Callable[[], None]:
    """The products of the active parameters' matrices with the tokens: forward, and both gradients."""
    query, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = [(WIDTH, query), (WIDTH, kv), (WIDTH, kv), (query, WIDTH)]
    layer += ACTIVE_EXPERTS * [(WIDTH, 2 * EXPERT_WIDTH), (EXPERT_WIDTH, WIDTH)]
    shapes = LAYERS * layer + [(WIDTH, VOCABULARY)]
    operands = [(torch.randn(TOKENS, i), torch.randn(o, i), torch.randn(TOKENS, o)) for i, o in shapes]

    def products():
        for tokens, weight, gradient in operands:
            tokens @ weight.T, gradient @ weight, gradient.T @ tokens

    return products


def text_batch() -> dict:
    ids = torch.randint(3, VOCABULARY, (1, TOKENS))
    return {"input_ids": ids, "labels": ids}


def mixed_batch() -> dict:
    """A third of the tokens of each type: text, one image to understand, one to draw."""
    batch = text_batch()
    third = TOKENS // 3  # 511 = 7 * 73
    types = torch.tensor([0] * (TOKENS - 2 * third) + [1] * third + [2] * third)[None]
    batch["token_type_ids"] = types
    batch["labels"] = batch["labels"].masked_fill(types > 0, -100)
    batch["pixel_values"] = torch.randn(4 * third, 3 * 2 * 2 * 2)
    batch["image_grid_thw"] = torch.tensor([[1, 14, 146]])
    batch["noisy_latents"] = batch["velocity_labels"] = torch.randn(third, 16)
    batch["latent_grid_hw"] = torch.tensor([[7, 73]])
    batch["timesteps"] = torch.rand(1)
    return batch


def training_step(model: torch.nn.Module, batch: dict) -> Callable[[], None]:
    model.train()

    def step():
        model.zero_grad()
        model(**batch).loss.backward()

    return step


def steps() -> dict[str, Callable[[], None]]:
    def rosetta(config_of: Callable, batch: dict) -> Callable[[], None]:
        config = config_of(**SIZES, **VISUAL_SIZES, intermediate_size=EXPERT_WIDTH)
        return training_step(RosettaForCausalLMAndImageGeneration(config), batch)

    qwen = Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=EXPERT_WIDTH,
        num_experts=12,
        num_experts_per_tok=ACTIVE_EXPERTS,
        norm_topk_prob=True,
        output_router_logits=True,
    )
    return {
        "bare matrix products": bare_matrix_products(),
        "Qwen3Moe, text": training_step(Qwen3MoeForCausalLM(qwen), text_batch()),
        "Rosetta, text": rosetta(RosettaConfig, text_batch()),
        "Rosetta, mixed": rosetta(RosettaConfig, mixed_batch()),
        "MoE, mixed": rosetta(RosettaConfig.moe, mixed_batch()),
        "MoT, mixed": rosetta(RosettaConfig.mot, mixed_batch()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/training_step.json"))
    parser.add_argument("--repeats", type=int, default=9, help="rounds; in each, everything is timed once")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    seconds = seconds_in_turns(steps(), arguments.repeats)
    floor = seconds["bare matrix products"]
    rows = {
        name: {"seconds": statistics.median(times), "ratio": ratio(times, floor)} for name, times in seconds.items()
    }
    print(f"{'':24}{'seconds':>10}{'ratio':>8}{'min':>8}{'max':>8}")
    for name, row in rows.items():
        print(f"{name:24}{row['seconds']:10.3f}" + "".join(f"{figure:8.2f}" for figure in row["ratio"].values()))
    settings = {"tokens": TOKENS, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write(arguments.output, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
