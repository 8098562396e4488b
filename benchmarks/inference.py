"""
Time of inference as ratios within one run: decoding, the first token and loading (in a process of its own, with the
imports and the repository's code) beside transformers' `Qwen3MoeForCausalLM` of the same active size; a drawing step
over its bare products and over a step that computes its prompt anew; what an image of a batch costs over one alone.
Prints a table and writes it as JSON.

    python benchmarks/inference.py [--output FILE] [--repeats N]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from training_step import (  # noqa: E402
    ACTIVE_EXPERTS,
    EXPERT_WIDTH,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    SIZES,
    VISUAL_SIZES,
    VOCABULARY,
    WIDTH,
)
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402
from turns import ratio, seconds_in_turns, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402


PROMPT, ANSWER = 64, 32  # tokens
SIDE = 16  # tokens of an image to draw, each way: 256 pixels
DRAWN_PROMPT = 69  # tokens of a prompt to draw from, with its markup
VAE = 2


def active_shapes() -> list[tuple[int, int]]:
    """Of the matrices that a token passes through, but for the head."""
    query, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = [(WIDTH, query), (WIDTH, kv), (WIDTH, kv), (query, WIDTH)]
    layer += ACTIVE_EXPERTS * [(WIDTH, 2 * EXPERT_WIDTH), (EXPERT_WIDTH, WIDTH)]
    return LAYERS * layer


def drawing_products(rows: int) -> Callable[[], None]:
    """Of a step without the prompt's tokens: active matrices, attention to prompt and image, and convolutions."""
    tokens, keys, hidden = SIDE * SIDE, DRAWN_PROMPT + SIDE * SIDE, VISUAL_SIZES["latent_hidden_size"]
    operands = [(torch.randn(rows * tokens, i), torch.randn(o, i)) for i, o in active_shapes()]
    operands += [(torch.randn(rows, WIDTH), torch.randn(VOCABULARY, WIDTH))]
    queries, scores, values = (
        torch.randn(rows, HEADS, *shape) for shape in ((tokens, HEAD_DIM), (tokens, keys), (keys, HEAD_DIM))
    )
    channels = [(VISUAL_SIZES["latent_channels"], hidden), (hidden, WIDTH), (WIDTH, WIDTH)]  # in
    channels += [(WIDTH, hidden), (hidden, hidden), (hidden, VISUAL_SIZES["latent_channels"])]  # out
    images = [(torch.randn(rows, i, SIDE, SIDE), torch.randn(o, i, 3, 3)) for i, o in channels]

    def products():
        for given, weight in operands:
            given @ weight.T
        for _ in range(LAYERS):
            queries @ values.mT, scores @ values
        for image, weight in images:
            F.conv2d(image, weight, padding=1)

    return products


def drawing_steps(model, rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step with the prompt's keys and values, and one that computes them anew."""
    tokens = SIDE * SIDE
    ids = torch.randint(3, VOCABULARY, (rows, DRAWN_PROMPT + tokens))
    types = torch.zeros_like(ids)
    types[:, DRAWN_PROMPT:] = VAE
    drawing = {
        "noisy_latents": torch.randn(rows * tokens, VISUAL_SIZES["latent_channels"]),
        "latent_grid_hw": torch.tensor([[SIDE, SIDE]] * rows),
        "timesteps": torch.full((rows,), 0.5),
        "logits_to_keep": 1,
    }
    whole = {"input_ids": ids, "token_type_ids": types, **drawing}
    positions, _ = model.get_rope_index(ids, types, latent_grid_hw=drawing["latent_grid_hw"])
    with torch.no_grad():
        cache = model(ids[:, :DRAWN_PROMPT], use_cache=True, logits_to_keep=1).past_key_values
    new = {
        "input_ids": ids[:, DRAWN_PROMPT:],
        "token_type_ids": types[:, DRAWN_PROMPT:],
        "position_ids": positions[..., DRAWN_PROMPT:],
        "attention_mask": torch.ones_like(ids),
        "past_key_values": cache,
        **drawing,
    }

    @torch.no_grad()
    def cached():
        model(**new)
        cache.crop(-tokens)

    @torch.no_grad()
    def uncached():
        model(**whole, use_cache=False)

    return cached, uncached


def answer(model, new_tokens: int) -> Callable[[], None]:
    ids = torch.randint(3, VOCABULARY, (1, PROMPT))
    how = {"do_sample": False, "eos_token_id": VOCABULARY, "pad_token_id": 0}
    return lambda: model.generate(ids, **how, max_new_tokens=new_tokens, min_new_tokens=new_tokens)


def load_in_a_process(repository: Path, code: Path):
    """As a stranger does: with what there is of this project in the repository alone."""
    program = "import transformers as t; t.AutoModelForCausalLM.from_pretrained('.', trust_remote_code=True)"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "HF_MODULES_CACHE": str(code), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, cwd=repository, capture_output=True)


