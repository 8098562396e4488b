"""Each record goes to exactly one reader an epoch, and a reader goes on exactly where it was."""

import json
import re
import tarfile
import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from data_files import picture, write_questions, write_texts
from datasets import Dataset, Image

from trainer.data import DataSource, source
from trainer.data.source import ShuffledReader, StreamReader


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(source, "BLOCK_SIZE", 5)


def _reader(records, reader, num_readers, seed=0):
    kind = ShuffledReader if isinstance(records, Dataset) else StreamReader
    return kind(records, reader, num_readers, seed)


def _epoch(reader) -> list[str]:
    records = []
    while True:
        record = next(reader)["text"]
        if reader.epoch:
            return records
        records.append(record)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("files", "num_readers"), [(1, 1), (1, 3), (2, 4), (3, 2), (4, 4)])
def test_each_record_goes_to_one_reader(files, num_readers, streaming, tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 37, files)), streaming=streaming).open()
    parts = [_epoch(_reader(records, reader, num_readers)) for reader in range(num_readers)]
    texts = [record for part in parts for record in part]
    assert len(texts) == 37 and len({record.split()[1] for record in texts}) == 37
    assert all(part != sorted(part, key=lambda record: int(record.split()[1])) for part in parts)


def test_readers_of_a_stream_share_out_whole_files(tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 20, files=3)), streaming=True).open()
    assert sum(_reader(records, reader, 2).records.num_shards for reader in range(2)) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_epochs_differ_in_order_and_seeds_too(streaming, tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 20)), streaming=streaming).open()
    reader = _reader(records, 0, 1)
    first, second = ([next(reader)["text"] for _ in range(20)] for _ in range(2))
    assert first != second and sorted(first) == sorted(second)
    other = _reader(records, 0, 1, seed=1)
    assert [next(other)["text"] for _ in range(20)] != first


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_goes_on_where_it_was(num_readers, streaming, tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 23, files=2)), streaming=streaming).open()
    reader = _reader(records, num_readers - 1, num_readers)
    states, texts = [], []
    for _ in range(30):  # into the second epoch at least
        states.append(json.dumps(reader.state_dict()))
        texts.append(next(reader)["text"])
    for k, state in enumerate(states):
        records = DataSource("lm", str(tmp_path), streaming=streaming).open()
        resumed = _reader(records, num_readers - 1, num_readers)
        resumed.load_state_dict(json.loads(state))
        assert [next(resumed)["text"] for _ in range(30 - k)] == texts[k:]


def test_few_records_reach_all_readers(tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 2))).open()
    for reader in range(5):
        numbers = Counter(next(r)["text"] for r in [_reader(records, reader, 5)] for _ in range(20))
        assert len(numbers) == 2


def test_a_stream_with_fewer_records_than_readers_says_so(tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 2)), streaming=True).open()
    with pytest.raises(RuntimeError, match="use fewer workers or ranks"):
        list(islice(iter(lambda: next(_reader(records, 4, 5)), None), 1))


def test_formats(tmp_path):
    def first(**kwargs):
        data = DataSource(**kwargs)
        return data.parse(next(_reader(data.open(), 0, 1)))

    (tmp_path / "list.json").write_text(json.dumps([{"text": "one"}, {"text": 2}]))
    assert first(task="lm", path=str(tmp_path / "list.json"))["text"] in ("one", 2)
    questions = write_questions(tmp_path / "mmu", 1)
    for streaming in (False, True):
        record = first(task="mmu", path=str(questions), streaming=streaming)
        assert record["image"] == "images/0.png" and record["conversations"][0]["from"] == "human"
    pictures = Dataset.from_dict({"image": [{"bytes": picture(0), "path": None}], "caption": ["red"]})
    pictures.cast_column("image", Image()).to_parquet(tmp_path / "pictures.parquet")
    for streaming in (False, True):
        record = first(task="t2i", path=str(tmp_path / "pictures.parquet"), streaming=streaming)
        assert record == {"image": {"bytes": picture(0), "path": None}, "caption": "red"}
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("red")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("a.png", "a.txt"):
            tar.add(tmp_path / name, name)
    for streaming in (False, True):
        record = first(task="t2i", path=str(tmp_path / "shard.tar"), streaming=streaming)
        assert record["png"]["bytes"] == picture(0) and record["txt"] == "red"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(picture(0))
    (tmp_path / "folder" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "red"}))
    record = first(task="t2i", path=str(tmp_path / "folder"))
    assert record["text"] == "red" and record["image"]["path"].endswith("a.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "draw"}, "`task` must be one of .* got 'draw'"),
        ({"weight": 0}, "`weight` must be a number above 0, got 0"),
        ({"weight": "much"}, "`weight` must be a number above 0, got 'much'"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DataSource(**{"task": "lm", "path": str(tmp_path), **changes})


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.jsonl"):
        DataSource("lm", str(tmp_path / "none.jsonl")).open()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="there are no records in .*empty.jsonl"):
        DataSource("lm", str(tmp_path / "empty.jsonl")).open()


def test_a_reader_keeps_its_part_of_the_order_alone(tmp_path):
    records = DataSource("lm", str(write_texts(tmp_path, 40))).open()
    reader = _reader(records, 1, 8)
    assert reader.part.base is None and reader.part.nbytes == 5 * 4
    order = np.random.default_rng([0, 0]).permutation(40)
    assert reader.part.tolist() == order[1::8].tolist()


def test_a_streamed_list_is_not_held(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"text": "x" * 1000} for _ in range(20_000)]))
    reader = _reader(DataSource("lm", str(tmp_path / "list.json"), streaming=True).open(), 0, 1)
    tracemalloc.start()
    for _ in range(10_000):
        next(reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of 20 million characters


def test_places_of_records_that_datasets_reads(tmp_path):
    source = DataSource("lm", str(write_texts(tmp_path, 7)))
    records = source.open()
    reader = _reader(records, 0, 1)
    record = next(reader)
    place = source.place(record, reader.place)
    assert records[int(place.removeprefix(f"{tmp_path}, record "))] == record
    source.streaming = True
    reader = _reader(source.open(), 0, 1)
    record = next(reader)
    found = re.fullmatch(r"record (\d) of block 0 of epoch 0 of reader 0 of 1", reader.place)
    assert records[int(found[1])] == record
