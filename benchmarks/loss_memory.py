"""
Memory and time of the text loss, forward and backward, at the released vocabulary of 157,420: ours, which never holds
all logits, beside PyTorch's cross-entropy of all of them. Each runs in a process of its own, whose peak memory, less
what it had before, is that of the loss. Prints both and writes them as JSON.

    python benchmarks/loss_memory.py [--output FILE]
"""

import argparse
import json
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from turns import write  # noqa: E402

from modeling_rosetta.losses_rosetta import cross_entropy_sum  # noqa: E402


VOCABULARY, WIDTH, TARGETS = 157_420, 256, 2048


def of_all_logits(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden_states[:, :-1], weight).float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


LOSSES = {"ours": cross_entropy_sum, "of all logits": of_all_logits}


def measure(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    hidden_states = torch.randn(1, TARGETS + 1, WIDTH, requires_grad=True)
    weight = (0.02 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
    labels = torch.randint(VOCABULARY, (1, TARGETS + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    loss = LOSSES[name](hidden_states, weight, labels)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"GB": (peak - before) * 1024 / 1e9, "seconds": seconds, "loss": loss.item() / TARGETS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/loss_memory.json"))
    arguments = parser.parse_args()
    result = {}
    for name in LOSSES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            result[name] = process.submit(measure, name).result()
    result["GB of all logits"] = TARGETS * VOCABULARY * 4 / 1e9
    result["GB of the weight's gradient"] = VOCABULARY * WIDTH * 4 / 1e9
    print(json.dumps(result, indent=2))
    write(arguments.output, result)


if __name__ == "__main__":
    main()
