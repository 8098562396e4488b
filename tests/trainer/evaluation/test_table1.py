"""The authors' protocol: for a sample of each task the tokens that the model sees, and what becomes of an answer."""

import dataclasses
import shutil
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler


sys.path.insert(0, str(Path(__file__).parent))

import stand_in_data  # noqa: E402

from modeling_rosetta import RosettaPipeline  # noqa: E402
from tests.hub_upload import authors  # noqa: E402
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline, tiny_processor, tiny_vae  # noqa: E402
from trainer.evaluation import ModelUnderTest, evaluate  # noqa: E402
from trainer.evaluation.table1 import TABLE1, load, with_authors_bugs  # noqa: E402
from trainer.evaluation.understanding import as_jpeg  # noqa: E402


SHOTS = "".join(f"What is {i} + {i}?\nA. {2 * i}\nB. 1\nC. 0\nD. 9\nAnswer: A\n\n" for i in range(1, 6))
LETTER = "\nAnswer with the option's letter from the given choices directly."
PROMPTS = {
    "mmlu": "The following are multiple choice questions (with answers) about college sums.\n\n"
    "{shots}Which, of these?\nA. nan\nB. ten\nC. 1.5\nD. 4\nAnswer:",
    "bbh": "Q: not True is\nA: False\n\nQ: not False is\nA: True\n\nQ: not True is\nA: False\n\n"
    "Q: True and False is\nA:",
    "arc_challenge": "What melts?\nA. ice\nB. iron\nC. snow\nD. sand\nAnswer:",
    "mbpp": "Task: Write a function to add.\nTests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n[BEGIN]\n",
    "mmmu": "Who painted this?\n(A) Monet\n(B) The (C) Klee\n" + LETTER,
    "mmbench_en": "It is old.\nWhat is shown?\nA. a cat\nB. a dog" + LETTER,
    "mmbench_cn": "这是什么?\nA. cat\nB. dog\n请直接回答选项字母。",
    "pope": "Is there a dog?",
    "ai2d": "What eats grass?\nA. cow\nB. sun" + LETTER,
    "realworldqa": "Which is near?\nA. car\nB. bus\nPlease answer with the letter." + LETTER,
}
TOKENS = {
    "bbh": 128,
    "mbpp": 512,
    "mmmu": 32,
    "mmbench_en": 5,
    "mmbench_cn": 5,
    "pope": 5,
    "ai2d": 5,
    "realworldqa": 10,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stand_in_data.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    """The authors' tiny checkpoint, converted."""
    transformer = authors.model("rosetta", inference=True)
    vae = tiny_vae()
    return ModelUnderTest(RosettaPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(), tiny_processor(False)))


@pytest.fixture(scope="module")
def tasks(data, model):
    return {name: load(name, data, model.pipe.processor.tokenizer, allow_code=True) for name in TABLE1}


@pytest.mark.parametrize("name", ["mmlu", "bbh", "arc_challenge", "mbpp"])
def test_tokens_of_language(tasks, model, name):
    request = tasks[name].samples[0].request
    row = model.encode(request.prompt, tasks[name].image_layout)
    text = model.pipe.processor.tokenizer.decode(row["input_ids"][0])
    expected = PROMPTS[name].format(shots=SHOTS) if name == "mmlu" else PROMPTS[name]
    if name == "mbpp":
        assert text.startswith("You are an expert Python programmer. Complete the Python function based on the")
        assert text.count("[BEGIN]\n") == 4 and text.count("\n[DONE]\n\nTask: ") == 3 and text.endswith(expected)
    else:
        assert text == expected
    assert row["input_ids"].tolist() == [
        model.pipe.processor.tokenizer(text).input_ids
    ]  # nothing before, nothing after
    assert not row["token_type_ids"].any() and {*row} == {"input_ids", "token_type_ids"}
    if name in TOKENS:
        assert request.max_new_tokens == TOKENS[name]
    else:
        assert request.continuations == ["A", "B", "C", "D"]


