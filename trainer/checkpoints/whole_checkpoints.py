"""A Trainer whose checkpoints are whole or not there at all, whenever the run is killed."""

import os
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .folders import SAVING, flush_to_disk, publish_folder, remove_unfinished, rotate_checkpoints
from .sharding import unsharded_model


class CheckpointPart(Protocol):
    """What a checkpoint holds besides transformers' own files."""

    def save(self, folder: str, is_main_process: bool):
        """Writes it into a checkpoint. All ranks call this."""


class WholeCheckpoints(Trainer):
    """
    [`~transformers.Trainer`] that writes each checkpoint elsewhere, flushes it to disk, then renames it; and keeps a
    sharded model in shards within checkpoints only. Ranks must see one file system, or save on each node
    (`save_on_each_node`).

    Attributes:
        checkpoint_parts (`list[CheckpointPart]`): written into each checkpoint that can be resumed.
    """

    checkpoint_parts: list[CheckpointPart]
    _is_saving = False

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As transformers'. Goes on from the last complete checkpoint if `resume_from_checkpoint` is `True`; see
        [`last_complete_checkpoint`] for a script that also starts the run."""
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model so that `from_pretrained` loads it. A sharded model is gathered first, on all ranks; only
        within checkpoints does it stay in shards where FSDP's `state_dict_type` says so."""
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        if _internal_call and "SHARDED_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            return None
        model = unsharded_model(self.accelerator, self.model)
        if model is not None:
            self._write_model(self.args.output_dir if output_dir is None else output_dir, model)
        self.accelerator.wait_for_everyone()

    def save_whole_model(self, name: str, model: PreTrainedModel, state_dict: dict):
        """Saves a model with these weights and its processor as `output_dir/name`: all of it or nothing."""
        staged = Path(self.args.output_dir, SAVING, name)
        self._write_model(staged, model, state_dict=state_dict)
        flush_to_disk(staged)
        publish_folder(name, self.args.output_dir)

    def _write_model(self, folder: str | os.PathLike, model: PreTrainedModel, **kwargs):
        model.save_pretrained(folder, **kwargs)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, SAVING) if self._is_saving else folder

    def _save_checkpoint(self, model, trial):
        run_dir, name = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = os.path.join(run_dir, SAVING, name)
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        if self.state.best_model_checkpoint == staged:
            self.state.best_model_checkpoint = os.path.join(run_dir, name)
            if self.args.should_save:
                self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero():
            flush_to_disk(staged)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish_folder(name, run_dir)
            best = os.path.basename(self.state.best_model_checkpoint or name)
            rotate_checkpoints(run_dir, self.args.save_total_limit, keep=[name, best])
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        for part in self.checkpoint_parts:
            part.save(output_dir, self.args.should_save)


__all__ = ["CheckpointPart", "WholeCheckpoints"]
