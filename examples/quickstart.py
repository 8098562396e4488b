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
import sys
import tempfile
import time
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import set_seed
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.miniature.conversations import drawing_prompts  # noqa: E402
from examples.miniature.evaluation import draw, drawing_accuracy, question_accuracy  # noqa: E402
from examples.miniature.language_model import held_out_loss  # noqa: E402
from examples.miniature.mixture import Mixture  # noqa: E402
from examples.miniature.parts import VAE, VIT, digit_tasks, make_parts  # noqa: E402
from examples.miniature.report import results_table, save_drawn_digits, save_training_curves  # noqa: E402
from examples.miniature.stage import SAMPLES_PER_STEP, stage_trainer  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402
from modeling_rosetta import RosettaPipeline, mount, text_config_from_dense, upcycle  # noqa: E402
from trainer import save_training_record, train_backbone, train_projectors, training_record  # noqa: E402


# The paper has 1. At this size and in this time, with 1, the text losses move the shared attention so much more than
# the drawings do that these stay deaf to their prompts.
FLOW_LOSS_COEF = 10.0
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

    parts = make_parts(arguments.seed)
    processor, held_out_digits = parts.processor, parts.held_out_digits
    tasks = digit_tasks(processor, parts.train_rows, parts.train_digits, parts.latents)

    def train(stage: str, ratios: dict[str, float], num_steps: int, **kwargs):
        mixture = Mixture(tasks, ratios, num_steps * SAMPLES_PER_STEP, arguments.seed)
        pad_token_id = processor.tokenizer.pad_token_id
        with tempfile.TemporaryDirectory() as folder:
            kwargs |= {"seed": arguments.seed, "output_dir": folder}
            trainer = stage_trainer(stage, model, mixture, pad_token_id, num_steps, **kwargs)
            trainer.train()
        histories[stage] = trainer.state.log_history
        data = ", ".join(f"{ratio:.0%} {DATA[kind]}" for kind, ratio in ratios.items())
        records.append(training_record(trainer, stage, data))

    def evaluate(stage: str):
        model.eval()
        figures = {"text loss": held_out_loss(model, parts.held_out_rows)}
        if "vit" in model.config.expert_pools:
            figures["questions"] = question_accuracy(model, processor, held_out_digits)
        if "vae" in model.config.expert_pools:
            figures["drawings"] = drawing_accuracy(pipeline, parts.classifier)
        figures_after[stage] = figures
        print(f"after {stage}: " + ", ".join(f"{name} {figure}" for name, figure in formatted(figures).items()))

    # Language: upcycle the dense model without loss (A.3), train the experts on text
    figures_after["dense Qwen3"] = {"text loss": held_out_loss(parts.dense, parts.held_out_rows)}
    model = upcycle(parts.dense, text_config_from_dense(parts.dense.config, **parts.token_ids()))
    evaluate("upcycled")
    train("LM", {"LM": 1.0}, num_steps=60, learning_rate=1e-3, maop=False)
    evaluate("LM")

    # Visual understanding: mount the ViT's experts, warm up its projectors, then train all but the ViT (C.1.2)
    mount(model, VIT, num_experts=3, vision_tower=parts.vision_tower)
    evaluate("ViT mounted")
    train_projectors(model)
    train("MMU, projectors", {"MMU": 0.8, "LM": 0.2}, num_steps=60, learning_rate=3e-3, maop=False)
    train_backbone(model)
    train("MMU", {"MMU": 0.8, "LM": 0.2}, num_steps=500, learning_rate=1e-3, maop=False)
    evaluate("MMU")

    # Visual generation: mount the VAE's experts; DiffLR, shielding, then MAOP (3.3, C.1.3)
    sizes = {"latent_channels": parts.latents.shape[1], "latent_hidden_size": 64}
    mount(model, VAE, num_experts=6, flow_loss_coef=FLOW_LOSS_COEF, **sizes)
    pipeline = RosettaPipeline(model, parts.vae, FlowMatchEulerDiscreteScheduler(), processor)
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
    run = {
        "figures": figures_after,
        "seconds": seconds,
        "seed": arguments.seed,
        "english_sha256": parts.english.sha256,
    }
    (arguments.output_dir / "results.json").write_text(json.dumps(run, indent=2) + "\n")
    (arguments.output_dir / "results.md").write_text(table + "\n")
    print(f"\n{table}\n\nThe model with its pictures and curves is in {repository}, after {seconds:.0f} s.")
    print(f'Ask it: {arguments.output_dir / "digit.png"}, "Which digit is this?" (a {held_out_digits.labels[0]}).')
    print('Let it draw: "a handwritten seven". README.md, Load, ask, draw, has the lines for both.')


def formatted(figures: dict[str, float]) -> dict[str, str]:
    """Losses to three digits, all else in per cent."""
    return {name: f"{figure:.3f}" if name == "text loss" else f"{figure:.1%}" for name, figure in figures.items()}


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
