"""One arm with one seed: trained from its start, and asked before and after."""

import json
import tempfile
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import set_seed

from examples.miniature.language_model import held_out_loss
from examples.miniature.mixture import Mixture
from examples.miniature.parts import CommonParts
from examples.miniature.stage import SAMPLES_PER_STEP, stage_trainer
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaPipeline
from modeling_rosetta.composition_rosetta import own_modules
from trainer import RosettaTrainer, train_backbone, train_token_types
from trainer.lora import lora_config

from .arms import Arm
from .routing import text_routing, total_variation
from .starts import Starts


LORA_RANK = 8


def run_arm(arm: Arm, seed: int, starts: Starts, model_dir: Path | None = None) -> dict:
    """
    Args:
        model_dir (`Path`, *optional*): where the trained model is saved to, as a pipeline.

    Returns:
        `dict`: `before` and `after`, and of averages with the old weights `averaged`, the figures of [`ask`]; the
        text loss after each of the `stages` before; the `log` of the training and its `seconds`.
    """
    began = time.perf_counter()
    start, parts = starts.start(arm.architecture, seed, arm.num_vae_experts), starts.parts(seed)
    model, processor = RosettaForCausalLMAndImageGeneration.from_pretrained(start), parts.processor
    pipeline = RosettaPipeline(model, parts.vae, FlowMatchEulerDiscreteScheduler(), processor)
    set_seed(seed)
    choose_trained(arm, model)
    num_steps = max(2, round(starts.scale * starts.miniature.steps["T2I"]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = stage_trainer(
            arm.id,
            model,
            Mixture(parts.tasks(), dict(arm.ratios), num_steps * SAMPLES_PER_STEP, seed),
            processor.tokenizer.pad_token_id,
            num_steps,
            folder,
            seed=seed,
            logging_steps=20,
            learning_rate=arm.learning_rate,
            generation_learning_rate=arm.generation_learning_rate,
            latent_projections_at_generation_rate=arm.generation_learning_rate is not None,
            shield_steps=round(starts.scale * arm.shield_steps),
            maop=arm.maop,
            maop_granularity=arm.maop_granularity,
            maop_second_moment=arm.maop_second_moment,
            anchor_strength=arm.anchor_strength,
            anchor_importance_from=importance_of(arm, start),
        )
        routing = text_routing(model, parts.held_out_rows)
        before = ask(trainer, pipeline, parts)
        weights = {name: param.detach().clone() for name, param in model.named_parameters()}
        trainer.train()
        after = ask(trainer, pipeline, parts)
        if model_dir is not None:
            pipeline.save_pretrained(model_dir)
        routing_after = text_routing(model, parts.held_out_rows)
        log = trainer.state.log_history
        averages = {f"{share:g}": averaged(share, weights, trainer, pipeline, parts) for share in arm.averages}
    after["routing moved"] = total_variation(routing, routing_after)
    return {
        "before": {**before, "routing": routing.tolist()},
        "after": {**after, "routing": routing_after.tolist()},
        "averaged": averages,
        "stages": json.loads((start / "stages.json").read_text()),
        "log": log,
        "seconds": time.perf_counter() - began,
    }


def choose_trained(arm: Arm, model):
    """Sets what is trained."""
    if arm.train == "backbone":
        train_backbone(model)
        return
    if arm.train == "lora":  # adapters on attention and the shared expert; what serves drawing alone is trained whole
        adapters = {"r": LORA_RANK, "lora_alpha": LORA_RANK, "modules_to_save": own_modules(model.config, "vae")}
        model.add_adapter(lora_config(model.config, ["attention", "shared_expert"], **adapters))
        return
    train_token_types(model, "vae")


def importance_of(arm: Arm, start: Path) -> str | None:
    if arm.anchor_strength is None:
        return None
    return str(start / ("moments" if arm.importance == "moments" else f"{arm.importance}.safetensors"))


def ask(trainer: RosettaTrainer, pipeline: RosettaPipeline, parts: CommonParts) -> dict:
    """
    Held-out text loss in nats a token, flow loss of held-out drawings with the same noise each time, and the shares of
    the miniature's `skills`: of questions about held-out pictures answered right and of drawings recognised.
    """
    model = pipeline.transformer
    model.eval()
    figures = {
        "text loss": held_out_loss(model, parts.held_out_rows),
        "flow loss": trainer.evaluate(parts.held_out_drawings())["eval_flow_loss"],
        **parts.skills(pipeline),
    }
    model.train()
    return figures


@torch.no_grad()
def averaged(share: float, old: dict, trainer: RosettaTrainer, pipeline: RosettaPipeline, parts: CommonParts) -> dict:
    """The figures of `share` of the new weights and the rest of the old (WiSE-FT, arXiv 2109.01903), in what serves
    other types than the new one too."""
    model = pipeline.transformer
    own = tuple(f"{module}." for module in own_modules(model.config, "vae"))
    shared = {name: param for name, param in model.named_parameters() if not name.startswith(own)}
    new = {name: param.clone() for name, param in shared.items()}
    for name, param in shared.items():
        param.lerp_(old[name], 1 - share)
    figures = ask(trainer, pipeline, parts)
    for name, param in shared.items():
        param.copy_(new[name])
    return figures
