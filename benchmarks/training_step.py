"""
Time of a training step (forward and backward) over the time of its bare matrix products: those of the active
parameters, and attention's with the keys that a token sees; and over the parameters' alone. The visual towers' are
left out of both.

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
THIRD = TOKENS // 3  # 511 = 7 * 73
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


def parameters_products(num_targets: int) -> Callable[[], None]:
    """Forward and both gradients of each active matrix with all tokens, of the head with those that have a target."""
    query, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = [(WIDTH, query), (WIDTH, kv), (WIDTH, kv), (query, WIDTH)]
    layer += ACTIVE_EXPERTS * [(WIDTH, 2 * EXPERT_WIDTH), (EXPERT_WIDTH, WIDTH)]
    shapes = [(TOKENS, i, o) for i, o in LAYERS * layer] + [(num_targets, WIDTH, VOCABULARY)]
    operands = [(torch.randn(t, i), torch.randn(o, i), torch.randn(t, o)) for t, i, o in shapes]

    def products():
        for tokens, weight, gradient in operands:
            tokens @ weight.T, gradient @ weight, gradient.T @ tokens

    return products


def attention_products(images: list[tuple[int, int]]) -> Callable[[], None]:
    """Forward and both gradients of scores and output, causal but for the `images` (start and end), by 64 queries at a
    time, the fastest of 64 to 1533."""
    operands = []
    for start in range(0, TOKENS, 64):
        stop = min(start + 64, TOKENS)
        keys = max([stop] + [end for begin, end in images if begin < stop and start < end])
        shapes = (stop - start, HEAD_DIM), (keys, HEAD_DIM), (stop - start, keys)
        operands.append([torch.randn(HEADS, *shape) for shape in shapes])

    def products():
        for _ in range(2 * LAYERS):  # scores and output are a product each, of the same three kinds
            for queries, keys, scores in operands:
                queries @ keys.mT, scores @ keys, scores.mT @ queries

    return products


def text_batch() -> dict:
    ids = torch.randint(3, VOCABULARY, (1, TOKENS))
    return {"input_ids": ids, "labels": ids}


def mixed_batch() -> dict:
    """A third of the tokens of each type: text, one image to understand, one to draw."""
    batch = text_batch()
    types = torch.arange(3).repeat_interleave(THIRD)[None]
    batch["token_type_ids"] = types
    batch["labels"] = batch["labels"].masked_fill(types > 0, -100)
    batch["pixel_values"] = torch.randn(4 * THIRD, 3 * 2 * 2 * 2)
    batch["image_grid_thw"] = torch.tensor([[1, 14, 146]])
    batch["noisy_latents"] = batch["velocity_labels"] = torch.randn(THIRD, 16)
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
        "products of parameters, text": parameters_products(TOKENS - 1),
        "products of parameters, mixed": parameters_products(THIRD - 1),
        "products of attention, text": attention_products(images=[]),
        "products of attention, mixed": attention_products(images=[(THIRD, 2 * THIRD), (2 * THIRD, TOKENS)]),
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
    rows = {}
    for name, times in seconds.items():
        batch = name.split(", ")[1]
        parameters, attention = (seconds[f"products of {part}, {batch}"] for part in ("parameters", "attention"))
        rows[name] = {
            "seconds": statistics.median(times),
            "over all": ratio(times, [sum(pair) for pair in zip(parameters, attention, strict=True)]),
            "over the parameters'": ratio(times, parameters),
        }
    print(f"{'':30}{'seconds':>8}{'over all: median, min, max':>32}{'over the parameters':>27}")
    for name, row in rows.items():
        ratios = [*row["over all"].values(), *row["over the parameters'"].values()]
        print(f"{name:30}{row['seconds']:8.3f}     " + "".join(f"{figure:9.2f}" for figure in ratios))
    settings = {"tokens": TOKENS, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write(arguments.output, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
