"""Draws the prompts of a task and scores what was drawn, on all ranks."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..evaluate import result_of
from ..ranks import gathered, rank_and_size
from ..task import Task
from .draw import check_draws, draw_prompts
from .frechet import features_of, frechet_distance
from .tasks import DrawingTask


FOLDER = "drawings"
CHUNK = 32  # images that are scored, or seen by Inception, at a time


def draw_and_score(
    pipe,
    task: DrawingTask,
    model: str,
    batch_size: int,
    output_dir: str | Path,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[dict], float | None]:
    """
    Draws what is not drawn yet into `output_dir/drawings/TASK--PROTOCOL`, and scores all of it. All ranks call it and
    share both; neither their number nor the batch size changes a score, beyond the rounding of bytes of an image.

    Args:
        pipe ([`RosettaPipeline`])
        task ([`DrawingTask`])
        model (`str`): its name, for the manifest.
        batch_size (`int`): drawings at a time, on each rank.
        output_dir (`str` or `Path`)
        seed (`int`, defaults to 0): of the first drawing, where the prompts have none.
        say (`Callable`, *optional*): is told of progress, a line a time.

    Returns:
        `tuple`: the outcome of each drawing, of which `task.metrics` makes figures, and the Frechet distance, `None`
        if the task has no reference.

    Raises:
        ValueError: before anything is drawn, if the model does not draw, an image of the reference or an earlier
            drawing cannot be read, or the folder holds other drawings.
    """
    check_draws(pipe)
    reference = task.reference
    if isinstance(reference, list):
        reference = _features(reference, task)
    drawings = draw_prompts(
        pipe,
        task.prompts,
        Path(output_dir, FOLDER, task.key),
        model,
        task.num_images_per_prompt,
        seed,
        batch_size,
        task.noise_device,
        task.settings,
        say,
    )
    outcomes = _outcomes(drawings.records, drawings.files, task)
    distance = None if reference is None else frechet_distance(_features(drawings.files, task), reference)
    return outcomes, distance


def evaluate_drawing(
    pipe,
    task: DrawingTask,
    model: str,
    batch_size: int,
    output_dir: str | Path,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """
    As [`draw_and_score`], with what is said of a task as [`~trainer.evaluation.evaluate`] says it. `seed` is of the
    bootstrap, too, and `settings` are those of the pipeline. The Frechet distance has no interval: its `low` and
    `high` are `None`.
    """
    outcomes, distance = draw_and_score(pipe, task, model, batch_size, output_dir, seed, say)
    told = Task(task.name, task.protocol, [], None, task.metrics, dataset=task.dataset, remarks=task.remarks)
    result = {**result_of(told, outcomes, seed), "settings": {**task.settings, "noise_device": task.noise_device}}
    if distance is not None:
        result["metrics"] = {"fid": {"value": distance, "low": None, "high": None}, **result["metrics"]}
        result["higher_is_better"] = False
    return result


def _outcomes(records: list[dict], files: list[Path], task: DrawingTask) -> list[dict]:
    """Those of all drawings, in order; each rank scores its part."""

    def scored(some: list[int]) -> list[dict]:
        of_scores = [score([files[i] for i in some], [records[i] for i in some]) for score in task.scores]
        return [{key: value for one in own for key, value in one.items()} for own in zip(*of_scores, strict=True)]

    return _shared(scored, len(files))


def _features(files: list[Path], task: DrawingTask) -> torch.Tensor:
    """`(N, D)`, of all files, in order; each rank sees its part."""
    return torch.stack(_shared(lambda some: [*features_of([files[i] for i in some], task.inception)], len(files)))


def _shared(function: Callable[[list[int]], list], number: int) -> list:
    """What a function makes of each number below another, `CHUNK` at a time, every rank of its part."""
    rank, size = rank_and_size()
    own, found = [*range(number)][rank::size], {}
    for start in range(0, len(own), CHUNK):
        some = own[start : start + CHUNK]
        found |= zip(some, function(some), strict=True)
    found = gathered(found)
    return [found[i] for i in range(number)]


__all__ = ["draw_and_score", "evaluate_drawing"]
