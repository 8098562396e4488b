"""All stages of the miniature recipes in one process, in few steps: arguments as for examples/pretrain.py."""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
STAGES = ("1_lm", "2_projectors", "3_mmu", "4_t2i")

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from accelerate import PartialState

    from examples.pretrain import main

    for stage in STAGES:
        main([str(ROOT / "examples" / "recipes" / "miniature" / f"{stage}.yaml"), *sys.argv[1:]])
    PartialState().destroy_process_group()
