"""What a person wants to read while something trains: its name, the step, the losses and the time left, in a line."""

import math
import sys
import time

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


WIDTH = 79
NAME_WIDTH = len("MMU, projectors")
LOSSES = {"text_loss": "text loss", "flow_loss": "flow loss"}


class Progress:
    """
    One line that moves on in a terminal. Elsewhere, in a log file say, a line every 15 seconds.

    Args:
        name (`str`): of what is trained.
        num_steps (`int`)
    """

    def __init__(self, name: str, num_steps: int):
        self.name, self.num_steps = name, num_steps
        self.start, self.last_shown = time.monotonic(), -math.inf

    def show(self, step: int, losses: dict[str, float]):
        """After `step` steps; the last one is always shown."""
        is_last, in_terminal, now = step == self.num_steps, sys.stdout.isatty(), time.monotonic()
        if not is_last and now - self.last_shown < (0.2 if in_terminal else 15):
            return
        self.last_shown, seconds = now, now - self.start
        columns = [f"{self.name:<{NAME_WIDTH}}", f"step {step:>{len(str(self.num_steps))}} of {self.num_steps}"]
        columns += [f"{name} {loss:.3f}" for name, loss in losses.items()]
        left = seconds / step * (self.num_steps - step)
        columns.append(f"took {_clock(seconds)}" if is_last else f"{_clock(left)} left")
        line = "  ".join(columns)
        if in_terminal:
            print(f"\r{line:<{WIDTH}}", end="\n" if is_last else "", flush=True)
        else:
            print(line, flush=True)


class ProgressLine(TrainerCallback):
    """The same of a Trainer: [`show_progress`]."""

    def __init__(self, name: str):
        self.name, self.losses = name, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = Progress(self.name, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:  # the last one is shown with its own losses, which are logged later
            self.progress.show(state.global_step, self.losses)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            own = {name: logs[key] for key, name in LOSSES.items() if key in logs}
            self.losses = own or {"loss": logs["loss"]}

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.show(state.global_step, self.losses)


def show_progress(trainer: Trainer, name: str) -> Trainer:
    """Takes away the bar and the dictionaries of all figures that transformers prints, and shows a line instead."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressLine(name))
    return trainer


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
