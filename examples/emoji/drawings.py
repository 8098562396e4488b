"""
A picture of what a model of emoji draws, beside what it should look like. None of the combinations was trained on.

    python examples/emoji/drawings.py MODEL [--packages outputs/emoji] [--output drawings.png]

`MODEL` is a folder that examples/forgetting_study/study.py --miniature emoji --save_models or a recipe has left.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline


sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.emoji.conversations import drawing_prompts  # noqa: E402
from examples.emoji.pictures import PACKAGES, Pictures, load_pictures  # noqa: E402
from examples.miniature.evaluation import draw  # noqa: E402
from examples.miniature.report import save_drawn_digits  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402


NUM_SHOWN, DRAWINGS_EACH = 20, 7


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--output", type=Path, default=Path("drawings.png"))
    options = parser.parse_args()
    use_one_thread()
    save_drawings(options.model, load_pictures(options.packages)[1], options.output)


def save_drawings(model: Path, held_out: Pictures, path: Path):
    """Of emoji evenly over all of `held_out`, a row each: the prompt, the real picture and the drawings."""
    pictures = list({picture.emoji: picture for picture in held_out.pictures if picture.tone is None}.values())
    chosen = np.linspace(0, len(pictures) - 1, min(NUM_SHOWN, len(pictures))).round().astype(int)
    pipeline = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    rows = {}
    for picture in (pictures[i] for i in chosen):
        prompt = drawing_prompts(held_out.emoji[picture.emoji], picture)[0]
        rows[prompt] = [picture.image, *draw(pipeline, [prompt] * DRAWINGS_EACH, seed=0)]
    save_drawn_digits(rows, path)


if __name__ == "__main__":
    main()