@pytest.mark.parametrize("name", ["mmmu", "mmbench_en", "mmbench_cn", "pope", "ai2d", "realworldqa"])
def test_tokens_of_understanding(tasks, model, name):
    task, tokenizer = tasks[name], model.pipe.processor.tokenizer
    request = task.samples[0].request
    row = model.encode(request.prompt, task.image_layout)
    # 40 x 30 pixels: 5 x 3 latents of 64 x 64 cropped to its bucket, and enlarged to at least 512 x 512 for the ViT
    latents, (height, width) = row["latent_grid_hw"][0].prod().item(), row["image_grid_thw"][0, 1:].tolist()
    assert height * width * 16**2 >= 512**2 and width / height == pytest.approx(4 / 3, rel=0.1)
    ratio = model.processor(task.image_layout)._prefix(*(row["latent_grid_hw"][0] * 16).tolist())[1]
    expected = (
        "<|im_start|>user\n<|vision_start|><｜img_size_64｜>" + tokenizer.decode(ratio) + "<｜timestep｜>"
        + "<|image_pad|>" * latents + "<｜joint_img_sep｜>" + "<|image_pad|>" * (height * width // 4)
        + f"<|vision_end|>{PROMPTS[name]}<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert tokenizer.decode(row["input_ids"][0]) == expected
    kinds = [(kind, len([*of_kind])) for kind, of_kind in groupby(row["token_type_ids"][0].tolist())]
    assert [kind for kind, _ in kinds] == [0, 2, 0, 1, 0]
    assert kinds[1][1] == latents and kinds[3][1] == height * width // 4
    assert row["image_is_causal"].tolist() == [1] and len(row["latent_pixels"]) == latents * 16**2
    assert request.max_new_tokens == TOKENS[name]


def test_mmlu_leaves_out_examples_beyond_2048_tokens(data, model, tmp_path):
    shutil.copytree(data / "mmlu", tmp_path / "mmlu")
    dev = tmp_path / "mmlu" / "dev" / "college_sums_dev.csv"
    dev.write_text("".join(f"{'long ' * 120}{i}?,1,2,3,4,D\n" for i in range(5)))
    prompt = load("mmlu", tmp_path, model.pipe.processor.tokenizer).samples[0].request.prompt
    tokenizer = model.pipe.processor.tokenizer
    assert prompt.count("long 0?") == 1 and prompt.count("long 2?") == 1 and "long 3?" not in prompt
    assert 2048 - 700 < len(tokenizer(prompt).input_ids) <= 2048


def test_bare_letters_are_scored(tasks, model):
    """The logits of the four ids behind the prompt."""
    letters = model.pipe.processor.tokenizer(list("ABCD")).input_ids
    assert [len(ids) for ids in letters] == [1, 1, 1, 1]
    letters = [ids[0] for ids in letters]
    for name in ("mmlu", "arc_challenge"):
        samples = tasks[name].samples
        found = model.likelihoods([sample.request for sample in samples])
        for sample, likelihoods in zip(samples, found, strict=True):
            ids = model.pipe.processor.tokenizer(sample.request.prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model.model(input_ids=ids).logits[0, -1, letters]
            assert torch.tensor(likelihoods).softmax(0).tolist() == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
            assert tasks[name].score(sample, likelihoods)["given"] == "ABCD"[logits.argmax()]


def test_all_of_it_runs(tasks, model):
    """On a converted checkpoint of the authors', with as few tokens as show that it does."""
    short = []
    for task in tasks.values():
        changes = {"max_new_tokens": 2} if task.name in TOKENS else {}
        asked = task.samples[:1] if task.image_layout else task.samples
        samples = [dataclasses.replace(s, request=dataclasses.replace(s.request, **changes)) for s in asked]
        short.append(dataclasses.replace(task, samples=samples))
    results = evaluate(model, short, batch_size=4)
    assert [result["task"] for result in results] == [*TABLE1]
    numbers = {name: len(task.samples) for name, task in tasks.items()}
    assert numbers == {"mmlu": 2, "bbh": 3, "arc_challenge": 3, "mbpp": 2, "mmmu": 2, "mmbench_en": 2, "mmbench_cn": 1,
                       "pope": 6, "ai2d": 1, "realworldqa": 2}  # fmt: skip
    assert all(result["protocol"] == "authors" for result in results)
    assert next(iter(results[7]["metrics"])) == "f1"
    assert any("24 of its 26 tasks are missing" in remark for remark in results[1]["remarks"])


@pytest.mark.parametrize(
    ("name", "number", "text", "right"),
    [
        *[("bbh", 1, text, right) for text, right in [(" (B)\nQ: x", 1), ("\n b", 1), ("(b) or so", 0), ("", 0)]],
        *[("mmbench_en", 0, text, right) for text, right in [("B", 1), ("b", 1), ("The B one", 1), ("based", 1)]],
        *[("mmbench_en", 0, text, right) for text, right in [("A B", 0), ("no", 0), ("a dog", 0)]],
        *[("ai2d", 0, text, right) for text, right in [("a.", 1), ("A cow", 1), ("b, not A", 0)]],
        *[("realworldqa", 0, text, right) for text, right in [("B. bus", 1), ("based", 0), ("b", 1)]],
        *[("realworldqa", 1, text, right) for text, right in [("3", 1), ("3 cars.", 1), ("30", 1), ("13", 0)]],
        *[("pope", 0, text, right) for text, right in [("Yes, it", 1), ("There is no dog", 0), ("no way, yes", 0)]],
        *[("pope", 0, text, right) for text, right in [("well, yes or no", 1), ("maybe", 0)]],
        *[("mmmu", 0, text, right) for text, right in [("C", 1), ("(A) not (C)", 1), ("C or A", 0), ("C.", 1)]],
        *[("mmmu", 0, "I think it was painted by Klee", 1), ("mmmu", 0, "It is Klee or rather it is Monet", 0)],
        *[("mmmu", 1, text, right) for text, right in [("1234.5", 1), ("The answer is 1,234.504", 1), ("1234.6", 0)]],
        *[("mmmu", 1, text, right) for text, right in [("so it is 12\n= 1234.5", 1), ("234.5", 0)]],
    ],
)  # fmt: skip
def test_what_becomes_of_an_answer(tasks, name, number, text, right):
    task = tasks[name]
    assert task.score(task.samples[number], text)["right"] == right


def test_answers_that_cannot_be_read(tasks):
    for name, number in (("mmbench_en", 0), ("ai2d", 0), ("realworldqa", 0), ("pope", 0), ("mmmu", 0), ("bbh", 0)):
        task = tasks[name]
        outcome = task.score(task.samples[number], "")
        assert outcome["missed"] and (name == "mmmu" or not outcome["right"])
    mmmu = tasks["mmmu"]  # a guess, the same each time
    assert len({mmmu.score(mmmu.samples[0], "none of it")["right"] for _ in range(5)}) == 1


def test_the_f1_of_pope(tasks):
    said = ["yes", "yes", "no", "no", "maybe", "no"]  # asked: yes, no, yes, no, yes, no
    outcomes = [tasks["pope"].score(*pair) for pair in zip(tasks["pope"].samples, said, strict=True)]
    # One hit, one false alarm, one miss; what is neither is no miss.
    assert tasks["pope"].metrics(outcomes) == {"f1": 0.5, "accuracy": 0.5, "yes_rate": pytest.approx(1 / 3)}


def test_programs(tasks):
    task = tasks["mbpp"]
    sample, add = task.samples[0], "def add(a, b):\n    return a + b\n"
    wrong = "def sub(a, b):\n    return a - b\n"
    cases = {
        add: (1, 1),
        f"Here it is:\n```python\n{add}```\nDone.": (1, 1),
        f"{add}[DONE]\n\nTask: Subtract.\n[BEGIN]\n{wrong}": (1, 1),  # which has no second [DONE]
        f"{add}[DONE]\n\nTask: Subtract.\n[BEGIN]\n{wrong}[DONE]\n": (1, 0),
        f"{wrong}[DONE]\n\nTask: Add.\n[BEGIN]\n{add}[DONE]\n": (0, 1),
        wrong: (0, 0),
        "": (0, 0),
        "from operator import add": (1, 1),  # the first line there is
        "from operator import sub\nimport os\ndef add(a, b):\n    return sub(a, -b)": (0, 0),  # is cut off
    }
    for text, expected in cases.items():
        outcome = task.score(sample, text)
        assert (outcome["right"], outcome["right_with_bug"]) == expected, text
    outcomes = [task.score(sample, text) for text in [*cases][3:5]]
    assert task.metrics(outcomes) == {"accuracy": 0.5}
    assert with_authors_bugs(task, 8).metrics(outcomes[:1]) == {"accuracy": 1.0, "accuracy_behind_done": 0.0}


def test_the_padding_bug_is_shown_and_not_counted(tasks):
    task = with_authors_bugs(tasks["realworldqa"], 8)
    outcomes = [task.score(sample, sample.answer) for sample in task.samples]
    assert task.metrics(outcomes) == {"accuracy": 1.0, "accuracy_on_8_ranks": 0.5}  # 2 of 2, or of 4: its two again
    whole = dataclasses.replace(tasks["realworldqa"], samples=tasks["realworldqa"].samples * 4)
    assert with_authors_bugs(whole, 8).metrics(outcomes * 4) == {"accuracy": 1.0, "accuracy_on_8_ranks": 1.0}
    assert with_authors_bugs(tasks["mmlu"], 8) is tasks["mmlu"]


def test_images_of_mmbench_are_encoded_anew(tasks):
    first, second = (sample.request.prompt[0]["content"][0]["image"] for sample in tasks["mmbench_en"].samples)
    assert first == second == as_jpeg(stand_in_data.as_png(stand_in_data.picture()))
    assert first[:2] == b"\xff\xd8" and tasks["mmbench_en"].samples[1].id == "1000007"


def test_missing_data_is_named(data, model, tmp_path):
    tokenizer = model.pipe.processor.tokenizer
    for name in TABLE1:
        with pytest.raises(ValueError, match=f"`data`: {tmp_path}.* is no folder; it must hold "):
            load(name, tmp_path, tokenizer, allow_code=True)
    with pytest.raises(ValueError, match="runs the programs that the model writes: allow it"):
        load("mbpp", data, tokenizer)
    shutil.copytree(data, tmp_path / "copy")
    (tmp_path / "copy" / "pope" / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    with pytest.raises(ValueError, match="there is no .*COCO_val2014_000000000001.jpg"):
        load("pope", tmp_path / "copy", tokenizer)
    shutil.rmtree(tmp_path / "copy" / "ai2d")
    (tmp_path / "copy" / "ai2d").mkdir()
    with pytest.raises(ValueError, match="ai2d holds no data set that `save_to_disk`"):
        load("ai2d", tmp_path / "copy", tokenizer)
    shutil.copytree(data / "arc_challenge", tmp_path / "copy" / "realworldqa", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="realworldqa has no column 'image'"):
        shutil.rmtree(tmp_path / "copy" / "realworldqa")
        shutil.copytree(data / "arc_challenge", tmp_path / "copy" / "realworldqa")
        load("realworldqa", tmp_path / "copy", tokenizer)


def test_a_model_without_latents_is_told_so(tasks):
    pipe = tiny_pipeline()
    with pytest.raises(
        ValueError, match="authors' protocol gives images as latents .* lacks a VAE: evaluate it in the"
    ):
        evaluate(ModelUnderTest(RosettaPipeline(pipe.transformer, None, None, pipe.processor)), [tasks["pope"]])
