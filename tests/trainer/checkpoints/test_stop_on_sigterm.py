"""`enable_jit_checkpoint`: SIGTERM loses nothing, wherever in a step it comes."""

import os
import signal

import pytest
import torch
from transformers import TrainerCallback

from trainer.checkpoints.stop_on_sigterm import StopAtStepEnd


class Terminated(TrainerCallback):
    """Is told to stop at an event of a step, as after a SIGTERM."""

    def __init__(self, event: str, step: int):
        self.step, self.manager = step, None
        setattr(self, event, self._request)

    def _request(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.manager.is_checkpoint_requested = True


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step"])
def test_stopped_and_resumed_it_is_the_undisturbed_run(event, tiny_model, records, trainer_of, tmp_path):
    whole = tiny_model()
    trainer_of(whole, records(16), ema_decay=0.5, output_dir=tmp_path / "whole").train()

    def train(callbacks, resume=None):
        model = tiny_model()
        trainer = trainer_of(model, records(16), callbacks=callbacks, ema_decay=0.5, enable_jit_checkpoint=True)
        for callback in callbacks:
            callback.manager = trainer._stop.jit_manager
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    _, stopped = train([Terminated(event, step=1)])
    assert stopped.was_stopped and stopped.state.global_step == 2
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "ema").exists() and not list(tmp_path.rglob("*incomplete*"))
    resumed, trainer = train([], resume=True)
    assert not trainer.was_stopped and (tmp_path / "ema").exists()
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_the_signal_is_heard_during_training_only(tiny_model, records, trainer_of, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(tiny_model(), records(16), enable_jit_checkpoint=True)
    trainer._stop.jit_manager.kill_wait = 0

    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_substep_end(self, args, state, control, **kwargs):
            pass

    trainer.add_callback(Send())
    trainer.train()
    assert trainer.was_stopped and 1 <= trainer.state.global_step < 4
    assert signal.getsignal(signal.SIGTERM) == before
    assert sum(isinstance(callback, StopAtStepEnd) for callback in trainer.callback_handler.callbacks) == 1
