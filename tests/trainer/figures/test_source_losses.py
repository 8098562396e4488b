"""The losses of each source in training are those of its own targets, over all micro-batches of the step."""

import pytest
import torch
from data_files import file_model, file_processor, file_vae, write_drawings, write_questions, write_texts

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data.loader import StreamLoader
from trainer.figures.source_losses import source_names


LENGTH = 96


@pytest.fixture
def run(tmp_path, trainer_of):
    def build(sources, **arguments):
        processor = file_processor()
        return trainer_of(
            file_model(processor),
            RosettaDataStream(sources, processor, LENGTH, prompt_dropout=0.0),
            data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            **arguments,
        )

    return build


def test_text_losses(run, tmp_path):
    (tmp_path / "a").mkdir()
    sources = [
        DataSource("lm", str(write_texts(tmp_path / "a", 40)), weight=0.5),
        DataSource("mmu", str(write_questions(tmp_path / "questions", 20)), weight=0.5),
    ]
    trainer = run(sources, max_steps=2, logging_steps=2, learning_rate=0.0)
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss" in log]

    loader = iter(StreamLoader(trainer.train_dataset, trainer.data_collator, batch_size=2))
    trainer.train_dataset.start_from([None], 0)
    second_step = [next(loader) for _ in range(4)][2:]
    sums, counts = torch.zeros(2), torch.zeros(2)
    for batch in second_step:
        sources_of = batch.pop("sample_sources")
        for number in (0, 1):
            labels = batch["labels"].clone()
            for sample, source in enumerate(sources_of.tolist()):
                if source != number:
                    labels[batch["sequence_ids"] == sample] = -100
            count = (labels[:, 1:] != -100).sum()
            with torch.no_grad():
                loss = trainer.model(**{**batch, "labels": labels}, use_cache=False).text_loss
            sums[number] += loss * count
            counts[number] += count
    expected = (sums / counts).tolist()
    assert [log["lm_a_text_loss"], log["mmu_questions_text_loss"]] == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert not any(name.endswith("_flow_loss") for name in log)


def test_flow_losses_add_up(run, tmp_path):
    files = [write_drawings(tmp_path / f"{name}.parquet", range(i, i + 10)) for name, i in (("x", 0), ("y", 10))]
    sources = [DataSource("t2i", file, weight=0.5) for file in files]
    trainer = run(sources, vae=file_vae(), max_steps=1, logging_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    numbers, batches = torch.zeros(2), iter(StreamLoader(trainer.train_dataset, trainer.data_collator, batch_size=2))
    for _ in range(2):
        numbers += next(batches)["sample_sources"].bincount(minlength=2)
    losses = torch.tensor([log["t2i_x_flow_loss"], log["t2i_y_flow_loss"]])
    assert log["num_latent_images"] == numbers.sum()
    assert (losses * numbers).sum() / numbers.sum() == pytest.approx(log["flow_loss"], rel=1e-5)
    assert losses[0] != losses[1]


def test_other_steps_take_nothing(run, tmp_path):
    (tmp_path / "a").mkdir()
    trainer = run([DataSource("lm", str(write_texts(tmp_path / "a", 40)))], max_steps=3, logging_steps=2)
    heard = []
    add = trainer._source_losses.add_to_mean
    trainer._source_losses.add_to_mean = lambda *args: (heard.append(trainer.state.global_step), add(*args))
    trainer.train()
    assert heard == [1, 1]  # the two micro-batches of the second step


def test_names_differ():
    paths = ["data/text", "more/text", "data/x.jsonl.gz"]
    sources = [DataSource("lm", path) for path in paths]
    assert source_names(sources) == ["lm_text_1", "lm_text_2", "lm_x"]
