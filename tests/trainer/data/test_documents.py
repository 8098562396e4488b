"""Documents longer than a row: every token once an epoch, in order, however many readers there are."""

import json
import random
from collections import Counter
from itertools import islice

import pytest
from data_files import file_processor

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data import StreamLoader
from trainer.data.bad_records import BadRecord
from trainer.data.records import training_sample
from trainer.data.samples import SampleReader


LENGTHS = (10, 60, 100, 127, 128, 129, 300, 640, 1000, 5000, 40_000)
MAX_LENGTH = 128


@pytest.fixture(scope="module")
def processor():
    return file_processor()


@pytest.fixture(scope="module")
def documents():
    choose = random.Random(0)
    lengths = [*LENGTHS, *(choose.randrange(10, 400) for _ in range(60))]
    return ["".join(choose.choices("abcdefghij ", k=length - 1)) + "x" for length in lengths]


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory):
    file = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    file.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return str(file)


def _loader(source, processor, rank=0, num_ranks=1, num_workers=0, streaming=False, **kwargs):
    stream = RosettaDataStream([DataSource("lm", source, streaming=streaming)], processor, MAX_LENGTH, **kwargs)
    stream.rank, stream.num_ranks = rank, num_ranks
    return StreamLoader(stream, lambda rows: {"rows": rows}, num_workers=num_workers, batch_size=1)


def _epoch(source, processor, reader, num_readers, streaming):
    """The samples of one reader's part, with now this, now that room to fill."""
    source, choose = DataSource("lm", source, streaming=streaming), random.Random(reader)
    samples, reader = [], SampleReader(source, source.open(), processor, MAX_LENGTH, 0.0, reader, num_readers, seed=0)
    while True:
        samples.append(reader.next(choose.randrange(MAX_LENGTH + 1))[0]["input_ids"].tolist())
        if reader.state_dict()["epoch"]:
            return samples[:-1]


def _read(samples, documents, processor) -> Counter:
    """How often each document was read from its beginning to its end, from the samples of one reader, in order."""
    expected = [[*processor.tokenizer(text).input_ids, processor.turn_end_token_id] for text in documents]
    begun, done = [(i, 0) for i in range(len(documents))], Counter()
    for ids in samples:
        # What goes on with a document comes before what begins it anew.
        fitting = [(i, at) for i, at in begun if expected[i][at : at + len(ids)] == ids]
        assert fitting, "a sample is no next piece of any document"
        i, at = max(fitting, key=lambda entry: entry[1])
        if at:
            begun.remove((i, at))
        if at + len(ids) == len(expected[i]):
            done[i] += 1
        else:
            begun.append((i, at + len(ids)))
    return done


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_readers", [1, 2, 3, 6])  # 1, 2 and 3 ranks, with 0 and 2 workers
def test_every_token_is_seen_once_an_epoch(num_readers, streaming, source, documents, processor):
    done = Counter()
    for reader in range(num_readers):
        done += _read(_epoch(source, processor, reader, num_readers, streaming), documents, processor)
    assert done == Counter(range(len(documents)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_hold_documents_in_order(num_workers, source, documents, processor):
    samples = [[] for _ in range(max(1, num_workers))]
    for number, batch in enumerate(islice(_loader(source, processor, num_workers=num_workers), 1000)):
        samples[number % len(samples)] += [sample["input_ids"].tolist() for sample in batch["rows"][0]]
    done = sum((_read(part, documents, processor) for part in samples), Counter())
    assert set(done) == set(range(len(documents)))


def test_pieces_are_rows_of_their_own_and_end_once(source, documents, processor):
    samples = [sample for batch in islice(_loader(source, processor), 400) for sample in batch["rows"][0]]
    assert max(len(sample["input_ids"]) for sample in samples) == MAX_LENGTH
    for sample in samples:
        assert sample.keys() == {"input_ids", "token_type_ids", "labels"}
        assert (sample["labels"][1:] == sample["input_ids"][1:]).all()
        assert (sample["input_ids"][:-1] != processor.turn_end_token_id).all()


def test_rows_are_full(source, processor):
    rows = [batch["rows"][0] for batch in islice(_loader(source, processor), 300)]
    filled = sum(len(sample["input_ids"]) for row in rows for sample in row)
    assert filled / (len(rows) * MAX_LENGTH) > 0.98


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_reader_that_is_stopped_anywhere_goes_on(num_workers, source, processor):
    def tokens(loader, number):
        return [[s["input_ids"].tolist() for s in batch["rows"][0]] for batch in islice(loader, number)]

    expected = tokens(_loader(source, processor, num_workers=num_workers), 80)
    for k in (1, 5, 17, 31, 32, 33, 64):
        loader = _loader(source, processor, num_workers=num_workers)
        assert tokens(loader, k) == expected[:k]
        again = _loader(source, processor, num_workers=num_workers)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert tokens(again, 80 - k) == expected[k:]


def test_shares_of_tokens(source, processor, tmp_path):
    (tmp_path / "short.jsonl").write_text("\n".join(json.dumps({"text": f"short {i}"}) for i in range(50)))
    sources = [DataSource("lm", source, weight=3), DataSource("lm", str(tmp_path / "short.jsonl"), weight=1)]
    stream = RosettaDataStream(sources, processor, MAX_LENGTH, shares_of="tokens")
    for row in islice(stream, 300):
        long, short = row.position["before"]["num_tokens"]
        assert abs(short - 0.25 * (long + short)) <= MAX_LENGTH
    assert long + short > 30_000


def test_a_conversation_is_not_cut(processor):
    turns = [{"role": "user", "content": "a" * 200}, {"role": "assistant", "content": "b"}]
    with pytest.raises(BadRecord, match="too_long: 222 tokens, the most are 128"):
        training_sample({"messages": turns}, DataSource("lm", "nowhere"), processor, MAX_LENGTH)


def test_pieces_stand_alone_in_a_batch(source, processor):
    rows = [batch["rows"][0] for batch in islice(_loader(source, processor), 20)]
    batch = RosettaDataCollator(0, MAX_LENGTH)(rows)
    numbers = set(batch["sequence_ids"].flatten().tolist()) - {-1}
    assert len(numbers) == sum(map(len, rows))


def test_what_the_shares_are_of(source, processor):
    with pytest.raises(ValueError, match=r"`shares_of` must be one of \('samples', 'tokens'\), got 'rows'"):
        RosettaDataStream([DataSource("lm", source)], processor, MAX_LENGTH, shares_of="rows")
