"""What a person wants to read of a run: what it is, a line a log, and a page."""

import json
import time
from pathlib import Path

from transformers import TrainerCallback

from .run_page import write_run_page


LOG_NAME = "log.jsonl"
SECONDS_BETWEEN_PAGES = 20
LINE = {"text_loss": "text loss", "flow_loss": "flow loss", "grad_norm": "gradient", "skipped_records": "skipped"}


class RunLog(TrainerCallback):
    """
    On the main process: prints what the run is and then a line a log, instead of all figures; writes these to
    `output_dir/log.jsonl`, a line each, and the page `output_dir/run.html`. A run that goes on goes on with both.

    Args:
        title (`str`): the name of the stage.
        header (`list[str]`): further lines of what the run is.
    """

    def __init__(self, title: str, header: list[str] | None = None):
        self.title, self.header = title, header or []
        self._last_page = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self.lines = [*parameters_in_words(model), *self.header]
        if state.global_step:
            self.lines.append(f"goes on after step {state.global_step:,} of {state.max_steps:,}")
        else:
            self.lines.append(f"a new run of {state.max_steps:,} steps")
        print("\n".join([self.title, *(f"  {line}" for line in self.lines)]), flush=True)
        file = Path(args.output_dir, LOG_NAME)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(log)}\n" for log in state.log_history))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not state.log_history:
            return
        with open(Path(args.output_dir, LOG_NAME), "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(state.log_history[-1])}\n")
        print(log_line(logs, state.global_step, state.max_steps), flush=True)
        if time.monotonic() - self._last_page > SECONDS_BETWEEN_PAGES:
            self._write_page(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._write_page(args, state)

    def _write_page(self, args, state):
        write_run_page(args.output_dir, self.title, self.lines, state.log_history)
        self._last_page = time.monotonic()


def parameters_in_words(model) -> list[str]:
    """How many parameters there are, are trained, and belong to which experts."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model.config
    types = ", ".join(token_type["name"] for token_type in config.token_types)
    experts = ", ".join(f"{number} of {pool}" for pool, number in config.expert_pools.items())
    return [
        f"{total:,} parameters, {trained:,} trained, {total - trained:,} frozen",
        f"token types {types}; experts {experts}, {config.num_experts_per_tok} a token",
    ]


def log_line(logs: dict, step: int, max_steps: int) -> str:
    """A log in a line."""
    columns = [f"step {step:>{len(f'{max_steps:,}')},} of {max_steps:,}"]
    if "loss" not in logs:  # of an evaluation, or the end of the run
        held_out = [name for name in logs if name.endswith("_loss") and not name.endswith("aux_loss")]
        seconds = [name for name in logs if name.endswith("_runtime")]
        shown = [f"{name} {logs[name]:.4g}" for name in held_out or seconds]
        return "  ".join([*columns, *shown])
    columns += [f"{shown} {logs[name]:.4g}" for name, shown in LINE.items() if logs.get(name) is not None]
    if "tokens_per_second" in logs:
        columns.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "time_left" in logs:
        columns.append(f"{_clock(logs['time_left'])} left")
    return "  ".join(columns)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


__all__ = ["RunLog", "log_line", "parameters_in_words"]
