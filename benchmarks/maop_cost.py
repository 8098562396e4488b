"""
What MAOP costs: time of whole training steps (forward, backward, clipping, update) with it over without it, each pair
of updates after the same backward pass, and the bytes that its operations allocate. Beside it PCGrad, by torchjd, on
the gradients that each of three tasks has of the shared expert: three backward passes in place of one. torchjd is
in the extra `benchmarks`.

    python benchmarks/maop_cost.py [--output FILE] [--repeats N]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from allocated_bytes import AllocatedBytes  # noqa: E402
from torchjd.aggregation import PCGrad  # noqa: E402
from training_step import EXPERT_WIDTH, SIZES, VISUAL_SIZES, mixed_batch, text_batch  # noqa: E402
from turns import ratio, seconds_in_turns, timed, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from trainer import MAOPAdamW, diff_lr_groups  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/maop_cost.json"))
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = RosettaConfig(**SIZES, **VISUAL_SIZES, intermediate_size=EXPERT_WIDTH)
    model = RosettaForCausalLMAndImageGeneration(config).train()
    optimizer = MAOPAdamW(diff_lr_groups(model, config, learning_rate=1e-5), lr=1e-5)
    batch = mixed_batch()

    def gradients():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def update(maop: bool):
        for group in optimizer.param_groups:
            group["maop_enabled"] = maop
        optimizer.step()

    gradients()
    update(True)
    seconds = {True: [], False: []}
    for repeat in range(arguments.repeats):
        before = timed(gradients)  # the same for both, or its noise would hide what is sought
        for maop in (True, False) if repeat % 2 else (False, True):
            seconds[maop].append(before + timed(lambda maop=maop: update(maop)))

    gradients()
    for group in optimizer.param_groups:
        group["maop_enabled"] = True
    projection = statistics.median(timed(optimizer._project) for _ in range(arguments.repeats))
    with AllocatedBytes() as own:
        optimizer._project()
    for group in optimizer.param_groups:
        group["maop_enabled"] = False
    with AllocatedBytes() as adamw:
        optimizer.step()
    optimizer.zero_grad()

    shared = [p for group in optimizer.param_groups if group["maop"] for p in group["params"]]
    result = {
        "step with MAOP over without": ratio(seconds[True], seconds[False]),
        "MAOP itself over the step": projection / statistics.median(seconds[False]),
        "bytes allocated by MAOP, all together": own.total,
        "largest allocation by MAOP": own.largest,
        "largest allocation by AdamW": adamw.largest,
        "bytes of the shared expert": sum(p.numel() * p.element_size() for p in shared),
        **pcgrad(model, optimizer, shared, max(3, arguments.repeats // 4)),
    }
    write(arguments.output, result)
    print(json.dumps(result, indent=2))


def pcgrad(model, optimizer, shared: list[torch.nn.Parameter], repeats: int) -> dict:
    """Steps on three batches, one a task, with MAOP on the sum of their losses, and with PCGrad: on the shared expert,
    the other gradients being added up, and on all parameters."""
    batches = [text_batch(), mixed_batch(), mixed_batch()]
    trained = [p for p in model.parameters() if p.requires_grad]
    aggregate = PCGrad()

    def maop_step():
        for batch in batches:
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def pcgrad_step(conflicting: list[torch.nn.Parameter]):
        rows = []
        for batch in batches:
            for p in conflicting:
                p.grad = None
            model(**batch).loss.backward()
            rows.append(torch.cat([p.grad.flatten() for p in conflicting]))
        parts = aggregate(torch.stack(rows)).split([p.numel() for p in conflicting])
        for p, part in zip(conflicting, parts, strict=True):
            p.grad = part.view_as(p)
        optimizer.step()
        optimizer.zero_grad()

    def switched(maop: bool, step: Callable[[], None]) -> Callable[[], None]:
        def run():
            for group in optimizer.param_groups:
                group["maop_enabled"] = maop
            step()

        return run

    ways = {
        "MAOP": switched(True, maop_step),
        "shared": switched(False, lambda: pcgrad_step(shared)),
        "all": switched(False, lambda: pcgrad_step(trained)),
    }
    times = seconds_in_turns(ways, repeats)
    size = sum(p.numel() * p.element_size() for p in trained)
    own_size = sum(p.numel() * p.element_size() for p in shared)
    return {
        "step with PCGrad on the shared expert over MAOP": ratio(times["shared"], times["MAOP"]),
        "step with PCGrad on all parameters over MAOP": ratio(times["all"], times["MAOP"]),
        "bytes of PCGrad's gradients, shared expert": len(batches) * own_size,
        "bytes of PCGrad's gradients, all parameters": len(batches) * size,
    }


if __name__ == "__main__":
    main()
