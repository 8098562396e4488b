"""
Says how much memory and time a recipe takes, on a computer that has neither the GPUs nor the data:

    python examples/estimate.py examples/recipes/4_t2i.yaml --gpus 8 --memory 80 [--gpu H100] [--key value ...]

Memory is that of a step as `examples/pretrain.py` makes it, on one GPU or sharded over several (FSDP2), found by
going through it with tensors that have shapes and no values; for each task of a row that is full of it, since any row
may be. Time is that of the floating-point operations at a share of the GPUs' peak, which is assumed. The keys of a
recipe can be changed as for `examples/pretrain.py`: `--recompute false`, `--ema_decay 0.999`.
"""

import argparse
import sys
import warnings
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer.figures.flops import PEAK_TFLOPS  # noqa: E402
from trainer.stages.estimate import SHARE_OF_MEMORY, RecipeEstimate, estimate_recipe  # noqa: E402
from trainer.stages.recipe import read_recipe  # noqa: E402
from trainer.stages.step_memory import StepMemory  # noqa: E402


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe")
    parser.add_argument("--gpus", type=int, default=1, help="over which all is sharded; default 1")
    parser.add_argument("--memory", type=float, default=80, help="GB of each; default 80")
    parser.add_argument("--gpu", choices=list(PEAK_TFLOPS), default="H100", help="for the time; default H100")
    parser.add_argument("--share_of_peak", type=float, default=0.4, help="of a GPU that is used; default 0.4")
    options, overrides = parser.parse_known_args(arguments)
    for name in ("gpus", "memory", "share_of_peak"):
        if not getattr(options, name) > 0:
            raise SystemExit(f"`{name}` must be above 0, got {getattr(options, name)}.")
    warnings.filterwarnings("ignore", module="torch")  # of what a GPU would not do
    try:
        stage, sources, training = read_recipe([options.recipe, "--use_cpu=true", *overrides])
        estimate = estimate_recipe(stage, sources, training, options.gpus)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    weights: dict[str, float] = {}
    for source in sources:
        weights[source.task] = weights.get(source.task, 0) + source.weight
    speed = 1e12 * PEAK_TFLOPS[options.gpu] * options.gpus * options.share_of_peak
    seconds = estimate.seconds_a_step(weights, stage.global_batch_size, speed, stage.recompute)
    print("\n".join(memory_lines(estimate, options.gpus, options.memory)))
    tokens = stage.global_batch_size * stage.max_length
    print(
        f"Time: {seconds:,.1f} s a step of {tokens:,} tokens, {tokens / seconds:,.0f} tokens a second, "
        f"{seconds * training.max_steps / 86_400:,.1f} days for {training.max_steps:,} steps, on {options.gpus} "
        f"{options.gpu} at {options.share_of_peak:.0%} of their peak."
    )


def memory_lines(estimate: RecipeEstimate, num_gpus: int, gigabytes: float) -> list[str]:
    lines = [*estimate.assumed]
    lines.append(f"{estimate.num_parameters:,} parameters, {estimate.num_trained:,} trained")
    lines.append(f"GB on {'the GPU' if num_gpus == 1 else f'each of {num_gpus} GPUs'}, rows full of one task:")
    parts = ("weights", "moments", "average", "gradients", "rest", "peak")
    lines.append(" " * 6 + "".join(f"{name:>11}" for name in parts))
    for task, found in estimate.tasks.items():
        lines.append(f"{task:6}" + "".join(f"{_gb(found.memory, part):11.1f}" for part in parts))
    room = SHARE_OF_MEMORY * gigabytes
    verdict = "It fits" if estimate.peak / 1e9 <= room else "It does not fit"
    lines.append(f"{verdict} in {gigabytes:g} GB, of which {room:g} are counted on for tensors.")
    return lines


def _gb(memory: StepMemory, part: str) -> float:
    return getattr(memory, part) / 1e9


if __name__ == "__main__":
    main(sys.argv[1:])
