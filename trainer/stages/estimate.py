"""What a recipe takes on a number of devices: memory and time, before there are any, or its model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from torch import nn
from transformers import Qwen3Config

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, text_config_from_dense

from ..data.collator import RosettaDataCollator
from ..data.latent_cache import DESCRIPTION
from ..figures.batch_counts import count_batch, count_targets
from ..figures.flops import training_flops
from .freezing import train_backbone, train_projectors
from .recipe import StageArguments
from .starting_point import ARCHITECTURES, TOKEN_TYPES_OF_TASK, configuration
from .step_memory import ATTENTION, StepMemory, full_row, step_memory


NUM_VISION_TOKENS = 1024  # of an image to understand, if the recipe does not say how large they are
TOKEN_PIXELS = 16  # side of a token to draw
SHARE_OF_MEMORY = 0.9  # that tensors may take; the rest is CUDA's own, the libraries', and lost between tensors


@dataclass
class TaskEstimate:
    """
    Of rows that are full of one task's samples.

    Args:
        memory ([`StepMemory`])
        flops (`float`): of a row, forward and backward, without what is recomputed.
    """

    memory: StepMemory
    flops: float


@dataclass
class RecipeEstimate:
    """
    Args:
        config (`RosettaConfig`): of the model.
        num_parameters, num_trained (`int`)
        assumed (`list[str]`): what could not be read, and is taken to be as in the released model.
        tasks (`dict[str, TaskEstimate]`)
        accumulation (`int`): micro-batches of a step on each device.
    """

    config: RosettaConfig
    num_parameters: int
    num_trained: int
    assumed: list[str]
    tasks: dict[str, TaskEstimate]
    accumulation: int

    @property
    def peak(self) -> int:
        """Bytes on one device: of the task that takes most, since any row may be full of it."""
        return max(task.memory.peak for task in self.tasks.values())

    def seconds_a_step(self, shares: dict[str, float], rows: int, flops_per_second: float, recomputes: bool) -> float:
        """
        Args:
            shares (`dict[str, float]`): of the tasks in the rows.
            rows (`int`): of a step, on all devices.
            flops_per_second (`float`): that all devices do together.
            recomputes (`bool`): the forward pass once more.
        """
        flops = sum(share * self.tasks[task].flops for task, share in shares.items()) / sum(shares.values())
        return rows * flops * (4 / 3 if recomputes else 1) / flops_per_second


def estimate_recipe(stage: StageArguments, sources, training, num_devices: int) -> RecipeEstimate:
    """
    Args:
        stage ([`StageArguments`])
        sources (`list[DataSource]`): of which the tasks count. They are not opened.
        training ([`RosettaTrainingArguments`])
        num_devices (`int`): over which all is sharded, if there are several.

    Raises:
        ValueError: if the rows of a step are no multiple of those of a micro-batch on all devices.
    """
    rows = training.per_device_train_batch_size
    if stage.global_batch_size % (rows * num_devices):
        raise ValueError(
            f"`global_batch_size` must be a multiple of `per_device_train_batch_size` x devices = {rows} x "
            f"{num_devices}, got {stage.global_batch_size}."
        )
    accumulation = stage.global_batch_size // (rows * num_devices)
    tasks = sorted({source.task for source in sources})
    config, assumed = planned_config(stage, tasks)

    def make_model() -> nn.Module:
        attention = {"": ATTENTION, "vision_config": "sdpa"}
        model = RosettaForCausalLMAndImageGeneration._from_config(config, attn_implementation=attention)
        return (train_projectors if stage.train == "projectors" else train_backbone)(model)

    cached = {source.task for source in sources if Path(source.path, DESCRIPTION).exists()}
    with torch.device("meta"):
        model = make_model()
    flops, found = training_flops(model), {}
    for task in tasks:
        is_drawn = task == "t2i" and task not in cached

        def make_batch(task=task, is_drawn=is_drawn) -> dict:
            return _batch(stage, config, task, rows, TOKEN_PIXELS if is_drawn else None)

        make_vae = _vae(stage) if is_drawn else None
        memory = step_memory(make_model, make_batch, training, num_devices, accumulation, stage.recompute, make_vae)
        found[task] = TaskEstimate(memory, _flops_of(make_batch(), config, flops) / rows)
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return RecipeEstimate(config, sum(map(torch.numel, parameters)), trained, assumed, found, accumulation)


def planned_config(stage: StageArguments, tasks: list[str]) -> tuple[RosettaConfig, list[str]]:
    """The configuration that the model of a stage will have, and what of it is assumed since it cannot be read."""
    target, assumed = ARCHITECTURES[stage.architecture](), []
    needed = {name for task in tasks for name in TOKEN_TYPES_OF_TASK[task]}

    def read(argument: str, name: str | None) -> dict | None:
        try:
            return None if name is None else configuration(argument, name)
        except OSError:
            assumed.append(f"`{argument}`: '{name}' cannot be read; it is taken for that of the released model.")
            return None

    fields = read("model", stage.model) or {}
    is_dense = fields.get("model_type") == "qwen3"
    present = {token_type["name"] for token_type in fields.get("token_types", [])}
    if not fields:  # the stages before have mounted what comes before
        last = max(i for i, token_type in enumerate(target.token_types) if token_type["name"] in needed)
        present = {token_type["name"] for token_type in target.token_types[:last]}
    types = [token_type for token_type in target.token_types if token_type["name"] in needed | present]
    pools = {token_type["expert_pool"]: target.expert_pools[token_type["expert_pool"]] for token_type in types}
    pools |= fields.get("expert_pools", {})
    tower = read("vision_tower", stage.vision_tower) if "vit" in needed - present else None
    changes = {"token_types": types, "expert_pools": pools}
    if is_dense:
        dense = Qwen3Config(**fields)
        config = text_config_from_dense(dense, **changes, vocab_size=stage.vocab_size or dense.vocab_size)
        changes = {"latent_hidden_size": config.hidden_size, "vision_config": {"out_hidden_size": config.hidden_size}}
    else:
        config = RosettaConfig(**{**fields, **changes})
        changes = {}
    if tower is not None:
        changes["vision_config"] = {**tower["vision_config"], "out_hidden_size": config.hidden_size}
    return RosettaConfig(**{**config.to_dict(), **changes}), assumed


def _batch(stage: StageArguments, config: RosettaConfig, task: str, rows: int, token_pixels: int | None) -> dict:
    image_tokens = (stage.base_size // TOKEN_PIXELS) ** 2
    if task == "mmu":
        side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        image_tokens = stage.image_pixels[1] // side**2 if stage.image_pixels else NUM_VISION_TOKENS
    row = full_row(config, task, stage.max_length, min(image_tokens, stage.max_length // 2), token_pixels)
    collator = RosettaDataCollator(0, stage.max_length, pad_to_multiple_of=stage.max_length)
    return collator([row] * rows)


def _flops_of(batch: dict, config: RosettaConfig, flops: dict[str, float]) -> float:
    held, targets = count_batch(batch, len(config.token_types)), count_targets(batch, config)
    counts = {f"num_tokens_{t['name']}": n for t, n in zip(config.token_types, held.tokens, strict=True)}
    counts |= {"attention_pairs": held.attention_pairs, "vit_pairs": held.vit_pairs}
    counts |= {"num_text_targets": targets[0], "num_latent_images": targets[1]}
    return float(sum(flops[unit] * counts[unit] for unit in flops))


def _vae(stage: StageArguments):
    try:
        fields = configuration("vae", stage.vae, subfolder="vae")
    except OSError:
        fields = {}
    return lambda: AutoencoderKLFlux2.from_config(fields)


__all__ = ["SHARE_OF_MEMORY", "RecipeEstimate", "TaskEstimate", "estimate_recipe", "planned_config"]
