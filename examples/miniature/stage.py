"""One stage of the miniature's training."""

from pathlib import Path

from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer import RosettaDataCollator, RosettaTrainer, RosettaTrainingArguments

from .mixture import Mixture
from .progress import show_progress


SAMPLES_PER_STEP = 40
ROW_LENGTH = 128


def stage_trainer(
    stage: str,
    model: RosettaForCausalLMAndImageGeneration,
    samples: Mixture,
    pad_token_id: int,
    num_steps: int,
    output_dir: str | Path,
    **kwargs,
) -> RosettaTrainer:
    """A Trainer of one stage with a fresh optimizer, on one CPU."""
    defaults = {"save_strategy": "no", "logging_steps": 10, "lr_scheduler_type": "cosine"}
    arguments = RosettaTrainingArguments(
        output_dir=str(output_dir),
        max_steps=num_steps,
        per_device_train_batch_size=SAMPLES_PER_STEP,
        warmup_steps=num_steps // 20,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        **{**defaults, **kwargs},
    )
    collator = RosettaDataCollator(pad_token_id, max_length=ROW_LENGTH, packed=True)
    trainer = RosettaTrainer(model, arguments, train_dataset=samples, data_collator=collator)
    return show_progress(trainer, stage)
