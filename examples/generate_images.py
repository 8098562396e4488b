"""
Draws the prompts of a file into a folder of images with a manifest of their seeds. Killed, it goes on where it was, to
the same images; several processes share the work, to the same images.

    python examples/generate_images.py MODEL prompts.txt drawings --num_images_per_prompt 4
    accelerate launch --num_processes 8 examples/generate_images.py MODEL prompts.txt drawings --batch_size 32

MODEL is a folder or a Hub id. The file is a .txt with a prompt a line, or a .jsonl, .json or .csv whose records have a
`prompt` (or `caption`) and may have a `seed`.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.stoppable import stoppable  # noqa: E402
from trainer.evaluation.drawing import draw_prompts, read_prompts  # noqa: E402
from trainer.evaluation.loading import load_pipeline  # noqa: E402


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--revision")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num_images_per_prompt", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first image, unless the file has seeds")
    parser.add_argument("--batch_size", type=int, default=8, help="images at a time, of each process")
    parser.add_argument("--height", type=int, help="in pixels")
    parser.add_argument("--width", type=int, help="in pixels")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--negative_prompt")
    parser.add_argument(
        "--noise_device", default="cpu", choices=["cpu", "cuda"], help="seeds give other noise on each"
    )
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    state = PartialState()
    settings = ("height", "width", "num_inference_steps", "guidance_scale", "negative_prompt")
    try:
        prompts = read_prompts(options.prompts)
        drawings = draw_prompts(
            load_pipeline(options.model, state.device, options.dtype, options.revision),
            prompts,
            options.output_dir,
            model=options.model if options.revision is None else f"{options.model}@{options.revision}",
            num_images_per_prompt=options.num_images_per_prompt,
            seed=options.seed,
            batch_size=options.batch_size,
            noise_device=options.noise_device,
            settings={name: getattr(options, name) for name in settings},
            say=print,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    state.print(f"{len(drawings.files)} images of {len(prompts)} prompts are in {options.output_dir}.")


if __name__ == "__main__":
    with stoppable("The same command draws what is missing."):
        main()
