"""Small tasks that a model is evaluated on while it trains."""

import contextlib

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import TrainerCallback

from modeling_rosetta import RosettaPipeline

from .evaluate import check_task, collect
from .model_under_test import ModelUnderTest
from .task import Task


class TasksInTraining(TrainerCallback):
    """
    Evaluates tasks every so many steps and after the last, on all ranks, and logs `eval_TASK_FIGURE`. Prompts, and
    the noise of drawings, are the same each time; a drawing is scored by the task's `score`. The random state
    of the training is left alone.

    Args:
        trainer ([`RosettaTrainer`]): with a `RosettaProcessor` as `processing_class`; to draw, with a `vae`.
        tasks (`list[Task]`)
        steps (`int`)
        batch_size (`int`, *optional*): of one process; by default that of the evaluation.

    Raises:
        ValueError: if a task cannot be done, or `steps` is not positive.
    """

    def __init__(self, trainer, tasks: list[Task], steps: int, batch_size: int | None = None):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"`steps` must be an integer of at least 1, got {steps!r}.")
        self.trainer, self.tasks, self.steps = trainer, tasks, steps
        self.batch_size = batch_size or trainer.args.per_device_eval_batch_size
        for task in tasks:
            check_task(task)
            under_test(trainer.model, trainer.processing_class, trainer.vae).check(
                [sample.request for sample in task.samples], task.image_layout
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.steps and state.global_step < state.max_steps:
            return
        with self.trainer.paused(), aside(model, args.device):
            tested, figures = under_test(model, self.trainer.processing_class, self.trainer.vae), {}
            for task in self.tasks:
                found = task.metrics(collect(tested, task, self.batch_size))
                figures |= {f"eval_{task.name}_{name}": figure for name, figure in found.items()}
        should_log = control.should_log  # which a log takes as done
        self.trainer.log(figures)
        control.should_log = should_log


def under_test(model, processor, vae) -> ModelUnderTest:
    """A model that trains, as it is asked."""
    return ModelUnderTest(RosettaPipeline(model, vae, FlowMatchEulerDiscreteScheduler(), processor))


@contextlib.contextmanager
def aside(model, device: torch.device):
    """In evaluation mode, without gradients, on another random state."""
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        model.train(was_training)


__all__ = ["TasksInTraining", "aside", "under_test"]
