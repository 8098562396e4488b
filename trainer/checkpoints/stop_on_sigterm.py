"""`enable_jit_checkpoint`: on SIGTERM the run saves and stops when its step is over."""

from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_jit_checkpoint import JITCheckpointCallback


class StopAtStepEnd(JITCheckpointCallback):
    """
    transformers' callback, which saves in the middle of a step, when its batches are taken from the data and its
    random numbers drawn, but the weights are those before: resumed, the run would go on without that step. Here the
    step is finished first, on all ranks if one of them was told to stop.

    Args:
        trainer ([`~transformers.Trainer`]): with `enable_jit_checkpoint`; its own callback is replaced.

    Attributes:
        has_stopped (`bool`): whether the run ended before its time.
    """

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.trainer = trainer
        callback: Any = trainer.pop_callback(JITCheckpointCallback)
        self.jit_manager = callback.jit_manager  # handles the signal already
        self.has_stopped = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.has_stopped = False

    def on_step_begin(self, args, state, control, **kwargs):
        pass

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        pass

    def on_step_end(self, args, state, control, **kwargs):
        requested = self.jit_manager.is_checkpoint_requested
        if args.world_size > 1:
            requested = self.trainer.accelerator.reduce(torch.tensor(float(requested), device=args.device)) > 0
        if requested:
            self.jit_manager.is_checkpoint_requested = False
            self.has_stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        pass


__all__ = ["StopAtStepEnd"]
