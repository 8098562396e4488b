"""Training of Rosetta: the Trainer, its optimizer and its data."""

from .checkpoints.folders import last_complete_checkpoint
from .data import DataSource, RosettaDataStream
from .data.collator import RosettaDataCollator
from .figures.flops import training_flops
from .flow_matching import flow_matching_targets, sample_timesteps
from .optimizer.carry_over import carry_over_optimizer_state
from .optimizer.diff_lr import diff_lr_groups
from .optimizer.maop import MAOPAdamW
from .rosetta_trainer import RosettaTrainer
from .stages.freezing import train_backbone, train_projectors, train_token_types
from .stages.training_record import load_training_record, save_training_record, training_record
from .training_arguments import RosettaTrainingArguments


__all__ = [
    "DataSource",
    "MAOPAdamW",
    "RosettaDataCollator",
    "RosettaDataStream",
    "RosettaTrainer",
    "RosettaTrainingArguments",
    "carry_over_optimizer_state",
    "diff_lr_groups",
    "flow_matching_targets",
    "last_complete_checkpoint",
    "load_training_record",
    "sample_timesteps",
    "save_training_record",
    "train_backbone",
    "train_projectors",
    "train_token_types",
    "training_flops",
    "training_record",
]
