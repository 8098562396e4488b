"""
Writes what the recipes of the second miniature, examples/recipes/emoji, start from: as examples/make_miniature_data.py
does for the digits, with coloured pictures of 333 emoji, larger models, and combinations that are held out.

    python examples/make_emoji_data.py [--output_dir outputs/emoji/inputs] [--packages outputs/emoji]

The pictures are Twemoji, CC BY 4.0; NOTICE.txt, which is written beside them, says so and has to stay with them.
`--packages` is where the two npm packages they come in are, or are fetched to with `npm`.
"""

import argparse
import random
import sys
from pathlib import Path

from transformers import set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.emoji.conversations import KIND, PRESENT, WHAT, caption, question_and_answer  # noqa: E402
from examples.emoji.package import LICENSE  # noqa: E402
from examples.emoji.parts import make_parts  # noqa: E402
from examples.emoji.pictures import PACKAGES, Pictures  # noqa: E402
from examples.make_miniature_data import write_records  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=PACKAGES / "inputs")
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = options.output_dir
    use_one_thread()
    set_seed(options.seed)
    parts = make_parts(options.seed, options.packages)
    parts.dense.save_pretrained(folder / "dense")
    parts.processor.tokenizer.save_pretrained(folder / "dense")
    parts.vision_tower.save_pretrained(folder / "vision_tower")
    parts.processor.image_processor.save_pretrained(folder / "vision_tower")
    parts.vae.save_pretrained(folder / "vae")
    write_pictures(folder, parts.english.train, parts.train)
    write_pictures(folder / "held_out", parts.english.held_out, parts.probes)
    (folder / "NOTICE.txt").write_text(LICENSE)
    print(f"The inputs of the recipes of emoji are in {folder}.")


def write_pictures(folder: Path, paragraphs: list[str], pictures: Pictures):
    choose, emoji = random.Random(0), pictures.emoji
    questions = [
        question_and_answer(emoji, picture, choose.choice((WHAT, KIND, PRESENT)), choose)
        for picture in pictures.pictures
    ]
    captions = [caption(emoji[picture.emoji], picture, choose) for picture in pictures.pictures]
    write_records(folder, paragraphs, pictures.images, questions, captions)


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
