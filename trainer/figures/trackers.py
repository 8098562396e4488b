"""What tensorboard, wandb and trackio get of a run (`report_to`): figures in groups, drawings and answers."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import TrackioCallback


# The first that matches decides; what none matches is of the group `train`.
GROUPS = (
    (r"(eval|test)_(.+)", r"\1/\2"),
    (r"((?:capacity_rate|expert_load|experts_idle|router_entropy)_.+)", r"experts/\1"),
    (r"(maop|learning_rate|skipped)_(.+)", r"\1/\2"),
    (r"num_(.+)", r"counts/\1"),
    (r"(tokens_per_second|mfu|time_left)", r"speed/\1"),
    (r"(.+_(?:text|flow)_loss)", r"sources/\1"),
    (r"(.+)", r"train/\1"),
)


def grouped(logs: dict) -> dict:
    """The figures of a log by names of the form `group/name`, by which trackers sort them into sections."""
    return {_in_group(name): figure for name, figure in logs.items()}


def _in_group(name: str) -> str:
    return next(re.sub(pattern, group, name) for pattern, group in GROUPS if re.fullmatch(pattern, name))


class _Grouped(TrainerCallback):
    """A tracker's callback of transformers, with [`grouped`] names; the end of a run is logged as ever."""

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if "train_runtime" in logs:
            super().on_log(args, state, control, model=model, logs=logs, **kwargs)
        elif state.is_world_process_zero:
            self._start(args, state, model)
            self._log(grouped(logs), state.global_step)

    def show(self, prompts: list[str], images: list, questions: list[dict], answers: list[str], step: int):
        """Gives the tracker what was drawn and answered in a step."""
        raise NotImplementedError

    def _start(self, args, state, model):
        raise NotImplementedError

    def _log(self, figures: dict, step: int):
        raise NotImplementedError


class GroupedTensorBoard(_Grouped, TensorBoardCallback):  # type: ignore[misc]
    def _start(self, args, state, model):
        if self.tb_writer is None:
            self._init_summary_writer(args)

    def _log(self, figures: dict, step: int):
        for name, figure in figures.items():
            if isinstance(figure, int | float):
                self.tb_writer.add_scalar(name, figure, step)
        self.tb_writer.flush()

    def show(self, prompts: list[str], images: list, questions: list[dict], answers: list[str], step: int):
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            self.tb_writer.add_image(f"drawings/{number} {prompt}", np.asarray(image), step, dataformats="HWC")
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            self.tb_writer.add_text(f"answers/{number} {question['question']}", answer, step)
        self.tb_writer.flush()


class _LikeWandb(_Grouped):
    """trackio has wandb's functions. `_tracker` is the module of either."""

    _tracker: Any
    _initialized: bool
    setup: Callable

    def _start(self, args, state, model):
        if not self._initialized:
            self.setup(args, state, model)

    def _log(self, figures: dict, step: int):
        self._tracker.log({**figures, "train/global_step": step})

    def show(self, prompts: list[str], images: list, questions: list[dict], answers: list[str], step: int):
        shown = {
            f"drawings/{number}": self._tracker.Image(image, caption=prompt)
            for number, (prompt, image) in enumerate(zip(prompts, images, strict=True))
        }
        if questions:
            rows = [[entry["question"], answer] for entry, answer in zip(questions, answers, strict=True)]
            shown["answers"] = self._tracker.Table(columns=["question", "answer"], data=rows)
        self._log(shown, step)


class GroupedWandb(_LikeWandb, WandbCallback):  # type: ignore[misc]
    @property
    def _tracker(self):
        return self._wandb


class GroupedTrackio(_LikeWandb, TrackioCallback):  # type: ignore[misc]
    @property
    def _tracker(self):
        return self._trackio


GROUPED = {
    TensorBoardCallback: GroupedTensorBoard,
    WandbCallback: GroupedWandb,
    TrackioCallback: GroupedTrackio,
}


def group_names(callbacks: list):
    """Makes the tracker's callbacks among `callbacks` those of this file, with the writer or run that they have."""
    for callback in callbacks:
        if type(callback) in GROUPED:  # and no subclass of somebody's own
            callback.__class__ = GROUPED[type(callback)]


def trackers(callbacks: list) -> list[_Grouped]:
    """Those among `callbacks` that can `show`."""
    return [callback for callback in callbacks if isinstance(callback, _Grouped)]


__all__ = ["group_names", "grouped", "trackers"]
