"""The repository that a stage of training leaves: what the next stage starts from, and what is published."""

import os

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel, ProcessorMixin

from modeling_rosetta import RosettaPipeline
from modeling_rosetta.repository_rosetta import AUTO_MAP, staged_directory, weights_of_model

from ..checkpoints.adapters import has_adapters
from ..checkpoints.sharding import unsharded_model
from .training_record import load_training_record, save_training_record, training_record


def save_repository_of(
    trainer,
    folder: str | os.PathLike,
    vae: AutoencoderKLFlux2 | None = None,
    stage: str | None = None,
    data: str | None = None,
):
    """
    Saves the model of a trainer, gathered if it is sharded, with its processor, the stages it went through and, if it
    draws, its pipeline. All processes must call this; the main one writes.

    Args:
        trainer ([`RosettaTrainer`]): after its `train()`, with a `RosettaProcessor` as `processing_class`.
        folder (`str` or `os.PathLike`): is written whole or not at all.
        vae ([`~diffusers.AutoencoderKLFlux2`], *optional*): makes it a pipeline.
        stage, data (`str`, *optional*): as for [`training_record`].

    Raises:
        ValueError: before anything is saved, if the model has adapters.
    """
    if has_adapters(trainer.model):
        raise ValueError(
            "`trainer.model` has adapters, and a repository has whole weights. Save them on their own with "
            "`trainer.save_model()`, or train a model that they were merged into."
        )
    model = unsharded_model(trainer.accelerator, trainer.model_wrapped)
    if model is not None:
        stages = load_training_record(model.name_or_path) if model.name_or_path else []
        write_repository(folder, model, trainer.processing_class, vae)
        save_training_record(folder, [*stages, training_record(trainer, stage, data)])
    trainer.accelerator.wait_for_everyone()


def write_repository(
    folder: str | os.PathLike, model: PreTrainedModel, processor: ProcessorMixin, vae: AutoencoderKLFlux2 | None = None
):
    """Writes a repository for transformers, and with a `vae` for diffusers too: all of it or nothing."""
    if vae is not None:
        RosettaPipeline(model, vae, FlowMatchEulerDiscreteScheduler(), processor).save_pretrained(folder)
        return
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class("AutoModelForCausalLM")
    type(processor).register_for_auto_class()
    model.config.auto_map = dict(AUTO_MAP)
    weights = weights_of_model(model)
    with staged_directory(folder) as staged:
        model.save_pretrained(staged, state_dict=weights, save_original_format=False)
        processor.save_pretrained(staged)


__all__ = ["save_repository_of", "write_repository"]
