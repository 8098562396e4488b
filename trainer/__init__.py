"""Training of Rosetta: the Trainer, its optimizer and its data."""

from .checkpoints import last_complete_checkpoint
from .data import DataSource, RosettaDataStream
from .data_collator import RosettaDataCollator
from .flops import training_flops
from .flow_matching import flow_matching_targets, sample_timesteps
from .freezing import train_backbone, train_projectors, train_token_types
from .maop import MAOPAdamW
from .optimizer_state import carry_over_optimizer_state
from .param_groups import diff_lr_groups
from .rosetta_trainer import RosettaTrainer
from .training_arguments import RosettaTrainingArguments
from .training_record import load_training_record, save_training_record, training_record


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
