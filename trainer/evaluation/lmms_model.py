"""Rosetta for lmms-eval, found by the entry point `lmms_eval.models`: `--model rosetta`."""

from accelerate import PartialState
from lmms_eval.api.model import lmms

from .loading import load_model_under_test
from .model_under_test import AUTHORS_IMAGES
from .task import Question


PROTOCOLS = {"stock": None, "authors": AUTHORS_IMAGES}
SAMPLING = ("temperature", "top_p", "top_k", "num_beams")


class Rosetta(lmms):
    """
    Answers lmms-eval's chat tasks, in batches.

    Args:
        pretrained (`str`): a folder or Hub id, whose code is run.
        protocol (`str`, defaults to `"stock"`): images as the model's processor gives them, or `"authors"`: as the
            authors' evaluation does, for the tasks of `lmms_tasks`.
        batch_size (`int` or `str`, defaults to 1)
        device (`str`, *optional*): by default that of this process.
        dtype (`str`, defaults to `"auto"`), revision (`str`, *optional*)
        max_batch_size: is not used.

    Raises:
        ValueError: if the model cannot be loaded, or lacks what the protocol needs.
    """

    is_simple = False

    def __init__(
        self, pretrained, protocol="stock", batch_size=1, device=None, dtype="auto", revision=None, max_batch_size=None
    ):
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"`protocol` must be one of {[*PROTOCOLS]}, got {protocol!r}.")
        self.device = device or PartialState().device
        self.batch_size, self.image_layout = int(batch_size), PROTOCOLS[protocol]
        self.tested = load_model_under_test(pretrained, self.device, dtype, revision)
        self.tested.processor(self.image_layout)

    def generate_until(self, requests) -> list[str]:
        answers: list[str | None] = [None] * len(requests)
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(str(sorted(self._sampling(request.args[2]).items())), []).append(i)
        for places in alike.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                asked = [self._question(*requests[i].args) for i in batch]
                sampling = self._sampling(requests[batch[0]].args[2])
                found = self.tested.answers(asked, self.image_layout, **sampling)
                for i, text in zip(batch, found, strict=True):
                    answers[i] = until(text, requests[i].args[2].get("until") or [])
        return answers

    def _question(self, context, doc_to_messages, generation, doc_id, task, split) -> Question:
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return Question(messages, generation.get("max_new_tokens", 1024))

    @staticmethod
    def _sampling(generation: dict) -> dict:
        """Greedy, unless the task samples."""
        if not generation.get("do_sample"):
            return {}
        return {"do_sample": True, **{key: generation[key] for key in SAMPLING if generation.get(key) is not None}}

    def loglikelihood(self, requests):
        raise NotImplementedError("lmms-eval gives chat models tasks of generation only.")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("Tasks of several rounds are not supported.")


def until(text: str, stops: str | list[str]) -> str:
    """What comes before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


__all__ = ["Rosetta"]
