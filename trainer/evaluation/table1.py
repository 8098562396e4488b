"""The paper's Table 1 but for its drawings: each task, and what it takes to be the authors' figure."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from .language import arc_challenge, bbh, mbpp, mmlu
from .task import Task
from .understanding import ai2d, mmbench_cn, mmbench_en, mmmu, pope, realworldqa


# Each of a folder of data and a tokenizer.
TABLE1: dict[str, Callable[..., Task]] = {
    "mmlu": mmlu,
    "bbh": bbh,
    "arc_challenge": arc_challenge,
    "mbpp": mbpp,
    "mmmu": mmmu,
    "mmbench_en": mmbench_en,
    "mmbench_cn": mmbench_cn,
    "pope": pope,
    "ai2d": ai2d,
    "realworldqa": realworldqa,
}
# Those whose scores count dummies: the samples that give every rank as many.
COUNT_DUMMIES = ("mmmu", "mmbench_en", "mmbench_cn", "pope", "ai2d", "realworldqa")


def with_authors_bugs(task: Task, num_ranks: int) -> Task:
    """
    A task that shows beside each figure what the authors' evaluation on `num_ranks` would have made of the same
    answers: where ranks are left without a sample, a first one is counted again without an answer; and MBPP's answers
    go on behind [DONE].
    """
    if task.name == "mbpp":
        return dataclasses.replace(task, metrics=_with_done_bug)
    if task.name not in COUNT_DUMMIES:
        return task
    dummies = [task.score(sample, "") for sample in task.samples[: -len(task.samples) % num_ranks]]

    def metrics(outcomes: list[dict]) -> dict[str, float]:
        padded = task.metrics([*outcomes, *dummies])
        return {**task.metrics(outcomes), **{f"{name}_on_{num_ranks}_ranks": value for name, value in padded.items()}}

    return dataclasses.replace(task, metrics=metrics)


def _with_done_bug(outcomes: list[dict]) -> dict[str, float]:
    right, with_bug = (sum(outcome[key] for outcome in outcomes) for key in ("right", "right_with_bug"))
    return {"accuracy": right / len(outcomes), "accuracy_behind_done": with_bug / len(outcomes)}


def load(name: str, data: Path, tokenizer, allow_code: bool = False) -> Task:
    """
    Raises:
        ValueError: if its data is missing or of another format, or it runs code that is not allowed.
    """
    arguments = {"allow_code": allow_code} if name == "mbpp" else {}
    return TABLE1[name](Path(data), tokenizer, **arguments)


__all__ = ["TABLE1", "load", "with_authors_bugs"]
