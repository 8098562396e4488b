"""lm-eval runs the authors' protocol to the scores of this project, and its own tasks with the classes it has."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest


lm_eval = pytest.importorskip("lm_eval")
sys.path.insert(0, str(Path(__file__).parent))

import stand_in_data  # noqa: E402
from lm_eval.models.hf_vlms import HFMultimodalLM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from tests.hub_upload import authors  # noqa: E402
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline, tiny_processor  # noqa: E402
from trainer.evaluation import ModelUnderTest, evaluate, lm_harness, table1  # noqa: E402  # noqa: E402
from trainer.evaluation.lm_harness import BareLetters, stock_results  # noqa: E402


NAMES = ("mmlu", "arc_challenge", "bbh", "mbpp")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stand_in_data.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(latent_prefix=False)
    pipe.register_modules(transformer=authors.model("rosetta", inference=True), processor=tiny_processor(False))
    return pipe


@pytest.fixture(scope="module")
def manager():
    """Of our tasks alone: building the index of all takes seconds."""
    return TaskManager(include_path=str(lm_harness.TASKS), include_defaults=False)


def test_scores_are_those_of_this_project(pipe, data, monkeypatch):
    tokenizer = pipe.processor.tokenizer
    metadata = {"data": str(data), "tokenizer": tokenizer}
    manager = TaskManager(include_path=str(lm_harness.TASKS), include_defaults=False, metadata=metadata)
    harness = BareLetters(pretrained=pipe.transformer, tokenizer=tokenizer, batch_size=2)
    found = lm_eval.simple_evaluate(
        harness,
        tasks=[f"rosetta_{name}" for name in NAMES],
        task_manager=manager,
        gen_kwargs="max_gen_toks=4",
        confirm_run_unsafe_code=True,
        bootstrap_iters=0,
    )
    tasks = []
    for name in NAMES:
        task = table1.load(name, data, tokenizer, allow_code=True)
        changes = {"max_new_tokens": 4} if name in ("bbh", "mbpp") else {}
        samples = [dataclasses.replace(s, request=dataclasses.replace(s.request, **changes)) for s in task.samples]
        tasks.append(dataclasses.replace(task, samples=samples))
    model = ModelUnderTest(pipe)
    for name, task, result in zip(NAMES, tasks, evaluate(model, tasks), strict=True):
        of_task = found["results"][f"rosetta_{name}"]
        assert of_task["acc,none"] == pytest.approx(result["metrics"]["accuracy"]["value"], abs=1e-6)
        answered = found["samples"][f"rosetta_{name}"]
        outputs = model.outputs([sample.request for sample in task.samples])
        for document, sample, output in zip(answered, task.samples, outputs, strict=True):
            context = document["arguments"][0][0]
            assert context == sample.request.prompt
            given = [response[0] for response in document["resps"]]
            if isinstance(output, list):
                assert [float(pair[0]) for pair in given] == pytest.approx(output, abs=1e-5)
            else:
                assert given == [output]


def test_letters_are_apart_from_the_prompt_and_words_are_not(pipe):
    tokenizer = pipe.processor.tokenizer
    harness = BareLetters(pretrained=pipe.transformer, tokenizer=tokenizer)
    apart = (tokenizer("Answer:").input_ids, tokenizer("A").input_ids)
    joined = tokenizer("Answer: A").input_ids
    # Qwen's vocabulary has ":A" as one token; this one has not, so one is made.
    monkey = {"Answer:A": [1, 2], "Answer:": apart[0], "A": apart[1], "Answer: A": joined}
    harness.tok_encode = lambda text, **_: monkey[text]
    assert harness._encode_pair("Answer:", "A") == apart
    assert harness._encode_pair("Answer:", " A") == (apart[0], joined[len(apart[0]) :])
    assert HFLM._encode_pair(harness, "Answer:", "A")[1] == []  # what the harness does, and why there is a subclass


def test_code_is_run_only_when_allowed(pipe, data):
    metadata = {"data": str(data), "tokenizer": pipe.processor.tokenizer}
    manager = TaskManager(include_path=str(lm_harness.TASKS), include_defaults=False, metadata=metadata)
    harness = BareLetters(pretrained=pipe.transformer, tokenizer=pipe.processor.tokenizer)
    with pytest.raises(ValueError, match="marked as unsafe"):
        lm_eval.simple_evaluate(harness, tasks=["rosetta_mbpp"], task_manager=manager)


@pytest.fixture(scope="module")
def stock_manager(tmp_path_factory):
    """A task as the harness has them, of a local file, and one with images."""
    folder = tmp_path_factory.mktemp("stock")
    lines = [{"question": f"{i} + {i} =", "options": [str(2 * i), "x", "yy"], "right": 0} for i in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: options\n"
        "doc_to_target: right\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "pictures.py").write_text(
        "import datasets\nimport numpy\nfrom PIL import Image\n\n\n"
        "def documents(**_):\n"
        "    return {'test': datasets.Dataset.from_list([{'question': 'What is <image>?'}] * 2)}\n\n\n"
        "def pictures(document):\n"
        "    return [Image.fromarray(numpy.full((64, 64, 3), 90, dtype=numpy.uint8))]\n\n\n"
        "def score(document, results):\n    return {'acc': float(isinstance(results[0], str))}\n"
    )
    (folder / "pictures.yaml").write_text(
        "task: pictures\ncustom_dataset: !function pictures.documents\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_image: !function pictures.pictures\n"
        "doc_to_target: question\ngeneration_kwargs: {until: [], do_sample: false, max_gen_toks: 3}\n"
        "process_results: !function pictures.score\nmetric_list: [{metric: acc, aggregation: mean}]\n"
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_stock_tasks_become_results(pipe, stock_manager, monkeypatch):
    monkeypatch.setitem(lm_harness.STOCK, "arc_challenge", ("sums", None, "acc_norm,none"))
    (result,) = stock_results(ModelUnderTest(pipe), ["arc_challenge"], limit=2, task_manager=stock_manager)
    assert (result["task"], result["protocol"]) == ("arc_challenge", "stock")
    assert (result["num_samples"], result["num_all"]) == (2, 3)
    assert [*result["metrics"]] == ["acc_norm"] and 0 <= result["metrics"]["acc_norm"]["value"] <= 1
    with pytest.raises(ValueError, match="'pope' has no stock task in lm-eval"):
        stock_results(ModelUnderTest(pipe), ["pope"])


def test_images_of_hf_multimodal(tmp_path, stock_manager):
    pipe = tiny_pipeline(latent_prefix=False)
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    pipe.processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    pipe.save_pretrained(tmp_path)
    harness = HFMultimodalLM(
        pretrained=str(tmp_path), trust_remote_code=True, batch_size=2, dtype="float32", device="cpu"
    )
    found = lm_eval.simple_evaluate(harness, tasks=["pictures"], task_manager=stock_manager, bootstrap_iters=0)
    assert found["results"]["pictures"]["acc,none"] == 1.0
