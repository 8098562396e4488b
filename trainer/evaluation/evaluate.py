"""Runs tasks on a model, on all ranks, and puts their outcomes together."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modeling_rosetta.images_rosetta import read_image

from .intervals import bootstrap_intervals, wilson_interval
from .model_under_test import ModelUnderTest
from .outcomes import Outcomes
from .ranks import gathered, rank_and_size
from .task import Sample, Task


LIBRARIES = ("rosetta-hf", "torch", "transformers", "diffusers", "accelerate")


def evaluate(
    model: ModelUnderTest,
    tasks: list[Task],
    batch_size: int = 8,
    output_dir: str | Path | None = None,
    seed: int = 0,
    facts: dict | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """
    Evaluates a model on tasks. All ranks call it and share the samples; neither their number nor the batch size
    changes a score.

    Args:
        model ([`ModelUnderTest`])
        tasks (`list[Task]`)
        batch_size (`int`, defaults to 8): samples that one process asks at once.
        output_dir (`str` or `Path`, *optional*): where the outcome of each sample is written, and read again by an
            evaluation that goes on.
        seed (`int`, defaults to 0): of the bootstrap.
        facts (`dict`, *optional*): what the outcomes depend on besides the task, such as the model's name.
        say (`Callable`, *optional*): is told of progress, a line a time, on the main rank.

    Returns:
        `list[dict]`: the result of each task, the same on all ranks: `task`, `protocol`, `metrics` (of each name
        `value`, `low`, `high`), `num_samples`, `num_missed`, `seed`, `remarks`.

    Raises:
        ValueError: before any work, if an argument is not valid, the model cannot do a task, an image cannot be read,
            or `output_dir` holds outcomes of another evaluation.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1, got {batch_size!r}.")
    for task in tasks:
        check_task(task)
        model.check([sample.request for sample in task.samples], task.image_layout)
    rank, results = rank_and_size()[0], []
    for task in tasks:
        store = None
        if output_dir is not None:
            store = Outcomes(output_dir, task.key, rank, {**(facts or {}), "samples": fingerprint(task)})
        outcomes = collect(model, task, batch_size, store, say if rank == 0 else lambda line: None)
        results.append(result_of(task, outcomes, seed))
    return results


def collect(
    model: ModelUnderTest,
    task: Task,
    batch_size: int,
    store: Outcomes | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """
    The outcomes of all samples of a task, in order, on every rank. Each rank takes every n-th of what is left, and all
    of them the same number of batches: one that has nothing left asks something again, and forgets it.
    """
    rank, size = rank_and_size()
    seen = gathered({} if store is None else store.read())
    left = [sample for sample in task.samples if sample.id not in seen]
    own = left[rank::size]
    num_batches = -(-len(left[::size]) // batch_size)
    new = {}
    for number in range(num_batches):
        batch = own[number * batch_size : (number + 1) * batch_size]
        outputs = model.outputs([sample.request for sample in batch or left[:1]], task.image_layout)
        found = {sample.id: task.score(sample, output) for sample, output in zip(batch, outputs, strict=False)}
        if store is not None and found:
            store.write(found)
        new |= found
        say(f"{task.key}: batch {number + 1} of {num_batches}")
    # Through JSON, as those that were read are.
    done = {**seen, **json.loads(json.dumps(gathered(new)))}
    return [done[sample.id] for sample in task.samples]


def result_of(task: Task, outcomes: list[dict], seed: int = 0) -> dict:
    """What is said of a task: its figures with their intervals, and how many samples they are of."""
    figures = task.metrics(outcomes)
    intervals = {}
    shares = {"accuracy"} & {*figures}
    if {*figures} - shares:
        intervals = bootstrap_intervals(outcomes, task.metrics, seed)
    for name in shares:
        intervals[name] = wilson_interval(sum(outcome["right"] for outcome in outcomes), len(outcomes))
    metrics = {
        name: {"value": figure, "low": intervals[name][0], "high": intervals[name][1]}
        for name, figure in figures.items()
    }
    return {
        "task": task.name,
        "protocol": task.protocol,
        "metrics": metrics,
        "higher_is_better": task.higher_is_better,
        "num_samples": len(outcomes),
        "num_missed": sum(bool(outcome.get("missed")) for outcome in outcomes),
        "seed": seed,
        "dataset": task.dataset,
        "remarks": [*task.remarks],
    }


def check_task(task: Task):
    """
    Raises:
        ValueError: if a task has no samples, two of one name, of several kinds, or an image that cannot be read.
    """
    if not task.samples:
        raise ValueError(f"Task {task.key} has no samples.")
    names = [sample.id for sample in task.samples]
    if len({*names}) < len(names):
        raise ValueError(f"Task {task.key} has samples of the same id, e.g. {max(names, key=names.count)!r}.")
    if len({type(sample.request) for sample in task.samples}) > 1:
        raise ValueError(f"Task {task.key} has samples of several kinds of request.")
    for sample in task.samples:
        for image in images_of(sample):
            read_image(image, f"Task {task.key}, sample {sample.id!r}: its image")


def images_of(sample: Sample) -> list:
    prompt = getattr(sample.request, "prompt", "")
    if isinstance(prompt, str):
        return []
    contents = [message["content"] for message in prompt if not isinstance(message["content"], str)]
    return [item["image"] for content in contents for item in content if item["type"] == "image"]


def fingerprint(task: Task) -> str:
    """Of the samples of a task and what they ask, without their images."""
    digest = hashlib.sha256()
    for sample in task.samples:
        prompt: str | list = sample.request.prompt
        if not isinstance(prompt, str):
            prompt = [
                item if isinstance(item, str) else item.get("text", item["type"])
                for message in prompt
                for item in message["content"]
            ]
        others = {k: v for k, v in vars(sample.request).items() if k != "prompt"}
        digest.update(json.dumps([sample.id, prompt, others, sample.answer], default=str).encode())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # a working tree that was not installed
            continue
    return found


__all__ = ["check_task", "collect", "evaluate", "library_versions", "result_of"]
