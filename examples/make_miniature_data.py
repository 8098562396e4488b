"""
Writes what the miniature recipes start from: the data and the models that a real run takes from elsewhere.

    python examples/make_miniature_data.py [--output_dir outputs/miniature/inputs] [--training_steps N]

    dense/             a tiny dense Qwen3 with its tokenizer
    vision_tower/      a tiny Qwen3-VL vision tower with its image processor
    vae/               a tiny FLUX.2 VAE
    english.jsonl      paragraphs, as {"text": ...}
    questions.jsonl    questions about images/, as LLaVA has them
    drawings.parquet   images with captions
    held_out/          the same of paragraphs and digits that are not trained on
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.miniature.conversations import all_phrases, drawing_prompts, questions_and_answers, sums  # noqa: E402
from examples.miniature.digits import load_digits  # noqa: E402
from examples.miniature.english import load_english  # noqa: E402
from examples.miniature.language_model import pack_text, train_language_model  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.miniature.tokenizer import train_tokenizer  # noqa: E402
from examples.miniature.vae import train_vae  # noqa: E402
from examples.miniature.vision import image_processor, train_vision_tower  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/miniature/inputs"))
    parser.add_argument("--training_steps", type=int, help="of each model; by default each has as many as it needs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.output_dir
    use_one_thread()
    set_seed(options.seed)
    steps = {} if options.training_steps is None else {"num_steps": options.training_steps}

    english, (digits, held_out_digits) = load_english(), load_digits()
    tokenizer = train_tokenizer([*english.train, *all_phrases()])
    dense = train_language_model(tokenizer, pack_text(tokenizer, [*english.train, *sums()]), options.seed, **steps)
    dense.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    labels = torch.from_numpy(digits.labels)
    tower = train_vision_tower(digits.images, labels, dense.config.hidden_size, options.seed, **steps)
    tower.save_pretrained(folder / "vision_tower")
    image_processor().save_pretrained(folder / "vision_tower")
    train_vae(digits.pixels(), options.seed, **steps).save_pretrained(folder / "vae")

    for paragraphs, part, where in (
        (english.train, digits, folder),
        (english.held_out, held_out_digits, folder / "held_out"),
    ):
        choose = random.Random(0)
        questions = [choose.choice(questions_and_answers(label)) for label in part.labels]
        choose = random.Random(1)
        captions = [choose.choice(drawing_prompts(label)) for label in part.labels]
        write_records(where, paragraphs, part.images, questions, captions)
    print(f"The inputs of the miniature recipes are in {folder}.")


def write_records(
    folder: Path,
    paragraphs: list[str],
    images: list[Image.Image],
    questions: list[tuple[str, str]],
    captions: list[str],
):
    """Of each image a question with its answer, and a caption."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for number, (image, (question, answer)) in enumerate(zip(images, questions, strict=True)):
        image.save(folder / "images" / f"{number}.png")
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    write_lines(folder / "questions.jsonl", records)
    write_lines(folder / "english.jsonl", ({"text": text} for text in paragraphs))
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    Dataset.from_dict({"image": images, "caption": captions}, features).to_parquet(folder / "drawings.parquet")


def write_lines(file: Path, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
