"""
Pictures and words in any order on the miniature: it learns to change a picture, to answer with a word and a drawing,
and to say what it drew.

The model of the quickstart goes on in the layout that keeps order, with pictures given as clean latents and as ViT
tokens. What it learns is asked of a hundred held-out digits each; an independent classifier or the exact edit judges.

    make quickstart
    python examples/edit_digits.py [--model outputs/quickstart/model] [--output_dir outputs/edits] [--seed 0]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import set_seed
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.miniature.classifier import DigitClassifier  # noqa: E402
from examples.miniature.conversations import read_answer  # noqa: E402
from examples.miniature.digits import images_to_pixels, load_digits  # noqa: E402
from examples.miniature.edits import (  # noqa: E402
    ANY,
    ASK,
    EXACT,
    NEXT,
    Lessons,
    edited_right,
    tell_prompt,
)
from examples.miniature.english import load_english  # noqa: E402
from examples.miniature.language_model import pack_text  # noqa: E402
from examples.miniature.mixture import Mixture  # noqa: E402
from examples.miniature.parts import digit_tasks  # noqa: E402
from examples.miniature.report import save_drawn_digits  # noqa: E402
from examples.miniature.stage import SAMPLES_PER_STEP, stage_trainer  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402
from modeling_rosetta import (  # noqa: E402
    RosettaForCausalLMAndImageGeneration,
    RosettaPipeline,
    RosettaProcessor,
    encode_images,
)
from trainer import train_backbone  # noqa: E402


RATIOS = {"edit": 0.6, "tell": 0.13, "ask": 0.13, "T2I": 0.04, "MMU": 0.06, "LM": 0.04}
NUM_STEPS, NUM_ASKED = 3500, 100
EDITING = {"num_inference_steps": 20, "guidance_scale": 1.0}  # a picture says all that there is to say
ANSWERING = {"num_inference_steps": 20, "guidance_scale": 2.0}


def evaluate(pipeline: RosettaPipeline, classifier: DigitClassifier, held_out) -> tuple[dict, dict]:
    """Shares of what is right, and for each edit some drawings beside their originals."""
    images, labels = held_out.images[:NUM_ASKED], held_out.labels[:NUM_ASKED]
    pipeline.transformer.eval()
    figures, shown = {}, {"originals": images[:8]}
    for text in (*EXACT, NEXT):
        generator = torch.Generator().manual_seed(1)
        drawn = pipeline([text] * len(images), image=list(images), generator=generator, **EDITING).images
        right = edited_right(drawn, images, text) if text in EXACT else classifier.accuracy(drawn, (labels + 1) % 10)
        figures[text], shown[text] = right, drawn[:8]

    asked = {"max_new_tokens": 12, "max_images": 1, **ANSWERING}
    generator = torch.Generator().manual_seed(2)
    told = pipeline.answer([tell_prompt(i % 10) for i in range(NUM_ASKED)], generator=generator, **asked)
    is_word = [read_answer(_text(message)) == i % 10 for i, message in enumerate(told)]
    is_drawn = [_digit(message, classifier) == i % 10 for i, message in enumerate(told)]
    figures["word, then drawing"] = sum(a and b for a, b in zip(is_word, is_drawn, strict=True)) / NUM_ASKED
    shown["a word and a drawing"] = [image for message in told[:8] for image in _drawings(message)]

    first = [[{"role": "user", "content": ANY}]] * NUM_ASKED
    drawn = pipeline.answer(first, generator=generator, min_images=1, **asked)
    second = [[*talk, message, {"role": "user", "content": ASK}] for talk, message in zip(first, drawn, strict=True)]
    said = pipeline.answer(second, **{**asked, "max_images": 0})
    right = [read_answer(_text(s)) == _digit(d, classifier) for s, d in zip(said, drawn, strict=True)]
    figures["what did you draw"] = sum(right) / NUM_ASKED
    return figures, shown


def _text(message: dict) -> str:
    return " ".join(item["text"] for item in message["content"] if item["type"] == "text")


def _drawings(message: dict) -> list:
    return [item["image"] for item in message["content"] if item["type"] == "latents"]


def _digit(message: dict, classifier: DigitClassifier) -> int | None:
    drawings = _drawings(message)
    return int(classifier.predict(drawings)[0]) if drawings else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=Path("outputs/quickstart/model"), help="made by `make quickstart`"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/edits"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_steps", type=int, default=NUM_STEPS)
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"`--model` must be a folder, {options.model} is none: run `make quickstart` first.")
    start = time.perf_counter()
    use_one_thread()
    logging.disable_progress_bar()
    set_seed(options.seed)
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(options.model)
    vae = AutoencoderKLFlux2.from_pretrained(options.model, subfolder="vae").eval()
    processor = RosettaProcessor.from_pretrained(
        options.model,
        layout="in_order",
        image_embeds_from=["noisy_latents", "pixel_values"],
        trust_remote_code=True,
    )
    pipeline = RosettaPipeline(model, vae, FlowMatchEulerDiscreteScheduler(), processor)
    pipeline.set_progress_bar_config(disable=True)
    train_digits, held_out = load_digits()
    classifier = DigitClassifier(train_digits)

    def encode(images: list) -> torch.Tensor:
        return encode_images(vae, images_to_pixels(images))

    lessons = Lessons(processor, train_digits, encode)
    rows = pack_text(processor.tokenizer, load_english().train)
    # In the quickstart's tasks pictures are given as ViT tokens alone.
    plain = RosettaProcessor.from_pretrained(options.model, layout="in_order", trust_remote_code=True)
    tasks = {**digit_tasks(plain, rows, train_digits, lessons.latents)}
    tasks |= {"edit": lessons.edit, "tell": lessons.tell, "ask": lessons.ask}
    samples = Mixture(tasks, RATIOS, options.num_steps * SAMPLES_PER_STEP, options.seed)
    train_backbone(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"learning_rate": 3e-3, "generation_learning_rate": 5e-3, "seed": options.seed, "maop": False}
        stage_trainer(
            "edits",
            model,
            samples,
            processor.tokenizer.pad_token_id,
            options.num_steps,
            folder,
            latent_projections_at_generation_rate=True,
            **arguments,
        ).train()
    trained = time.perf_counter() - start
    figures, shown = evaluate(pipeline, classifier, held_out)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(options.output_dir / "model")
    save_drawn_digits(shown, options.output_dir / "edits.png")
    run = {"figures": figures, "seconds of training": trained, "seed": options.seed}
    (options.output_dir / "results.json").write_text(json.dumps(run, indent=2) + "\n")
    for name, figure in figures.items():
        print(f"{name:32} {figure:.0%}")
    print(f"The model is in {options.output_dir / 'model'}, its drawings in {options.output_dir / 'edits.png'}.")


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
