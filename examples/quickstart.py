"""
The miniature: from nothing to a model that reads, sees and draws, in minutes on a laptop's CPU.

On real data that ships in packages (scanned digits and English), a tiny dense Qwen3 is trained and upcycled, then
taken through the paper's three stages: language, visual understanding, visual generation. After each stage it is
asked how well it still does everything. The result is a repository that `AutoModelForCausalLM`, `AutoProcessor` and
`DiffusionPipeline` load.

    python examples/quickstart.py [--output_dir outputs/quickstart] [--seed 0]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import set_seed
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.miniature.classifier import DigitClassifier  # noqa: E402
from examples.miniature.conversations import all_phrases, drawing, drawing_prompts, question, sums  # noqa: E402
from examples.miniature.digits import IMAGE_SIZE, load_digits  # noqa: E402
from examples.miniature.english import load_english  # noqa: E402
from examples.miniature.evaluation import draw, question_accuracy  # noqa: E402
from examples.miniature.language_model import held_out_loss, pack_text, train_language_model  # noqa: E402
from examples.miniature.mixture import Mixture  # noqa: E402
from examples.miniature.progress import show_progress  # noqa: E402
from examples.miniature.report import results_table, save_drawn_digits, save_training_curves  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.miniature.tokenizer import train_tokenizer  # noqa: E402
from examples.miniature.vae import train_vae  # noqa: E402
from examples.miniature.vision import image_processor, train_vision_tower  # noqa: E402
from modeling_rosetta import (  # noqa: E402
    RosettaForCausalLMAndImageGeneration,
    RosettaPipeline,
    RosettaProcessor,
    encode_images,
    mount,
    text_config_from_dense,
    upcycle,
)
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    save_training_record,
    train_backbone,
    train_projectors,
    training_record,
)


VIT = {
    "name": "vit",
    "embeds_from": "pixel_values",
    "expert_pool": "vit",
    "attention_stream": "shared",
    "shared_expert": "global",
}
VAE = {**VIT, "name": "vae", "embeds_from": "noisy_latents", "expert_pool": "vae"}
PROMPT_DROPOUT = 0.1
# The paper has 1. At this size and in this time, with 1, the text losses move the shared attention so much more than
# the drawings do that these stay deaf to their prompts.
FLOW_LOSS_COEF = 10.0
SAMPLES_PER_STEP = 40
ROW_LENGTH = 128
DRAWINGS_PER_PROMPT = 4
DATA = {
    "LM": "English from the documentation of Python's standard library",
    "MMU": "questions about scikit-learn's scanned digits",
    "T2I": "prompts for scikit-learn's scanned digits",
}
# What the figures of the report are, in words that stand alone.
RESULTS = {
    "text loss": "loss on held-out English, nats a token",
    "questions": "share of questions about held-out digits answered right",
    "drawings": "share of drawings recognised as the prompted digit",
}
CURVES = ["text_loss", "flow_loss", "capacity_rate_vit", "capacity_rate_vae", "maop_fired_share"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    use_one_thread()
    logging.disable_progress_bar()
    set_seed(arguments.seed)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    figures_after, histories, records = {}, {}, []

    # What a real run takes from elsewhere: text, a tokenizer, a dense model, a ViT and a VAE, both frozen from then on
    english = load_english()
    train_digits, held_out_digits = load_digits()
    tokenizer = train_tokenizer([*english.train, *all_phrases()])
    train_rows, held_out_rows = (pack_text(tokenizer, text) for text in (english.train, english.held_out))
    print(f"English: {len(train_rows)} rows to train on, {len(held_out_rows)} held out, sha256 {english.sha256}")
    dense = train_language_model(tokenizer, torch.cat([train_rows, pack_text(tokenizer, sums())]), arguments.seed)
    labels = torch.from_numpy(train_digits.labels)
    vision_tower = train_vision_tower(train_digits.images, labels, dense.config.hidden_size, arguments.seed)
    vae = train_vae(train_digits.pixels(), arguments.seed)
    classifier = DigitClassifier(train_digits)
    latents = encode_images(vae, train_digits.pixels())
    processor = RosettaProcessor(image_processor(), tokenizer, base_size=IMAGE_SIZE, latent_patch_size=4)

    passages = train_rows.view(-1, 64)  # about as long as the other samples

    def read(choose: random.Random) -> dict:
        row = passages[choose.randrange(len(passages))]
        return {"input_ids": row, "token_type_ids": torch.zeros_like(row), "labels": row}

    made: dict[tuple[int, str], dict] = {}  # each picture is spoken of in ten ways only

    def once(i: int, text: str, conversation: list[dict]) -> dict:
        if (i, text) not in made:
            made[i, text] = processor.training_sample(conversation)
        return made[i, text]

    def see(choose: random.Random) -> dict:
        i = choose.randrange(len(train_digits.images))
        conversation = question(train_digits.images[i], train_digits.labels[i], choose)
        return once(i, conversation[0]["content"][1]["text"], conversation)

    def paint(choose: random.Random) -> dict:
        i = choose.randrange(len(latents))
        conversation = drawing(latents[i], train_digits.labels[i], choose)
        sample = once(i, conversation[0]["content"], conversation)
        return processor.drop_prompt(sample) if choose.random() < PROMPT_DROPOUT else sample

    def train(stage: str, ratios: dict[str, float], num_steps: int, **kwargs):
        mixture = Mixture({"LM": read, "MMU": see, "T2I": paint}, ratios, num_steps * SAMPLES_PER_STEP, arguments.seed)
        trainer = train_stage(stage, model, mixture, tokenizer.pad_token_id, num_steps, seed=arguments.seed, **kwargs)
        histories[stage] = trainer.state.log_history
        data = ", ".join(f"{ratio:.0%} {DATA[kind]}" for kind, ratio in ratios.items())
        records.append(training_record(trainer, stage, data))

    def evaluate(stage: str):
        model.eval()
        figures = {"text loss": held_out_loss(model, held_out_rows)}
        if "vit" in model.config.expert_pools:
            figures["questions"] = question_accuracy(model, processor, held_out_digits)
        if "vae" in model.config.expert_pools:
            asked = [(digit, prompt) for digit in range(10) for prompt in DRAWINGS_PER_PROMPT * drawing_prompts(digit)]
            images = draw(pipeline, [prompt for _, prompt in asked], seed=1)
            figures["drawings"] = classifier.accuracy(images, [digit for digit, _ in asked])
        figures_after[stage] = figures
        print(f"after {stage}: " + ", ".join(f"{name} {figure}" for name, figure in formatted(figures).items()))

    # Language: upcycle the dense model without loss (A.3), train the experts on text
    figures_after["dense Qwen3"] = {"text loss": held_out_loss(dense, held_out_rows)}
    config = text_config_from_dense(
        dense.config,
        image_token_id=processor.image_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
    )
    model = upcycle(dense, config)
    evaluate("upcycled")
    train("LM", {"LM": 1.0}, num_steps=60, learning_rate=1e-3, maop=False)
    evaluate("LM")

    # Visual understanding: mount the ViT's experts, warm up its projectors, then train all but the ViT (C.1.2)
    mount(model, VIT, num_experts=3, vision_tower=vision_tower)
    evaluate("ViT mounted")
    train_projectors(model)
    train("MMU, projectors", {"MMU": 0.8, "LM": 0.2}, num_steps=60, learning_rate=3e-3, maop=False)
    train_backbone(model)
    train("MMU", {"MMU": 0.8, "LM": 0.2}, num_steps=500, learning_rate=1e-3, maop=False)
    evaluate("MMU")

    # Visual generation: mount the VAE's experts; DiffLR, shielding, then MAOP (3.3, C.1.3)
    sizes = {"latent_channels": latents.shape[1], "latent_hidden_size": 64}
    mount(model, VAE, num_experts=6, flow_loss_coef=FLOW_LOSS_COEF, **sizes)
    pipeline = RosettaPipeline(model, vae, FlowMatchEulerDiscreteScheduler(), processor)
    evaluate("VAE mounted")
    train_backbone(model)
    train(
        "T2I",
        {"T2I": 0.6, "MMU": 0.25, "LM": 0.15},
        num_steps=1000,
        learning_rate=3e-3,
        generation_learning_rate=4e-3,
        latent_projections_at_generation_rate=True,
        shield_steps=100,
    )
    evaluate("T2I")

    repository, assets = arguments.output_dir / "model", arguments.output_dir / "model" / "assets"
    pipeline.save_pretrained(repository)
    for record in records:
        figures = figures_after.get(record["stage"], {})
        record["results"] = {RESULTS[name]: figure for name, figure in figures.items()}
    save_training_record(repository, records, command=f"python examples/quickstart.py --seed {arguments.seed}")
    prompts = [drawing_prompts(digit)[digit % 5] for digit in range(10)]
    drawn = {prompt: draw(pipeline, [prompt] * 8, seed=2) for prompt in prompts}
    assets.mkdir(exist_ok=True)
    save_drawn_digits(drawn, assets / "drawings.png")
    save_training_curves(histories, CURVES, assets / "curves.png")
    table = results_table({stage: formatted(figures) for stage, figures in figures_after.items()})
    held_out_digits.images[0].save(arguments.output_dir / "digit.png")
    seconds = time.perf_counter() - start
    run = {"figures": figures_after, "seconds": seconds, "seed": arguments.seed, "english_sha256": english.sha256}
    (arguments.output_dir / "results.json").write_text(json.dumps(run, indent=2) + "\n")
    (arguments.output_dir / "results.md").write_text(table + "\n")
    print(f"\n{table}\n\nThe model with its pictures and curves is in {repository}, after {seconds:.0f} s.")
    print(f'Ask it: {arguments.output_dir / "digit.png"}, "Which digit is this?" (a {held_out_digits.labels[0]}).')
    print('Let it draw: "a handwritten seven". README.md, Load, ask, draw, has the lines for both.')


def train_stage(
    stage: str,
    model: RosettaForCausalLMAndImageGeneration,
    samples: Mixture,
    pad_token_id: int,
    num_steps: int,
    **kwargs,
) -> RosettaTrainer:
    """Trains one stage with a fresh optimizer; returns its Trainer."""
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = RosettaTrainingArguments(
            output_dir=output_dir,
            max_steps=num_steps,
            per_device_train_batch_size=SAMPLES_PER_STEP,
            lr_scheduler_type="cosine",
            warmup_steps=num_steps // 20,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            **kwargs,
        )
        collator = RosettaDataCollator(pad_token_id, max_length=ROW_LENGTH, packed=True)
        trainer = RosettaTrainer(model, arguments, train_dataset=samples, data_collator=collator)
        show_progress(trainer, stage).train()
    return trainer


def formatted(figures: dict[str, float]) -> dict[str, str]:
    """Losses to three digits, all else in per cent."""
    return {name: f"{figure:.3f}" if name == "text loss" else f"{figure:.1%}" for name, figure in figures.items()}


if __name__ == "__main__":
    main()
