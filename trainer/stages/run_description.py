"""What a run was started with, and what was changed when it went on: in each of its checkpoints."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..checkpoints.adapters import has_adapters
from ..checkpoints.folders import finished_steps


FILE_NAME = "run.json"
# What a run that goes on cannot change: the model, the order of the data, what the optimizer's state is of. A name
# that ends in "." stands for all that begin with it.
FIXED = (
    # of a stage
    "model",
    "architecture",
    "train",
    "vision_tower",
    "vae",
    "vocab_size",
    "image_pixels",
    "base_size",
    "max_length",
    "rows of a step",
    "shares_of",
    "sources",
    # of the arguments
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "decay_all_parameters",
    "latent_projections_at_generation_rate",
    "optimizer_state_from",
    "anchor_importance_from",
    "anchor_parameters",
    "optimizer",
    "rates that the schedule keeps",
    # of the model
    "trained parameters",
    "config.",
    "adapters.",
)
# Of the arguments, what is not of the run but of where it runs, or is itself.
_NO_FACTS = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "logging_dir"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),  # see `rows of a step`
}
_NO_ARCHITECTURE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "auto_map"}
_NO_ADAPTER = {"base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version"}


def training_facts(args, scheduler=None) -> dict:
    """The facts of [`RosettaTrainingArguments`], and of a scheduler that somebody brought."""
    facts = {name: value for name, value in args.to_dict().items() if name not in _NO_FACTS}
    facts["rows of a step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if scheduler is None:
        keeps_rates = facts["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")
    else:
        keeps_rates = not isinstance(scheduler, LambdaLR)
    # Of a schedule whose rates are a state, and no function of the step, they cannot change.
    decided_by = ("lr_scheduler_type", "learning_rate", "generation_learning_rate")
    facts["rates that the schedule keeps"] = [facts[name] for name in decided_by] if keeps_rates else None
    return facts


def model_facts(model: nn.Module) -> dict:
    """The facts of a model: its configuration, its adapters and how many numbers are trained."""
    facts = dict(_flat("config.", model.config.to_dict(), _NO_ARCHITECTURE))
    for name, adapter in (model.peft_config if has_adapters(model) else {}).items():
        facts |= _flat(f"adapters.{name}.", adapter.to_dict(), _NO_ADAPTER)
    facts["trained parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return facts


class RunDescription:
    """
    The facts of a run, and the arguments of its steps.

    Args:
        facts (`dict`): by name, as JSON.
        arguments (`dict`): those that its record names, as JSON.

    Attributes:
        history (`list[dict]`): `arguments`, and `after`: the step since which they hold.
    """

    def __init__(self, facts: dict, arguments: dict):
        self.facts, arguments = _as_json(facts), _as_json(arguments)
        self.history: list[dict] = [{"after": 0, "arguments": arguments}]

    def go_on(self, checkpoint: str | os.PathLike) -> list[str]:
        """
        Goes on with the run of a checkpoint.

        Returns:
            `list[str]`: what is to be said of it, a line each.

        Raises:
            ValueError: if something is otherwise now that cannot be.
        """
        step = finished_steps(checkpoint)
        _check_steps(checkpoint, self.facts)
        said = [f"The run goes on from {checkpoint}, after step {step}."]
        file = Path(checkpoint, FILE_NAME)
        if not file.is_file():
            return [*said, f"It has no {FILE_NAME}: whether anything was changed cannot be told."]
        stored = json.loads(file.read_text())
        said += changes(stored["facts"], self.facts)
        arguments = self.history[-1]["arguments"]
        self.history = [part for part in stored["history"] if part["after"] < step] or stored["history"][:1]
        if self.history[-1]["arguments"] != arguments:
            self.history.append({"after": step, "arguments": arguments})
        return said

    def arguments_at(self, step: int) -> dict:
        """The arguments that the first `step` steps were trained with; in words, if they were changed on the way."""
        parts = [part for part in self.history if part["after"] < step] or self.history[:1]
        told = dict(parts[0]["arguments"])
        for before, part in zip(parts, parts[1:], strict=False):
            for name, value in part["arguments"].items():
                if value != before["arguments"].get(name):
                    told[name] = f"{told.get(name)}, after step {part['after']} {value}"
        return told

    def save(self, folder: str, is_main_process: bool):
        """Writes it into a checkpoint."""
        if is_main_process:
            Path(folder, FILE_NAME).write_text(json.dumps({"facts": self.facts, "history": self.history}, indent=1))


def changes(before: dict, now: dict) -> list[str]:
    """
    What differs between the facts that both have, a line each.

    Raises:
        ValueError: if that cannot be.
    """
    differing = [name for name in now if name in before and _same_place(now[name]) != _same_place(before[name])]
    for name in differing:
        if any(name == fixed or fixed.endswith(".") and name.startswith(fixed) for fixed in FIXED):
            raise ValueError(
                f"`{name}` must be what it was when the run was started, {before[name]!r}, got {now[name]!r}. To "
                "train otherwise, give another `output_dir`."
            )
    return [f"From now on `{name}` is {now[name]!r}, it was {before[name]!r}." for name in differing]


def refuse_changes(checkpoint: str | os.PathLike, facts: dict):
    """
    Raises:
        ValueError: if the run of a checkpoint cannot go on with these facts.
    """
    _check_steps(checkpoint, facts)
    file = Path(checkpoint, FILE_NAME)
    if file.is_file():
        changes(json.loads(file.read_text())["facts"], _as_json(facts))


def _check_steps(checkpoint: str | os.PathLike, facts: dict):
    if 0 < (asked := facts.get("max_steps", 0)) < (done := finished_steps(checkpoint)):
        raise ValueError(
            f"`max_steps` must be at least {done}, which are done in {checkpoint}, got {asked}. Go back with "
            "`resume_from_checkpoint`."
        )


def _as_json(facts: dict) -> dict:
    return json.loads(json.dumps(facts, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def _flat(prefix: str, fields: dict, left_out: set[str]) -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if name in left_out or str(name).endswith("_token_id") or "attn_implementation" in str(name):
            continue
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{name}.", value, left_out)
        else:
            yield f"{prefix}{name}", value


def _same_place(value):
    """One folder may be written in several ways."""
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


__all__ = ["RunDescription", "changes", "model_facts", "refuse_changes", "training_facts"]
