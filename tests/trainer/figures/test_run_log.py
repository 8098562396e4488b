"""A run says what it is and how it goes, and draws and answers on the way."""

import contextlib
import json
import math
import re

import pytest
import torch
from data_files import conversation, file_model, file_processor, file_vae, picture, write_texts
from PIL import Image

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data.held_out import held_out_rows
from trainer.figures.run_log import RunLog, log_line
from trainer.figures.run_page import write_run_page
from trainer.figures.samples_in_training import SamplesInTraining, read_samples
from trainer.stages.recipe import SampleSettings


@pytest.fixture(scope="module")
def processor():
    return file_processor()


@pytest.fixture(scope="module")
def vae():
    return file_vae()


@pytest.fixture
def run(tmp_path, trainer_of, processor):
    (tmp_path / "texts").mkdir()
    (tmp_path / "seen.png").write_bytes(picture(3))
    record = {"image": "seen.png", "conversations": conversation(1)}
    (tmp_path / "questions.jsonl").write_text(json.dumps(record))
    texts = DataSource("lm", str(write_texts(tmp_path / "texts", 40)))
    questions = DataSource("mmu", str(tmp_path / "questions.jsonl"))

    def train(*callbacks, resume_from=None, **arguments):
        trainer = trainer_of(
            file_model(processor),
            RosettaDataStream([texts, questions], processor, 60),
            {name: held_out_rows(source, processor, 60, 8) for name, source in (("t", texts), ("q", questions))},
            data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
            **{"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, **arguments},
        )
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return train


def test_held_out_losses_by_source(run):
    trainer = run()
    evaluations = [log for log in trainer.state.log_history if "eval_t_loss" in log]
    assert [log["step"] for log in evaluations] == [2, 4]
    assert all(math.isfinite(log["eval_t_text_loss"]) for log in evaluations)
    metrics = trainer.evaluate()
    assert metrics["eval_q_num_samples"] == 1 and metrics["eval_t_num_samples"] == 8
    alone = trainer.evaluate(trainer.eval_dataset["q"])
    assert abs(alone["eval_text_loss"] - metrics["eval_q_text_loss"]) < 1e-6


def test_a_run_in_words_on_disk_and_as_a_page(run, tmp_path, capsys):
    trainer = run(RunLog("Stage X", ["a <b> source"]), save_strategy="steps", save_steps=2)
    said = capsys.readouterr().out
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert f"Stage X\n  {total:,} parameters, " in said and "\n  a <b> source\n  a new run of 4 steps\n" in said
    assert re.search(r"\nstep 3 of 4  text loss \S+  gradient \S+  skipped 0  \S+ tokens/s  0:00:\d\d left\n", said)
    assert re.search(r"\nstep 4 of 4  eval_t_loss \S+  eval_t_text_loss \S+\n", said)
    logs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logs == json.loads(json.dumps(trainer.state.log_history))
    page = (tmp_path / "run.html").read_text()
    assert "a &lt;b&gt; source" in page and page.count("<polyline") > 8
    for picture_name in ("losses in training", "held out: t text loss", "capacity rate", "learning rate"):
        assert picture_name in page

    run(RunLog("Stage X"), resume_from=str(tmp_path / "checkpoint-2"), output_dir=tmp_path / "again")
    assert "goes on after step 2 of 4" in capsys.readouterr().out
    again = [json.loads(line) for line in (tmp_path / "again" / "log.jsonl").read_text().splitlines()]
    assert [log["step"] for log in again if "loss" in log] == [1, 2, 3, 4]


def test_samples_leave_the_training_alone(run, processor, vae, tmp_path):
    image = tmp_path / "seen.png"
    settings = SampleSettings(
        2, ["a drawing", "another"], [{"question": "what?", "image": str(image)}, {"question": "?"}]
    )
    entered = []
    paused = contextlib.ExitStack()
    paused.callback(entered.append, "left")
    alone, watched = run(), run(SamplesInTraining(settings, processor, vae, lambda: paused))
    assert entered == ["left"]
    for one, other in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    samples = read_samples(tmp_path)
    assert [sample["step"] for sample in samples] == [2, 4] and all(len(s["answers"]) == 2 for s in samples)
    sizes = {Image.open(tmp_path / name).size for sample in samples for name in sample["images"]}
    assert sizes == {(64, 64)} and len(samples[0]["images"]) == 2
    write_run_page(tmp_path, "Stage", [], watched.state.log_history)
    page = (tmp_path / "run.html").read_text()
    assert page.count("<img") == 4 and "<th>step 2" in page and "a drawing" in page


def test_a_page_without_finite_figures(tmp_path):
    write_run_page(tmp_path, "Stage", [], [{"step": 1, "loss": math.nan, "text_loss": math.inf}, {"step": 2}])
    assert "<polyline" not in (tmp_path / "run.html").read_text()


def test_the_end_in_a_line():
    assert log_line({"train_runtime": 3.2, "train_loss": 1.0}, 7, 1000) == "step     7 of 1,000  train_loss 1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0, "prompts": ["a"]}, "`steps` must be at least 1, got 0"),
        ({"steps": 1}, "must have `prompts` or `questions`"),
        ({"steps": 1, "prompts": "a"}, "`prompts` must be a list of strings"),
        ({"steps": 1, "questions": [{"image": "x"}]}, "each of `questions` has `question`"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SampleSettings(**settings)


def test_an_image_that_is_not_there():
    with pytest.raises(ValueError, match="there is no image 'nowhere.png'"):
        SampleSettings(1, questions=[{"question": "a", "image": "nowhere.png"}]).check_images()
