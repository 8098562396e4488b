"""
Does a model forget what it could when it learns to draw? Trains the arms of `arms.yaml` from the same starts, asks
each what it could before and can after, and writes the results, a JSON file a run. What is there is not trained again.

    python examples/forgetting_study/study.py [--arms TEXT ...] [--seeds 0 1 2] [--miniature emoji]
        [--output_dir outputs/forgetting_study]

`--arms` takes those of such a name as `--list` prints, and, for a text that is no whole name, those whose name holds
it. Several processes can share an output folder: each takes runs that no other has begun. `--miniature emoji` has
coloured pictures of 333 things for digits, and writes to outputs/emoji_study.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers.utils import logging  # noqa: E402

from examples.forgetting_study.arms import Arm, read_arms  # noqa: E402
from examples.forgetting_study.miniatures import MINIATURES  # noqa: E402
from examples.forgetting_study.run import run_arm  # noqa: E402
from examples.forgetting_study.starts import Starts  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402


ARMS = Path(__file__).parent / "arms.yaml"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--miniature", choices=list(MINIATURES), default="digits")
    parser.add_argument("--output_dir", type=Path, help="for one miniature; by default its own")
    parser.add_argument("--list", action="store_true", help="print the arms, and train nothing")
    parser.add_argument("--save_models", action="store_true", help="as pipelines, in models/ of the output folder")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps; 1 but for a trial")
    options = parser.parse_args(arguments)
    arms = chosen(read_arms(ARMS), options.arms)
    if not arms:
        parser.error(f"--arms: no arm has one of {options.arms} in its name; --list prints them")
    if options.list:
        print("\n".join(arm.id for arm in arms))
        return
    use_one_thread()
    logging.disable_progress_bar()
    miniature = MINIATURES[options.miniature]
    output_dir = options.output_dir or miniature.output_dir
    starts = Starts(output_dir / "starts", miniature, options.scale)
    for seed in options.seeds:
        for arm in arms:
            run_once(arm, seed, starts, output_dir, options.save_models)


def chosen(arms: list[Arm], texts: list[str]) -> list[Arm]:
    """Those named by one of the texts: by all of their name, or, where a text is no arm's whole name, by a part."""
    names = {arm.id for arm in arms}
    return [arm for arm in arms if any(arm.id == text if text in names else text in arm.id for text in texts)]


def run_once(arm: Arm, seed: int, starts: Starts, output_dir: Path, save_model: bool):
    """Runs an arm unless it was run, or is being run by a process that lives, and writes its result whole."""
    folder, name = output_dir / "runs", f"{arm.id}, seed {seed}"
    model_dir = output_dir / "models" / name if save_model else None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    claim = file.with_suffix(".claim")
    if file.is_file() or not _claim(claim):
        return
    try:
        result = {"arm": dataclasses.asdict(arm), "seed": seed, **run_arm(arm, seed, starts, model_dir)}
        file.with_suffix(".new").write_text(json.dumps(result))
        file.with_suffix(".new").replace(file)
        after = {name: round(value, 4) for name, value in result["after"].items() if isinstance(value, float)}
        print(f"{name}: {after}", flush=True)
    finally:
        claim.unlink(missing_ok=True)


def _claim(file: Path) -> bool:
    try:
        with open(file, "x") as claim:
            claim.write(str(os.getpid()))
        return True
    except FileExistsError:
        pass
    holder = file.read_text()
    if holder and not Path(f"/proc/{holder}").exists():
        file.unlink(missing_ok=True)  # of a process that was killed
        return _claim(file)
    return False


if __name__ == "__main__":
    with stoppable("The same command makes the runs that are missing."):
        main()
