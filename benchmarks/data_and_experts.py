"""
Ratios within one run: real tokens a second of packed rows over padded ones, of Rosettas with 4 to 10 experts for
drawing over one with 2, and peak memory of the text loss at a vocabulary of 157,420 over that of all logits at once.

    python benchmarks/data_and_experts.py [--output FILE] [--repeats N]
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from training_step import EXPERT_WIDTH, SIZES, VISUAL_SIZES, mixed_batch, training_step  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from modeling_rosetta.losses_rosetta import cross_entropy_sum  # noqa: E402
from trainer import RosettaDataCollator  # noqa: E402


LENGTHS = (512, 30, 205, 45, 350, 60, 150, 80)  # as mixed as stages' data
VOCABULARY, LOSS_TOKENS, LOSS_WIDTH = 157_420, 4096, 64


def _model(**changes) -> RosettaForCausalLMAndImageGeneration:
    config = RosettaConfig(**{**SIZES, **VISUAL_SIZES, "intermediate_size": EXPERT_WIDTH, **changes})
    return RosettaForCausalLMAndImageGeneration(config)


def _medians(functions: dict, repeats: int) -> dict[str, float]:
    seconds = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def packed_over_padded(repeats: int) -> float:
    model = _model()
    samples = []
    for length in LENGTHS:
        ids = torch.randint(3, SIZES["vocab_size"], (length,))
        samples.append({"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "labels": ids})
    steps = {
        "packed": training_step(model, RosettaDataCollator(0, max_length=512, packed=True)(samples)),
        "padded": training_step(model, RosettaDataCollator(0, max_length=512)(samples)),
    }
    seconds = _medians(steps, max(2, repeats // 2))
    return seconds["padded"] / seconds["packed"]


def speed_by_vae_experts(repeats: int) -> dict[int, float]:
    batch = mixed_batch()
    steps = {n: training_step(_model(expert_pools={"text": 3, "vit": 3, "vae": n}), batch) for n in (2, 4, 6, 8, 10)}
    seconds = _medians(steps, repeats)
    return {n: seconds[2] / seconds[n] for n in steps}


def _loss_peak(whole: bool, peak):
    torch.manual_seed(0)
    hidden = torch.randn(1, LOSS_TOKENS, LOSS_WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, LOSS_WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (1, LOSS_TOKENS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if whole:
        logits = torch.nn.functional.linear(hidden[0, :-1], weight).float()
        torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").backward()
    else:
        cross_entropy_sum(hidden, weight, labels).backward()
    peak.value = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def loss_memory() -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name, whole in (("ours", False), ("all logits at once", True)):
        peak = context.Value("d")
        process = context.Process(target=_loss_peak, args=(whole, peak))
        process.start()
        process.join()
        peaks[name] = peak.value
    return {**peaks, "ratio": peaks["ours"] / peaks["all logits at once"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/data_and_experts.json"))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result = {
        "real tokens a second, packed over padded": packed_over_padded(arguments.repeats),
        "tokens a second over that with 2 experts for drawing": speed_by_vae_experts(arguments.repeats),
        f"bytes of the loss, {LOSS_TOKENS} tokens": loss_memory(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
