"""The miniature's stages under FSDP2 as `fsdp2.yaml` has it, on two processes of a CPU; else as `run_stages.py`."""

import os
import sys
from pathlib import Path

import yaml


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "trainer")]

from ranks import forget_accelerator, run_on_ranks  # noqa: E402
from run_stages import STAGES  # noqa: E402


def main(arguments: list[str]):
    config = yaml.safe_load((ROOT / "examples" / "accelerate_configs" / "fsdp2.yaml").read_text())
    # What `accelerate launch` hands on to its processes.
    os.environ.update({name.upper(): str(value) for name, value in config["fsdp_config"].items()})
    os.environ.update(ACCELERATE_USE_FSDP="true", ACCELERATE_MIXED_PRECISION=config["mixed_precision"])
    from examples.pretrain import main as pretrain

    for stage in STAGES:
        forget_accelerator()
        pretrain([str(ROOT / "examples" / "recipes" / "miniature" / f"{stage}.yaml"), *arguments])


if __name__ == "__main__":
    run_on_ranks(main, 2, sys.argv[1:])
