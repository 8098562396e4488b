"""Training of Rosetta: the Trainer, its optimizer and its data. A name is imported when it is asked for, so that
[`MAOPAdamW`] needs torch alone."""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .checkpoints.folders import last_complete_checkpoint
    from .data import DataSource, RosettaDataStream
    from .data.collator import RosettaDataCollator
    from .figures.flops import training_flops
    from .flow_matching import flow_matching_targets, sample_timesteps
    from .optimizer.anchor import Anchor
    from .optimizer.carry_over import carry_over_optimizer_state
    from .optimizer.diff_lr import diff_lr_groups
    from .optimizer.maop import MAOPAdamW
    from .rosetta_trainer import RosettaTrainer
    from .stages.freezing import train_backbone, train_projectors, train_token_types
    from .stages.training_record import load_training_record, save_training_record, training_record
    from .training_arguments import RosettaTrainingArguments

_NAMES = {
    ".checkpoints.folders": ["last_complete_checkpoint"],
    ".data": ["DataSource", "RosettaDataStream"],
    ".data.collator": ["RosettaDataCollator"],
    ".figures.flops": ["training_flops"],
    ".flow_matching": ["flow_matching_targets", "sample_timesteps"],
    ".optimizer.anchor": ["Anchor"],
    ".optimizer.carry_over": ["carry_over_optimizer_state"],
    ".optimizer.diff_lr": ["diff_lr_groups"],
    ".optimizer.maop": ["MAOPAdamW"],
    ".rosetta_trainer": ["RosettaTrainer"],
    ".stages.freezing": ["train_backbone", "train_projectors", "train_token_types"],
    ".stages.training_record": ["load_training_record", "save_training_record", "training_record"],
    ".training_arguments": ["RosettaTrainingArguments"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
