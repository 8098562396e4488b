"""What an evaluation is made of: a task has samples, each of which asks the model one thing, and a score."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


# As raw text, or as the messages of a conversation that the assistant answers.
Prompt = str | list[dict]


@dataclass(frozen=True)
class Choices:
    """
    Asks how likely each continuation of a prompt is. The model's output is a list of log-likelihoods, in nats, summed
    over the tokens of each.

    Args:
        prompt (`str` or `list[dict]`)
        continuations (`list[str]`): each tokenised apart from the prompt, so that `"A"` is the letter without a space.
    """

    prompt: Prompt
    continuations: list[str]


@dataclass(frozen=True)
class Question:
    """
    Asks for the likeliest continuation, token by token, until an end token. The model's output is its text.

    Args:
        prompt (`str` or `list[dict]`)
        max_new_tokens (`int`)
    """

    prompt: Prompt
    max_new_tokens: int


@dataclass(frozen=True)
class Drawing:
    """
    Asks for a picture. The model's output is a `PIL.Image.Image`.

    Args:
        prompt (`str`)
        seed (`int`): of its noise, which is its own, so that no other picture of a batch changes it.
        settings (`dict`): further arguments of the pipeline, the same for all samples of a task.
    """

    prompt: str
    seed: int
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """
    Args:
        id (`str`): its name among the samples of its task.
        request ([`Choices`], [`Question`] or [`Drawing`])
        answer: the right one, as the score of the task reads it.
        group (`str`, *optional*): a part of the task that has figures of its own, such as a subject.
    """

    id: str
    request: Choices | Question | Drawing
    answer: Any = None
    group: str | None = None


def accuracy(outcomes: list[dict]) -> dict[str, float]:
    """The share of samples that are `right`; micro, all samples weigh the same."""
    return {"accuracy": sum(outcome["right"] for outcome in outcomes) / len(outcomes)}


@dataclass(frozen=True)
class Task:
    """
    Args:
        name (`str`)
        protocol (`str`): of the prompts and scores, in a word; figures of one protocol do not compare with another's.
        samples (`list[Sample]`): all of one kind of request.
        score (`Callable`): of a sample and the model's output the outcome, which JSON can hold: `right` is 1 or 0 or,
            where no metric needs it, left out; `missed` is true if nothing could be read from the output.
        metrics (`Callable`, defaults to [`accuracy`]): of all outcomes the figures by name, of which the first is the
            task's.
        higher_is_better (`bool`): of the task's figure.
        image_layout (`str`, *optional*): `"authors_inference"` for images as the authors' evaluation gives them, in
            place of what the processor says.
        dataset (`tuple[str, str]`): id on the Hub, and the name of the task there.
        remarks (`list[str]`): what of its figures cannot be compared, and why.
    """

    name: str
    protocol: str
    samples: list[Sample]
    score: Callable[[Sample, Any], dict]
    metrics: Callable[[list[dict]], dict[str, float]] = accuracy
    higher_is_better: bool = True
    image_layout: str | None = None
    dataset: tuple[str, str] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name with that of its protocol, as files are named."""
        return f"{self.name}--{self.protocol}"

    @property
    def num_samples(self) -> int:
        return len(self.samples)


__all__ = ["Choices", "Drawing", "Prompt", "Question", "Sample", "Task", "accuracy"]
