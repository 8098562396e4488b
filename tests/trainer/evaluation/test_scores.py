"""Scores are those of samples asked one by one, whatever the batch, the number of processes and the interruptions."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import small_tasks  # noqa: E402
from ranks import run_on_ranks  # noqa: E402

from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline  # noqa: E402
from trainer.evaluation import Choices, ModelUnderTest, Question, Sample, evaluate  # noqa: E402
from trainer.evaluation.loading import load_pipeline  # noqa: E402


def model_under_test() -> ModelUnderTest:
    pipe = tiny_pipeline(latent_prefix=False)
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    pipe.processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    pipe.transformer.double().set_experts_implementation("eager")
    return ModelUnderTest(pipe)


@pytest.fixture(scope="module")
def model() -> ModelUnderTest:
    return model_under_test()


def tasks():
    return [small_tasks.choices(), small_tasks.questions(), small_tasks.drawings()]


@pytest.fixture(scope="module")
def expected(model) -> list[dict]:
    """Of one process, a sample at a time."""
    return evaluate(model, tasks(), batch_size=1)


def test_likelihoods_are_those_of_plain_forwards(model):
    for sample in small_tasks.choices().samples:
        (found,) = model.likelihoods([sample.request])
        for value, text in zip(found, sample.request.continuations, strict=True):
            row = model.encode(sample.request.prompt)
            end = model.pipe.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            row["input_ids"] = torch.cat([row["input_ids"], end], dim=1)
            row["token_type_ids"] = torch.cat([row["token_type_ids"], end * 0], dim=1)
            with torch.no_grad():
                logprobs = model.model(**row).logits[0].log_softmax(-1)
            start = row["input_ids"].shape[1] - end.shape[1]
            direct = sum(logprobs[start - 1 + i, token] for i, token in enumerate(end[0]))
            assert value == pytest.approx(direct.item(), abs=1e-6)


def test_answers_are_those_of_generate(model):
    for sample in small_tasks.questions().samples:
        row = model.encode(sample.request.prompt)
        output = model.model.generate(**row, max_new_tokens=sample.request.max_new_tokens, do_sample=False)
        text = model.pipe.processor.decode(output[0, row["input_ids"].shape[1] :], skip_special_tokens=True)
        assert model.answers([sample.request]) == [text]


@pytest.mark.parametrize("batch_size", [2, 7])
def test_the_batch_size_changes_nothing(model, expected, batch_size):
    assert_equal(evaluate(model, tasks(), batch_size), expected)


def test_the_number_of_processes_changes_nothing(expected, tmp_path):
    run_on_ranks(evaluate_on_ranks, 3, tmp_path)
    for num_ranks, asked in ((3, [3, 2, 2]), (2, [4, 3])):
        folder = tmp_path / str(num_ranks)
        for rank in range(num_ranks):
            assert_equal(json.loads((folder / f"{rank}.json").read_text()), json.loads(json.dumps(expected)))
        lines = [file.read_text().splitlines() for file in sorted(folder.glob("samples/choices--test/*.jsonl"))]
        assert [len(of_rank) - 1 for of_rank in lines] == asked  # each once


def evaluate_on_ranks(folder: Path):
    """With all three, and then with two of them."""
    rank, model = torch.distributed.get_rank(), model_under_test()
    for size in (3, 2):
        if rank < size:
            results = evaluate(model, tasks(), batch_size=2, output_dir=folder / str(size))
            (folder / str(size) / f"{rank}.json").write_text(json.dumps(results))
        if size == 3:
            torch.distributed.destroy_process_group()
            store = f"file://{folder}/{'pair' if rank < 2 else 'alone'}"
            torch.distributed.init_process_group("gloo", store, rank=rank % 2, world_size=2 if rank < 2 else 1)


def assert_equal(results, expected):
    for found, wanted in zip(results, expected, strict=True):
        assert found["metrics"] == {
            name: pytest.approx(figure, abs=1e-6) for name, figure in wanted["metrics"].items()
        }
        assert {**found, "metrics": 0} == {**wanted, "metrics": 0}


def test_one_that_was_killed_goes_on(model, expected, tmp_path, monkeypatch):
    asked, answers = [], ModelUnderTest.answers

    def until_killed(self, requests, *rest):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return answers(self, requests, *rest)

    monkeypatch.setattr(ModelUnderTest, "answers", until_killed)
    task = small_tasks.questions()
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, [task], batch_size=2, output_dir=tmp_path)
    file = tmp_path / "samples" / "questions--test" / "rank-0.jsonl"
    file.write_bytes(file.read_bytes()[:-9])  # killed while it wrote
    asked.clear()
    monkeypatch.setattr(
        ModelUnderTest, "answers", lambda self, r, *rest: asked.append(len(r)) or answers(self, r, *rest)
    )
    assert_equal(evaluate(model, [task], batch_size=2, output_dir=tmp_path), expected[1:2])
    assert sum(asked) == 4  # of seven, three were whole
    asked.clear()
    assert_equal(evaluate(model, [task], batch_size=3, output_dir=tmp_path), expected[1:2])
    assert asked == []


def test_outcomes_of_another_evaluation_are_not_taken(model, tmp_path):
    evaluate(model, [small_tasks.choices(2)], output_dir=tmp_path, facts={"model": "a"})
    for task, model_name in ((small_tasks.choices(2), "b"), (small_tasks.choices(3), "a")):
        with pytest.raises(ValueError, match="holds outcomes of another evaluation"):
            evaluate(model, [task], output_dir=tmp_path, facts={"model": model_name})


def test_what_cannot_be_done_is_said_before_any_work(model, tmp_path, monkeypatch):
    for name in ("likelihoods", "answers", "drawings"):
        monkeypatch.setattr(ModelUnderTest, name, lambda *_: pytest.fail("was asked"))
    good, task = small_tasks.choices(1), small_tasks.questions(2)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    question = [{"role": "user", "content": [{"type": "image", "image": tmp_path / "cut.png"}]}]
    broken = dataclasses.replace(task, samples=[*task.samples, Sample("bad", Question(question, 3))])
    with pytest.raises(ValueError, match="sample 'bad': its image"):
        evaluate(model, [good, broken])
    with pytest.raises(ValueError, match="samples of the same id, e.g. 'q0'"):
        evaluate(model, [good, dataclasses.replace(task, samples=task.samples[:1] * 2)])
    with pytest.raises(ValueError, match="has no samples"):
        evaluate(model, [good, dataclasses.replace(task, samples=[])])
    with pytest.raises(ValueError, match="several kinds"):
        evaluate(model, [dataclasses.replace(task, samples=[*task.samples, Sample("x", Choices("a", ["b"]))])])
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        evaluate(model, [good], batch_size=0)
    pipe = type(model.pipe)(model.model, None, None, model.pipe.processor)
    with pytest.raises(ValueError, match="does not draw"):
        evaluate(ModelUnderTest(pipe), [good, small_tasks.drawings()])


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_weights_are_loaded_as_they_were_saved(dtype, tmp_path):
    """diffusers' own loading makes float32 of them."""
    tiny_pipeline().to(torch.bfloat16).save_pretrained(tmp_path)
    expected = torch.bfloat16 if dtype == "auto" else torch.float32
    assert load_pipeline(str(tmp_path), dtype=dtype).transformer.dtype == expected
