"""What a model was trained with, stage after stage: `training.json` in its repository, from which its card is made."""

import json
import os
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import cached_file

from ..data import RosettaDataStream
from ..data.collator import RosettaDataCollator
from ..optimizer.maop import MAOPAdamW


RECORD_NAME = "training.json"
# What decides the outcome of a run. Nothing here can hold a path, a token or the name of a machine.
HYPERPARAMETERS = (
    "learning_rate",
    "generation_learning_rate",
    "latent_projections_at_generation_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "decay_all_parameters",
    "max_grad_norm",
    "shield_steps",
    "maop",
    "maop_granularity",
    "maop_second_moment",
    "anchor_strength",
    "anchor_parameters",
    "logit_mean",
    "logit_std",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
)
# Those of them that say nothing of an optimizer that the arguments did not make.
OF_MAOP_ADAMW = (
    *("generation_learning_rate", "latent_projections_at_generation_rate", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "weight_decay", "decay_all_parameters", "maop", "maop_granularity"),
    "maop_second_moment",
)
NUM_LOGS = 100  # of a stage, so that the file stays small
NOT_RESULTS = ("runtime", "per_second", "jit_compilation_time")


def training_record(
    trainer, stage: str | None = None, data: str | None = None, results: dict[str, float] | None = None
) -> dict:
    """
    One stage of training, as JSON.

    Args:
        trainer ([`RosettaTrainer`]): after its `train()`.
        stage (`str`, *optional*): the name of the stage, e.g. `"T2I"`; defaults to `run_name` of its arguments.
        data (`str`, *optional*): what it was trained on, in words.
        results (`dict[str, float]`, *optional*): what was measured after the stage; defaults to the metrics of the
            last evaluation, if there was one.

    Returns:
        `dict`: `stage`, `data`, `steps` and `epochs` that were trained (`None` of a stream, which mixes sources of
        different lengths), `hyperparameters` (the arguments that these steps were trained with, in words where they
        were changed on the way, and `max_length` and `packed` of the rows; of an optimizer of one's own what it says
        of itself), `trained_parameters`, `processes`, `device`, `versions` of the libraries, `results`, and `log`: at
        most 100 lines of the Trainer's `log_history`, evenly chosen, the last among them.
    """
    steps = trainer.state.global_step
    arguments = recorded_arguments(trainer.args) if trainer.run is None else trainer.run.arguments_at(steps)
    hyperparameters = {name: value for name, value in arguments.items() if value is not None}
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    if optimizer is not None and not trainer.optimizer_is_of_arguments:
        hyperparameters = {name: value for name, value in hyperparameters.items() if name not in OF_MAOP_ADAMW}
        hyperparameters |= _own_optimizer(optimizer)
    is_stream = isinstance(trainer.train_dataset, RosettaDataStream)
    if is_stream or isinstance(trainer.data_collator, RosettaDataCollator):
        hyperparameters["max_length"] = (trainer.train_dataset if is_stream else trainer.data_collator).max_length
        hyperparameters["packed"] = is_stream or trainer.data_collator.packed
    history = trainer.state.log_history
    if results is None:
        evaluations = [log for log in history if "eval_loss" in log]
        results = {
            name: figure
            for name, figure in (evaluations[-1] if evaluations else {}).items()
            if name.startswith("eval_") and not any(part in name for part in NOT_RESULTS)
        }
    device = trainer.args.device
    return {
        "stage": stage or trainer.args.run_name,
        "data": data,
        "steps": steps,
        "epochs": None if is_stream else trainer.state.epoch,
        "hyperparameters": hyperparameters,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "processes": trainer.args.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {library: version(library) for library in ("torch", "transformers", "diffusers", "accelerate")},
        "results": results,
        "log": _thinned([log for log in history if "loss" in log]),
    }


def _own_optimizer(optimizer: torch.optim.Optimizer) -> dict:
    """What an optimizer that the arguments did not make says of itself."""
    groups = [{**group, "lr": float(group.get("initial_lr", group["lr"]))} for group in optimizer.param_groups]
    told = {"optim": type(optimizer).__name__}
    for name, recorded in (("lr", "learning_rate"), *((name, name) for name in ("weight_decay", "betas", "maop"))):
        values = sorted({group[name] for group in groups if name in group})
        if values:
            told[recorded] = values[0] if len(values) == 1 else values
    if isinstance(optimizer, MAOPAdamW):
        told |= {name: optimizer.defaults[name] for name in ("maop_granularity", "maop_second_moment")}
    return told


def recorded_arguments(args) -> dict:
    """The [`HYPERPARAMETERS`] of [`RosettaTrainingArguments`]."""
    arguments = args.to_dict()
    return {name: arguments[name] for name in HYPERPARAMETERS}


def save_training_record(folder: str | os.PathLike, stages: list[dict], command: str | None = None):
    """
    Writes `training.json`.

    Args:
        folder (`str` or `os.PathLike`): of a repository.
        stages (`list[dict]`): all stages that its model went through, in order, from [`training_record`].
        command (`str`, *optional*): with which they can be repeated, e.g. `"make quickstart"`.
    """
    file = Path(folder) / RECORD_NAME
    staged = file.with_name(f".{RECORD_NAME}.saving")
    staged.write_text(json.dumps({"command": command, "stages": stages}, indent=1) + "\n")
    staged.replace(file)


def load_training_record(name_or_path: str | os.PathLike) -> list[dict]:
    """The stages in `training.json` of a folder or of a repository on the Hub; none without that file."""
    file = cached_file(
        name_or_path,
        RECORD_NAME,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return [] if file is None else json.loads(Path(file).read_text())["stages"]


def _thinned(logs: list[dict]) -> list[dict]:
    stride = -(-len(logs) // NUM_LOGS) or 1
    kept = logs[::-1][::stride][::-1]
    return [
        {name: float(f"{figure:.6g}") if isinstance(figure, float) else figure for name, figure in log.items()}
        for log in kept
    ]


__all__ = ["load_training_record", "recorded_arguments", "save_training_record", "training_record"]
