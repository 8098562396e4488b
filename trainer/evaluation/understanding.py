"""The understanding half of Table 1 as the authors' evaluation asks it: an image, a question, a short answer."""

import ast
import base64
import io
import json
import random
import re
import string
from pathlib import Path

from PIL import Image

from . import answers, mmmu_answers
from .model_under_test import AUTHORS_IMAGES
from .records import file_of, folder_of, rows, saved_records
from .task import Question, Sample, Task, accuracy


AUTHORS = "authors"
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CHINESE = "请直接回答选项字母。"
PHRASE = "Answer the question using a single word or phrase."
CHINESE = re.compile("[\u4e00-\u9fff]")
REFERENCE_LENGTH = 64  # a shorter `image` of MMBench's files is the index of the row that has it
POPE_SUBSETS = ("adversarial", "popular", "random")
MMMU_SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design"),
    *("Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography"),
    *("History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music"),
    *("Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology"),
)


def about(image, text: str) -> list[dict]:
    """A conversation of one turn: an image, then a question about it."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def authors_task(
    name: str, samples: list[Sample], score, dataset: tuple[str, str], remarks=(), metrics=accuracy
) -> Task:
    return Task(name, AUTHORS, samples, score, metrics, True, AUTHORS_IMAGES, dataset, (*IMAGE_REMARKS, *remarks))


def mmmu(data: Path, tokenizer=None) -> Task:
    """`MMMU/MMMU` as a folder of the Hub, `mmmu/SUBJECT/validation-*.parquet`. Of several images the first alone is
    given, before the question, and all marks of images are left out of it."""
    import datasets

    source = "MMMU/MMMU: SUBJECT/validation-*.parquet"
    folder, samples = folder_of(data, "mmmu", source), []
    there = [subject for subject in MMMU_SUBJECTS if [*folder.glob(f"{subject}/validation-*.parquet")]]
    for subject in there:
        files = [str(file) for file in sorted(folder.glob(f"{subject}/validation-*.parquet"))]
        for record in rows(datasets.Dataset.from_parquet(files)):
            request = Question(about(record["image_1"], mmmu_prompt(record)), 32)
            samples.append(Sample(record["id"], request, mmmu_answer(record), subject))
    if not samples:
        raise ValueError(f"`data`: {folder} has none of the subjects of MMMU; it must hold {source}.")
    remarks = MMMU_REMARKS
    if len(there) < len(MMMU_SUBJECTS):
        remarks += (f"{len(MMMU_SUBJECTS) - len(there)} of its 30 subjects are missing.",)
    return authors_task("mmmu", samples, mmmu_score, ("MMMU/MMMU", "validation"), remarks)


def mmmu_prompt(record: dict) -> str:
    """An empty line comes before the sentence about letters. The marks of images go with the white space behind them,
    so that options that are images become one line."""
    if record["question_type"] == "multiple-choice":
        lines = "".join(f"({letter}) {text}\n" for letter, text in mmmu_options(record).items())
        prompt = f"{record['question']}\n{lines}\n{LETTER}"
    else:
        prompt = f"{record['question']}\n{PHRASE}"
    return re.sub(r"<image\s*\d+>\s*", "", prompt).strip()


def mmmu_options(record: dict) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, ast.literal_eval(record["options"]), strict=False))


def mmmu_answer(record: dict) -> dict:
    """What the score needs: the right answer, and the options by their letters, of which an open question has none."""
    options = mmmu_options(record) if record["question_type"] == "multiple-choice" else {}
    return {"right": record["answer"], "options": options}


def mmmu_score(sample: Sample, text: str) -> dict:
    right, options = sample.answer["right"], sample.answer["options"]
    if not options:
        return {"right": int(mmmu_answers.names_open(text, right)), "given": text, "missed": not text.strip()}
    given = mmmu_answers.chosen(text, options)
    # Theirs guesses with one generator for all, so that the guess depends on the ranks; here on the question.
    said = given or random.Random(sample.id).choice([*options])
    return {"right": int(said == right), "given": text, "missed": given is None}


def mmbench_en(data: Path, tokenizer=None) -> Task:
    """VLMEvalKit's `mmbench/MMBench_DEV_EN.tsv`: the plain mean over all of its rows."""
    return mmbench(data, "mmbench_en", "MMBench_DEV_EN", ("lmms-lab/MMBench", "en"))


