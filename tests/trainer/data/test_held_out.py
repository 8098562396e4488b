"""What a run is evaluated on."""

import json

import pytest
from data_files import file_processor

from trainer import DataSource
from trainer.data.held_out import held_out_rows


MAX_LENGTH = 60


@pytest.fixture
def source(tmp_path):
    def write(texts):
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return DataSource("lm", str(tmp_path / "a.jsonl"))

    return write


def _tokens(rows):
    return sorted(tuple(sample["input_ids"].tolist()) for row in rows for sample in row)


def test_all_of_a_small_source_is_there_once(source):
    processor = file_processor()
    texts = [f"text {i}" for i in range(20)]
    rows = held_out_rows(source([*texts, 7]), processor, MAX_LENGTH, 100)
    assert _tokens(rows) == sorted(tuple(processor.training_sample(text)["input_ids"].tolist()) for text in texts)
    assert max(sum(len(sample["input_ids"]) for sample in row) for row in rows) <= MAX_LENGTH


def test_of_a_large_one_some_that_the_seed_chooses(source):
    processor, texts = file_processor(), [f"text {i}" for i in range(50)]
    rows = [held_out_rows(source(texts), processor, MAX_LENGTH, 10, seed) for seed in (0, 0, 1)]
    assert len(_tokens(rows[0])) == 10 and _tokens(rows[0]) == _tokens(rows[1]) != _tokens(rows[2])


def test_long_documents_are_cut(source):
    rows = held_out_rows(source(["a" * 150]), file_processor(), MAX_LENGTH, 10)
    assert [len(sample["input_ids"]) for row in rows for sample in row] == [60, 60, 31]


def test_no_record_to_evaluate_on(source):
    with pytest.raises(ValueError, match="`validation`: no record of lm from .* can be used, the last was wrong_type"):
        held_out_rows(source([7]), file_processor(), MAX_LENGTH, 10)
