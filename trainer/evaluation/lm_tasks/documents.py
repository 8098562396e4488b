"""What the task files beside this one read: the samples of the authors' protocol as documents of lm-eval."""

import json

import datasets

from trainer.evaluation import language, table1
from trainer.evaluation.task import Choices, Question, Sample


def _documents(name: str, allow_code: bool = False):
    def documents(data="data", tokenizer=None, pretrained=None, **others):
        """`data` from `--metadata`; the rest are the arguments of the model."""
        if tokenizer is None or isinstance(tokenizer, str):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer or pretrained)
        task = table1.load(name, data, tokenizer, allow_code)
        records = [{"id": s.id, "prompt": s.request.prompt, "answer": json.dumps(s.answer)} for s in task.samples]
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(records)})

    return documents


def _score(score, request):
    def process_results(document: dict, results: list) -> dict:
        """The log-likelihoods of choices are pairs with whether they are the greedy ones."""
        sample = Sample(document["id"], request, json.loads(document["answer"]))
        output = [likelihood for likelihood, _ in results] if isinstance(request, Choices) else results[0]
        return {"acc": score(sample, output)["right"]}

    return process_results


def prompt(document: dict) -> str:
    return document["prompt"]


mmlu, bbh, arc_challenge = _documents("mmlu"), _documents("bbh"), _documents("arc_challenge")
mbpp = _documents("mbpp", allow_code=True)  # lm-eval asks for `--confirm_run_unsafe_code`
likeliest = _score(language.likeliest, Choices("", [*"ABCD"]))
bbh_score = _score(language.bbh_score, Question("", 128))
mbpp_score = _score(language.mbpp_score, Question("", 512))
