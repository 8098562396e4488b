"""A Trainer whose checkpoints are whole or not there at all, whenever the run is killed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .adapters import has_adapters, load_adapters, save_adapters
from .folders import (
    SAVING,
    check_checkpoint,
    flush_to_disk,
    last_complete_checkpoint,
    publish_folder,
    remove_unfinished,
    rotate_checkpoints,
)
from .sharding import unsharded_model


class CheckpointPart(Protocol):
    """What a checkpoint holds besides transformers' own files."""

    def save(self, folder: str, is_main_process: bool):
        """Writes it into a checkpoint. All ranks call this."""


class WholeCheckpoints(Trainer):
    """
    [`~transformers.Trainer`] that writes each checkpoint elsewhere, flushes it to disk, then renames it; and keeps a
    sharded model in shards within checkpoints only. Of a model with adapters, a checkpoint holds these and no more.
    Ranks must see one file system, or save on each node (`save_on_each_node`).

    Attributes:
        checkpoint_parts (`list[CheckpointPart]`): written into each checkpoint that can be resumed.
    """

    checkpoint_parts: list[CheckpointPart]
    _is_saving = False

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As transformers'. Goes on from the last complete checkpoint if `resume_from_checkpoint` is `True`; see
        [`last_complete_checkpoint`] for a script that also starts the run."""
        return super().train(self.find_checkpoint(resume_from_checkpoint), *args, **kwargs)

    def find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """
        The folder of the checkpoint to go on from, when what a killed run left unfinished is cleared away. All
        processes must call this.

        Raises:
            ValueError: if there is no such checkpoint.
        """
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is None or resume_from_checkpoint is False:
            return None
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"No valid checkpoint found in output directory ({self.args.output_dir})")
        check_checkpoint(resume_from_checkpoint)
        return str(resume_from_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model so that `from_pretrained` loads it. A sharded model is gathered first, on all ranks; only
        within checkpoints does it stay in shards where FSDP's `state_dict_type` says so."""
        if not self.is_fsdp_enabled and not has_adapters(self.model):
            return super().save_model(output_dir, _internal_call)
        if _internal_call and self._saves_shards:
            return None
        if self.is_fsdp_enabled:
            model = unsharded_model(self.accelerator, self.model)
        else:
            model = self.model if self.args.should_save else None
        if model is not None:
            self._write_model(self.args.output_dir if output_dir is None else output_dir, model)
        self.accelerator.wait_for_everyone()

    def save_whole_model(self, name: str, model: PreTrainedModel, state_dict: dict):
        """Saves a model with these weights and its processor as `output_dir/name`: all of it or nothing."""
        staged = Path(self.args.output_dir, SAVING, name)
        self._write_model(staged, model, state_dict)
        flush_to_disk(staged)
        publish_folder(name, self.args.output_dir)

    @property
    def _saves_shards(self) -> bool:
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return self.is_fsdp_enabled and "SHARDED_STATE_DICT" in str(plugin.state_dict_type)

    def _write_model(self, folder: str | os.PathLike, model: PreTrainedModel, state_dict: dict | None = None):
        if has_adapters(model):
            save_adapters(folder, model, state_dict)
        else:
            model.save_pretrained(folder, state_dict=state_dict)
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
        # transformers looks for the best one in the folder of this one, and for this one before anything is in it.
        best = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if os.path.basename(best) == name or os.path.isdir(best):
            self.state.best_model_checkpoint = best
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

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if has_adapters(self.model) and not self.is_fsdp_enabled:
            load_adapters(resume_from_checkpoint, self.model)
        else:
            with _quiet("transformers.modeling_rope_utils"):  # it reads the configuration as one of no model
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if has_adapters(self.model) and not self.is_fsdp_enabled:
            load_adapters(self.state.best_model_checkpoint, self.model)
        else:
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result):
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})  # saved once
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        for part in self.checkpoint_parts:
            part.save(output_dir, self.args.should_save)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


__all__ = ["CheckpointPart", "WholeCheckpoints"]
