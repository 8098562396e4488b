"""A tiny Rosetta, a data set of text and of images to draw, and a quiet Trainer, as plain functions."""

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from trainer import RosettaTrainer, RosettaTrainingArguments


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "latent_channels": 8,
    "latent_hidden_size": 32,
    "image_token_id": 60,
    "vision_start_token_id": 61,
    "vision_end_token_id": 62,
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}
IMAGE_TOKENS, CHANNELS, LENGTH = 4, SIZES["latent_channels"], 12


def tiny_model(variant=RosettaConfig, seed=0, **changes) -> RosettaForCausalLMAndImageGeneration:
    torch.manual_seed(seed)
    model = RosettaForCausalLMAndImageGeneration(variant(**{**SIZES, **changes}))
    model.model.visual.requires_grad_(False)
    # The latent-out block starts at zero: without this no gradient of the flow loss would get behind it.
    torch.nn.init.normal_(model.latent_out.conv_out.weight, std=0.1)
    return model


def record(index: int, noisy: bool = False) -> dict:
    """Text with 3 to 7 targets, and before it in every third record an image to draw; with `noisy`, that comes as
    noisy latents and velocities instead of clean latents."""
    generator = torch.Generator().manual_seed(index)
    record = {
        "input_ids": torch.randint(0, 60, (LENGTH,), generator=generator),
        "token_type_ids": torch.zeros(LENGTH, dtype=torch.long),
        "labels": torch.full((LENGTH,), -100),
    }
    targets = slice(LENGTH - 3 - index % 5, LENGTH)
    record["labels"][targets] = record["input_ids"][targets]
    record["labels"][0] = 1  # nothing predicts the first token, so it is no target
    if index % 3 == 0:
        record["token_type_ids"][:IMAGE_TOKENS] = 2
        record["input_ids"][:IMAGE_TOKENS] = 60
        record["latent_grid_hw"] = torch.tensor([[2, 2]])
        latents = torch.randn(IMAGE_TOKENS, CHANNELS, generator=generator)
        if noisy:
            record["timesteps"] = torch.rand(1, generator=generator)
            record["noisy_latents"] = latents
            record["velocity_labels"] = torch.randn(IMAGE_TOKENS, CHANNELS, generator=generator)
        else:
            record["latents"] = latents
    return record


def collate(records: list[dict]) -> dict:
    batch = {}
    for record in records:
        for key, value in record.items():
            batch.setdefault(key, []).append(value)
    rows = ("input_ids", "token_type_ids", "labels", "sequence_ids")
    return {key: torch.stack(values) if key in rows else torch.cat(values) for key, values in batch.items()}


def tiny_trainer(
    model,
    output_dir,
    train_dataset=None,
    eval_dataset=None,
    callbacks=None,
    data_collator=collate,
    vae=None,
    optimizer_cls_and_kwargs=None,
    **arguments,
) -> RosettaTrainer:
    """On the CPU, quiet, going through the records in order."""
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        **arguments,
    }
    trainer = RosettaTrainer(
        model,
        RosettaTrainingArguments(str(output_dir), **arguments),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
        vae=vae,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def training_logs(trainer) -> list[dict]:
    """What was logged of training, without what goes by the clock."""
    clock = ("tokens_per_second", "time_left")
    return [
        {name: figure for name, figure in log.items() if name not in clock}
        for log in trainer.state.log_history
        if "loss" in log
    ]
