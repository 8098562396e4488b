"""Data sets of Table 1 in the formats that people have them in, a few samples each."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_lines(file: Path, records: list[dict]):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_all(data: Path):
    write_mmlu(data / "mmlu")
    write_bbh(data / "bbh")
    write_arc(data / "arc_challenge")
    write_mbpp(data / "mbpp")
    write_mmmu(data / "mmmu")
    write_mmbench(data / "mmbench")
    write_pope(data / "pope")
    write_ai2d(data / "ai2d")
    write_realworldqa(data / "realworldqa")


def write_mmlu(folder: Path):
    for part in ("dev", "test"):
        (folder / part).mkdir(parents=True)
    shots = [f"What is {i} + {i}?,{2 * i},1,0,9,A" for i in range(1, 7)]
    (folder / "dev" / "college_sums_dev.csv").write_text("\n".join(shots) + "\n")
    (folder / "test" / "college_sums_test.csv").write_text('"Which, of these?",None,ten,1.50,4,B\nTwo?,1,2,3,4,B\n')


def write_bbh(folder: Path):
    shots = [{"input": f"not {value} is", "target": str(not value)} for value in (True, False, True, False)]
    write_lines(folder / "boolean_expressions" / "train.jsonl", shots)
    questions = [{"input": "True and False is", "target": "False"}, {"input": "Pick (A) or (B)", "target": "(B)"}]
    write_lines(folder / "boolean_expressions" / "test.jsonl", questions)
    write_lines(folder / "navigate" / "train.jsonl", shots[:1])
    write_lines(folder / "navigate" / "test.jsonl", [{"input": "Do you return?", "target": "Yes"}])


def write_arc(folder: Path):
    records = [
        {"id": "a", "question": "What melts?", "labels": "ABCD", "answerKey": "C"},
        {"id": "b", "question": "What is cold?", "labels": "1234", "answerKey": "2"},
        {"id": "c", "question": "Of five?", "labels": "ABCDE", "answerKey": "E"},
    ]
    texts = ["ice", "iron", "snow", "sand", "air"]
    for record in records:
        labels = [*record.pop("labels")]
        record["choices"] = {"text": texts[: len(labels)], "label": labels}
    Dataset.from_list(records).save_to_disk(str(folder))


def write_mbpp(folder: Path):
    tests = {"add": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "double": ["assert double(2) == 4"]}
    records = [
        {"task_id": number, "prompt": f"Write a function to {name}.", "test_list": tests[name]}
        for number, name in enumerate(tests, 11)
    ]
    Dataset.from_list([{**r, "code": "", "test_imports": []} for r in records]).save_to_disk(str(folder))


def write_mmmu(folder: Path):
    records = [
        {
            "id": "validation_Art_1",
            "question": "<image 1> Who painted this?",
            "options": "['Monet', 'The <image 2>', 'Klee']",
            "answer": "C",
            "question_type": "multiple-choice",
        },
        {
            "id": "validation_Art_2",
            "question": "How many trees are in <image 1>?",
            "options": "[]",
            "answer": "1,234.5",
            "question_type": "open",
        },
    ]
    for record in records:
        record |= {f"image_{i}": picture(seed=i) if i < 3 else None for i in range(1, 8)}
    images = {f"image_{i}": ImageFeature() for i in range(1, 8)}
    texts = {name: Value("string") for name in ("id", "question", "options", "answer", "question_type")}
    (folder / "Art").mkdir(parents=True)
    data = Dataset.from_list(records, features=Features({**texts, **images}))
    data.to_parquet(str(folder / "Art" / "validation-00000-of-00001.parquet"))


def write_mmbench(folder: Path):
    folder.mkdir()
    image = base64.b64encode(as_png(picture())).decode()
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
    english = [
        f"7\tWhat is shown?\tIt is old.\ta cat\ta dog\t\t\tB\tobjects\t{image}",
        "1000007\tWhat is shown?\t\ta dog\ta cat\t\t\tA\tobjects\t7",
    ]
    (folder / "MMBench_DEV_EN.tsv").write_text(head + "\n".join(english) + "\n")
    chinese = [f"7\t这是什么?\t\tcat\tdog\t\t\tA\tobjects\t{image}"]
    (folder / "MMBench_DEV_CN.tsv").write_text(head + "\n".join(chinese) + "\n", encoding="utf-8")


def write_pope(folder: Path):
    (folder / "val2014").mkdir(parents=True)
    picture().save(folder / "val2014" / "COCO_val2014_000000000001.jpg")
    for subset in ("adversarial", "popular", "random"):
        lines = [
            {
                "question_id": i,
                "image": "COCO_val2014_000000000001.jpg",
                "text": f"Is there a {thing}?",
                "label": label,
            }
            for i, (thing, label) in enumerate([("dog", "yes"), ("cup", "no")])
        ]
        write_lines(folder / f"coco_pope_{subset}.json", lines)


def write_ai2d(folder: Path):
    records = [{"image": picture(), "question": "What eats grass?", "options": ["cow", "sun"], "answer": "0"}]
    features = {"image": ImageFeature(), "question": Value("string"), "answer": Value("string")}
    features["options"] = Sequence(Value("string"))
    Dataset.from_list(records, features=Features(features)).save_to_disk(str(folder))


def write_realworldqa(folder: Path):
    records = [
        {
            "image": picture(),
            "question": "Which is near?\nA. car\nB. bus\nPlease answer with the letter.",
            "answer": "B",
        },
        {"image": picture(), "question": "How many cars?\nPlease answer with one number.", "answer": "3"},
    ]
    features = {"image": ImageFeature(), "question": Value("string"), "answer": Value("string")}
    Dataset.from_list(records, features=Features(features)).save_to_disk(str(folder))
