"""The repository that a stage of training leaves: what the next stage starts from, and what is published."""

import os
from pathlib import Path

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


def publish(
    trainer,
    vae: AutoencoderKLFlux2 | None = None,
    stage: str | None = None,
    data: str | None = None,
    **kwargs,
):
    """
    Saves the repository of a trainer to `output_dir/repository`, and publishes it as [`~hub_upload.push`] does. All
    processes must call this.

    Args:
        trainer, vae, stage, data: as for [`save_repository_of`]; the id of the repository is `args.hub_model_id`.
        kwargs: as for [`~hub_upload.push`].

    Returns:
        `CommitInfo` on the first process, `None` on the others and after a dry run.

    Raises:
        ValueError: before anything is saved, if a part is missing.
    """
    # Only this function knows the Hub, and only when it is called.
    from hub_upload import push

    if trainer.args.hub_model_id is None:
        raise ValueError("`args.hub_model_id` must be the id of the repository, such as 'name/model'; it is None.")
    if not hasattr(trainer.processing_class, "draw_prompt"):
        raise ValueError(
            "`processing_class` of the trainer must be a RosettaProcessor to be published with the model, got "
            f"{type(trainer.processing_class).__name__}."
        )
    if vae is None and trainer.model.config.token_type_index("noisy_latents") is not None:
        raise ValueError("`vae` must be given: the model draws, and its repository decodes with the VAE.")
    folder = Path(trainer.args.output_dir) / "repository"
    save_repository_of(trainer, folder, vae, stage, data)
    return push(folder, trainer.args.hub_model_id, **kwargs) if trainer.is_world_process_zero() else None


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


__all__ = ["publish", "save_repository_of", "write_repository"]