def functions(folder: Path) -> dict[str, Callable[[], object]]:
    rosetta_config = RosettaConfig(**SIZES, **VISUAL_SIZES, intermediate_size=EXPERT_WIDTH)
    rosetta = RosettaForCausalLMAndImageGeneration(rosetta_config).eval()
    qwen_config = Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=EXPERT_WIDTH,
        num_experts=12,
        num_experts_per_tok=ACTIVE_EXPERTS,
        norm_topk_prob=True,
    )
    qwen = Qwen3MoeForCausalLM(qwen_config).eval()
    timed = {}
    for name, model in (("Qwen3Moe", qwen), ("Rosetta", rosetta)):
        model.save_pretrained(folder / name)
        timed[f"{name}: first token"] = answer(model, 1)
        timed[f"{name}: answer"] = answer(model, ANSWER + 1)
        timed[f"{name}: loading"] = partial(load_in_a_process, folder / name, folder / "code")
    timed["drawing step: products"] = drawing_products(rows=2)
    cached, uncached = drawing_steps(rosetta, rows=2)
    timed |= {"drawing step: prompt cached": cached, "drawing step: prompt not cached": uncached}
    for images in (2, 4):
        timed[f"drawing step of {images} images"], _ = drawing_steps(rosetta, rows=2 * images)
    return timed


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    def decoding(name: str) -> list[float]:
        return [a - f for a, f in zip(seconds[f"{name}: answer"], seconds[f"{name}: first token"], strict=True)]

    step = seconds["drawing step: prompt cached"]
    rows = {
        "decoding over Qwen3Moe": ratio(decoding("Rosetta"), decoding("Qwen3Moe")),
        "first token over Qwen3Moe": ratio(seconds["Rosetta: first token"], seconds["Qwen3Moe: first token"]),
        "loading over Qwen3Moe": ratio(seconds["Rosetta: loading"], seconds["Qwen3Moe: loading"]),
        "drawing step over its products": ratio(step, seconds["drawing step: products"]),
        "drawing step, prompt cached over not": ratio(step, seconds["drawing step: prompt not cached"]),
    }
    for images in (2, 4):
        apart = [images * one for one in step]
        rows[f"drawing step of {images} images over {images} of one"] = ratio(
            seconds[f"drawing step of {images} images"], apart
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/inference.json"))
    parser.add_argument("--repeats", type=int, default=9, help="rounds; in each, everything is timed once")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_in_turns(functions(Path(folder)), arguments.repeats)
    rows = ratios(seconds)
    print(f"{'':45}{'median':>9}{'min':>9}{'max':>9}")
    for name, row in rows.items():
        print(f"{name:45}" + "".join(f"{figure:9.2f}" for figure in row.values()))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    settings = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    write(arguments.output, {"settings": settings, "ratios": rows, "seconds": medians})


if __name__ == "__main__":
    main()