def mmbench_cn(data: Path, tokenizer=None) -> Task:
    """VLMEvalKit's `mmbench/MMBench_DEV_CN.tsv`."""
    return mmbench(data, "mmbench_cn", "MMBench_DEV_CN", ("lmms-lab/MMBench", "cn"))


def mmbench(data: Path, name: str, file_name: str, dataset: tuple[str, str]) -> Task:
    import pandas

    source = f"{file_name}.tsv of VLMEvalKit"
    file = file_of(folder_of(data, "mmbench", source), f"{file_name}.tsv", source)
    table = pandas.read_csv(file, sep="\t")
    records = [
        {key: value for key, value in record.items() if not pandas.isna(value)} for record in table.to_dict("records")
    ]
    images = {str(record["index"]): str(record["image"]) for record in records}
    samples = []
    for record in records:
        index, encoded = str(record["index"]), str(record["image"])
        if len(encoded) <= REFERENCE_LENGTH:
            encoded = images.get(encoded, "")
        try:
            image = as_jpeg(base64.b64decode(encoded))
        except (ValueError, OSError) as error:
            raise ValueError(f"`data`: the image of row {index} in {file} cannot be read: {error}") from error
        request = Question(about(image, mmbench_prompt(record)), 5)
        samples.append(Sample(index, request, str(record["answer"]).strip().upper(), record.get("category")))
    return authors_task(name, samples, letter_score, dataset, MMBENCH_REMARKS)


def mmbench_prompt(record: dict) -> str:
    """Of a row without its empty cells."""
    hint = f"{record['hint']}\n" if "hint" in record else ""
    question = f"{hint}{record.get('question', '')}"
    options = "".join(f"\n{letter}. {record[letter]}" for letter in string.ascii_uppercase if letter in record)
    sentence = LETTER_CHINESE if CHINESE.search(question + options) else LETTER
    return f"{question}{options}\n{sentence}"


def as_jpeg(image: bytes) -> bytes:
    """Encoded anew in Pillow's default quality, 75, as the authors do before they look at it."""
    file = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def letter_score(sample: Sample, text: str) -> dict:
    given = answers.letter(text)
    return {"right": int(given == sample.answer), "given": text, "missed": given is None}


def pope(data: Path, tokenizer=None) -> Task:
    """`pope/coco_pope_{adversarial,popular,random}.json`, lines of JSON, and COCO's `pope/val2014`. The figure is the
    F1 of "yes" over the three subsets together."""
    source = "coco_pope_SUBSET.json of adversarial, popular and random, and COCO's val2014 as a folder of images"
    folder, samples = folder_of(data, "pope", source), []
    for subset in POPE_SUBSETS:
        lines = file_of(folder, f"coco_pope_{subset}.json", source).read_text(encoding="utf-8").splitlines()
        for i, record in enumerate(json.loads(line) for line in lines if line.strip()):
            image = file_of(folder, f"val2014/{record['image']}", source)
            request = Question(about(str(image), record["text"]), 5)
            samples.append(Sample(f"{subset}/{i}", request, record["label"].strip().lower(), subset))
    return authors_task("pope", samples, pope_score, ("lmms-lab/POPE", "default"), POPE_REMARKS, pope_metrics)


def pope_score(sample: Sample, text: str) -> dict:
    given = answers.yes_or_no(text)
    outcome = {"said": given, "asked": sample.answer}
    return {"right": int(given == sample.answer), "given": text, **outcome, "missed": given is None}


