"""
What the anchor costs: time of whole training steps (forward, backward, clipping, update) with it over without it, each
pair of updates after the same backward passes, for each way of keeping it, and the bytes that it keeps and allocates.
The anchor takes its time once an update, however many tokens this is of: 1,533 in each of `--micro_batches`.

    python benchmarks/anchor_cost.py [--output FILE] [--repeats N] [--micro_batches N]
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from allocated_bytes import AllocatedBytes  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from training_step import EXPERT_WIDTH, SIZES, VISUAL_SIZES, mixed_batch  # noqa: E402
from turns import ratio, timed, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from trainer import Anchor, MAOPAdamW, diff_lr_groups  # noqa: E402
from trainer.optimizer.anchor import STORAGES  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/anchor_cost.json"))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--micro_batches", type=int, default=1, help="accumulated in a step")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = RosettaConfig(**SIZES, **VISUAL_SIZES, intermediate_size=EXPERT_WIDTH)
    model = RosettaForCausalLMAndImageGeneration(config).train()
    groups = diff_lr_groups(model, config, learning_rate=1e-5)
    optimizer = MAOPAdamW(groups, lr=1e-5, fused=True)  # as the Trainer does
    batch = mixed_batch()

    def gradients():
        optimizer.zero_grad()
        for _ in range(arguments.micro_batches):
            model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    gradients()
    optimizer.step()
    trained = [param for group in optimizer.param_groups for param in group["params"]]
    result = {"micro batches": arguments.micro_batches, "bytes of the trained weights": _bytes(trained)}
    with tempfile.TemporaryDirectory() as folder:
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        importances = {name: torch.rand_like(param) for name, param in zip(names, trained, strict=True)}
        save_file(importances, Path(folder, "importances.safetensors"))
        for storage in STORAGES:
            anchor = Anchor(1.0, Path(folder, "importances.safetensors"), storage=storage)
            anchor.start(optimizer)
            result[storage] = cost(anchor, optimizer, gradients, arguments.repeats)
            anchor.stop()
    write(arguments.output, result)
    print(json.dumps(result, indent=2))


def cost(anchor: Anchor, optimizer: MAOPAdamW, gradients, repeats: int) -> dict:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats):
        before = timed(gradients)  # the same for both, or its noise would hide what is sought
        for anchored in (True, False) if repeat % 2 else (False, True):
            anchor.strength = 1.0 if anchored else 0.0
            seconds[anchored].append(before + timed(optimizer.step))
    anchor.strength = 1.0
    alone = statistics.median(timed(lambda: anchor._pull(optimizer, (), {})) for _ in range(repeats))
    with AllocatedBytes() as own:
        anchor._pull(optimizer, (), {})
    return {
        "step with the anchor over without": ratio(seconds[True], seconds[False]),
        "the anchor itself over the step": alone / statistics.median(seconds[False]),
        "bytes kept": _bytes([*anchor._starts.values(), *anchor._importances_of.values()]),
        "largest allocation": own.largest,
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main()
