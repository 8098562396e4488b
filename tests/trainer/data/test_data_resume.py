"""A run on a stream that is resumed is the uninterrupted one, to the bit."""

import json
from pathlib import Path

import pytest
import torch
from data_files import file_model, file_processor, write_questions, write_texts
from tiny_training import training_logs

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data.loader import check_position


@pytest.fixture
def run(tmp_path, trainer_of):
    processor = file_processor()
    (tmp_path / "texts").mkdir()
    sources = [
        DataSource("lm", str(write_texts(tmp_path / "texts", 40, files=2)), weight=0.6, streaming=True),
        DataSource("mmu", str(write_questions(tmp_path / "questions", 20)), weight=0.4),
    ]
    questions = Path(sources[1].path)
    questions.write_text(questions.read_text() + "{\n" * 5)

    def train(resume_from=None, **arguments):
        model = file_model(processor)
        model.config.attention_dropout = 0.1  # draws on the random state that is part of a checkpoint
        settings = {"max_steps": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **arguments}
        trainer = trainer_of(
            model,
            RosettaDataStream(sources, processor, 60, max_skipped_share=0.5),
            data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
            shield_steps=3,
            **settings,
        )
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return train


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_is_the_uninterrupted_one(num_workers, run, tmp_path):
    workers = {"dataloader_num_workers": num_workers}
    trainer = run(**workers, save_strategy="steps", save_steps=3)
    for step in (3, 6):
        checkpoint = tmp_path / f"checkpoint-{step}"
        resumed = run(resume_from=str(checkpoint), output_dir=tmp_path / "resumed", **workers)
        for weight, other in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(weight, other)
        logs, others = (
            [{k: v for k, v in log.items() if k != "epoch"} for log in training_logs(t)] for t in (trainer, resumed)
        )
        assert logs == others
    assert logs[-1]["skipped_records"] == logs[-1]["skipped_mmu_broken_json"] > 5


def test_resuming_with_other_workers(run, tmp_path):
    run(max_steps=1, save_strategy="steps", save_steps=1)
    position = json.loads((tmp_path / "checkpoint-1" / "data_position_0.json").read_text())
    assert position["dataloader_num_workers"] == 0
    with pytest.raises(ValueError, match="`dataloader_num_workers` must be what it was, 0, got 1"):
        run(resume_from=str(tmp_path / "checkpoint-1"), dataloader_num_workers=1)


@pytest.mark.parametrize(("rank", "num_ranks"), [(0, 2), (1, 2)])
def test_another_number_of_ranks_is_refused(rank, num_ranks, run, tmp_path):
    stream = run(max_steps=1, save_strategy="steps", save_steps=1).train_dataset
    stream.rank, stream.num_ranks = rank, num_ranks  # of a second rank there is no file
    with pytest.raises(ValueError, match="`num_ranks` must be what it was, 1, got 2"):
        check_position(tmp_path / "checkpoint-1", stream, 0)
    (tmp_path / "checkpoint-1" / "data_position_0.json").unlink()
    with pytest.raises(ValueError, match="cannot go on where it was: '.*checkpoint-1' has no data_position"):
        check_position(tmp_path / "checkpoint-1", stream, 0)


def test_a_stream_needs_max_steps(run):
    with pytest.raises(ValueError, match="max_steps"):
        run(max_steps=-1)