def pope_metrics(outcomes: list[dict]) -> dict[str, float]:
    """An answer that is neither lowers no recall: it is no false negative."""
    hits, alarms, misses = (
        sum((outcome["said"], outcome["asked"]) == pair for outcome in outcomes)
        for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes"))
    )
    f1 = 2 * hits / (2 * hits + alarms + misses) if hits else 0.0
    yes = sum(outcome["said"] == "yes" for outcome in outcomes) / len(outcomes)
    return {"f1": f1, **accuracy(outcomes), "yes_rate": yes}


def ai2d(data: Path, tokenizer=None) -> Task:
    """`lmms-lab/ai2d` as `save_to_disk` leaves it, in `ai2d`."""
    records = saved_records(data, "ai2d", "lmms-lab/ai2d", ("image", "question", "options", "answer"), "test")
    samples = [
        Sample(f"{i}", Question(about(record["image"], ai2d_prompt(record)), 5), ai2d_answer(record))
        for i, record in enumerate(records)
    ]
    return authors_task("ai2d", samples, ai2d_score, ("lmms-lab/ai2d", "test"))


def ai2d_prompt(record: dict) -> str:
    options = "".join(
        f"\n{letter}. {text}" for letter, text in zip(string.ascii_uppercase, record["options"], strict=False)
    )
    return f"{record['question']}{options}\n{LETTER}"


def ai2d_answer(record: dict) -> str:
    answer = str(record["answer"]).strip()
    return string.ascii_uppercase[int(answer)] if answer.isdigit() else answer.upper()


def ai2d_score(sample: Sample, text: str) -> dict:
    given = answers.letter(text, first_word=True)
    return {"right": int(given == sample.answer), "given": text, "missed": given is None}


def realworldqa(data: Path, tokenizer=None) -> Task:
    """`xai-org/RealworldQA` as `save_to_disk` leaves it, in `realworldqa`."""
    records = saved_records(data, "realworldqa", "xai-org/RealworldQA", ("image", "question", "answer"), "test")
    samples = [
        Sample(f"{i}", Question(about(record["image"], realworldqa_prompt(record)), 10), str(record["answer"]).strip())
        for i, record in enumerate(records)
    ]
    return authors_task("realworldqa", samples, realworldqa_score, ("xai-org/RealworldQA", "test"), RANK_REMARKS)


def realworldqa_prompt(record: dict) -> str:
    has_options = any(f"{letter}." in record["question"] for letter in answers.LETTERS)
    return record["question"] + (f"\n{LETTER}" if has_options else "")


def realworldqa_score(sample: Sample, text: str) -> dict:
    """A letter is compared with the letter that the answer names; anything else with how the answer starts."""
    right = sample.answer
    if len(right) == 1 and right.upper() in answers.LETTERS:
        given = answers.letter(text, first_word=True, last_resort=False)
        return {"right": int(given == right.upper()), "given": text, "missed": given is None}
    return {"right": int(answers.starts_with(text, right)), "given": text, "missed": not text.strip()}


IMAGE_REMARKS = (
    "Images as the authors' evaluation gives them, clean latents and then causal ViT tokens, which is not how the "
    "model was trained. Greedy decoding: theirs is decided by files that are not public.",
)
RANK_REMARKS = (
    "The paper's figure counts a dummy sample for each rank without one as wrong: it was made on 8 ranks.",
)
MMMU_REMARKS = (
    *RANK_REMARKS,
    "The first image alone is given. Where no option can be read one is guessed, from the name of the question.",
)
MMBENCH_REMARKS = (
    *RANK_REMARKS,
    "The mean over all rotations of each question: between the vanilla and the circular figure of others, comparable "
    "with neither.",
)
POPE_REMARKS = ("F1 of yes over the three subsets together, which the paper does not say.",)

__all__ = ["ai2d", "mmbench_cn", "mmbench_en", "mmmu", "pope", "realworldqa"]
