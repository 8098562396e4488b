"""What the task files beside this one read: samples of the authors' protocol as documents of lmms-eval, of the data
sets in the folder that `ROSETTA_DATA` names."""

import json
import os

import datasets

from trainer.evaluation import table1, understanding
from trainer.evaluation.task import Question, Sample


FEATURES = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    | {"answer": datasets.Value("string")}
)


def _documents(name: str):
    def documents(nothing):
        """In place of the empty data set that lmms-eval has loaded."""
        records = []
        for sample in table1.load(name, os.environ.get("ROSETTA_DATA", "data"), None).samples:
            image, text = sample.request.prompt[0]["content"]
            image = image["image"]
            image = {"bytes": image, "path": None} if isinstance(image, bytes) else {"bytes": None, "path": image}
            answer = json.dumps(sample.answer)
            records.append({"id": sample.id, "image": image, "text": text["text"], "answer": answer})
        return datasets.Dataset.from_list(records, features=FEATURES)

    return documents


def _score(score):
    def process_results(document: dict, results: list[str]) -> dict:
        sample = Sample(document["id"], Question("", 1), json.loads(document["answer"]))
        outcome = score(sample, results[0])
        return {"acc": outcome["right"], "f1": outcome}

    return process_results


def images(document: dict) -> list:
    return [document["image"]]


def text(document: dict, lmms_eval_specific_kwargs=None) -> str:
    return document["text"]


def f1(outcomes: list[dict]) -> float:
    return understanding.pope_metrics(outcomes)["f1"]


mmmu, mmbench_en, mmbench_cn = _documents("mmmu"), _documents("mmbench_en"), _documents("mmbench_cn")
pope, ai2d, realworldqa = _documents("pope"), _documents("ai2d"), _documents("realworldqa")
mmmu_score, letter_score = _score(understanding.mmmu_score), _score(understanding.letter_score)
pope_score, ai2d_score = _score(understanding.pope_score), _score(understanding.ai2d_score)
realworldqa_score = _score(understanding.realworldqa_score)
