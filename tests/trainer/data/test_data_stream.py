"""Shares, rows and positions of a stream."""

import json
from itertools import islice

import pytest
from data_files import file_processor, text, write_questions, write_texts

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data import StreamLoader


MAX_LENGTH = 120


@pytest.fixture(scope="module")
def processor():
    return file_processor()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "b" / "bad.jsonl").write_text(
        "\n".join(json.dumps({"text": text(i)}) if i % 4 else "{" for i in range(40)) + "\n"
    )
    return [
        DataSource("lm", str(write_texts(folder / "a", 50, files=2)), weight=6, streaming=True),
        DataSource("lm", str(folder / "b" / "bad.jsonl"), weight=2.5),
        DataSource("mmu", str(write_questions(folder / "c", 30)), weight=1.5),
    ]


@pytest.fixture
def stream(sources, processor):
    def build(**kwargs):
        return RosettaDataStream(sources, processor, **{"max_length": MAX_LENGTH, "max_skipped_share": 0.5, **kwargs})

    return build


def _tokens(row):
    return [sample["input_ids"].tolist() for sample in row.samples]


def test_shares_are_exact_at_any_time(stream):
    shares, total = [0.6, 0.25, 0.15], 0
    images = 0
    for row in islice(stream(), 400):
        drawn = row.position["before"]["num_samples"]
        assert all(abs(number - share * sum(drawn)) <= 1 for number, share in zip(drawn, shares, strict=True))
        total += len(row.samples)
        images += sum("pixel_values" in sample for sample in row.samples)
    assert total > 1000 and abs(images / total - 0.15) < 0.02


def test_rows_hold_all_samples_and_leave_little_room(stream):
    rows = list(islice(stream(), 160))
    lengths = [sum(map(len, _tokens(row))) for row in rows]
    assert max(lengths) <= MAX_LENGTH and sum(lengths) / len(lengths) > 0.85 * MAX_LENGTH
    position = rows[-1].position  # of the last 16 rows
    given = sum(position["before"]["num_samples"]) + len(position["lengths"]) - len(position["aside"])
    assert sum(len(row.samples) for row in rows[:-16]) == given


def test_skipped_records_are_counted_once(stream):
    rows = list(islice(stream(), 160))
    counted = sum((row.skipped for row in rows[:-16]), rows[0].skipped.__class__())
    recorded = [state["reasons"] for state in rows[-1].position["before"]["skipped"]]
    assert recorded[0] == recorded[2] == {} and recorded[1]["broken_json"] > 20
    assert counted == {("lm", "broken_json"): recorded[1]["broken_json"]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_goes_on_where_it_was(num_workers, stream):
    def loader():
        collator = RosettaDataCollator(pad_token_id=0)
        return StreamLoader(stream(), collator, batch_size=3, num_workers=num_workers)

    def take(loader, number):
        return [(batch["input_ids"].tolist(), batch["sequence_ids"].tolist()) for batch in islice(loader, number)]

    whole = loader()
    expected = take(whole, 15)
    for k in (1, 2, 7, 12):
        interrupted = loader()
        take(interrupted, k)
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = loader()
        resumed.load_state_dict(state)
        assert take(resumed, 15 - k) == expected[k:]
        assert resumed.skipped == whole.skipped


def test_position_needs_the_same_sources_and_workers(stream, sources, processor):
    collator = RosettaDataCollator(pad_token_id=0)
    state = StreamLoader(stream(), collator, num_workers=2).state_dict()
    with pytest.raises(ValueError, match="`dataloader_num_workers` must be what it was, 2, got 0"):
        StreamLoader(stream(), collator).load_state_dict(state)
    with pytest.raises(ValueError, match="`sources` must be what it was"):
        other = RosettaDataStream(sources[:1], processor, MAX_LENGTH)
        StreamLoader(other, collator, num_workers=2).load_state_dict(state)


def test_ranks_and_workers_read_different_records(stream, sources, processor):
    seen = []
    for rank in range(2):
        part = RosettaDataStream(sources[:1], processor, MAX_LENGTH)
        part.rank, part.num_ranks = rank, 2
        loader = StreamLoader(part, lambda rows: {"rows": rows}, batch_size=1, num_workers=2)
        texts = [tuple(sample["input_ids"].tolist()) for batch in islice(loader, 4) for sample in batch["rows"][0]]
        seen.append(set(texts))
    assert not seen[0] & seen[1]


def test_too_many_skipped_records_stop_the_stream(stream):
    with pytest.raises(
        RuntimeError,
        match=r"bad.jsonl: \d\d of 1\d\d records .* `max_skipped_share` = 0.05: .*bad.jsonl, line \d+, broken",
    ):
        list(islice(stream(max_skipped_share=0.05), 1000))


def test_a_source_without_any_good_record_stops_the_stream(tmp_path, processor):
    (tmp_path / "bad.jsonl").write_text("{\n" * 7)
    bad = [DataSource("lm", str(tmp_path / "bad.jsonl"))]
    with pytest.raises(RuntimeError, match="100 of 100 records were skipped"):
        next(iter(RosettaDataStream(bad, processor, MAX_LENGTH, max_skipped_share=1.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"prompt_dropout": 1.5}, "`prompt_dropout` must be between 0 and 1, got 1.5"),
        ({"max_skipped_share": -1}, "`max_skipped_share` must be between 0 and 1, got -1"),
    ],
)
def test_wrong_arguments(changes, message, stream):
    with pytest.raises(ValueError, match=message):
        stream(**changes)


def test_no_sources(processor):
    with pytest.raises(ValueError, match="`sources` is empty"):
        RosettaDataStream([], processor, MAX_LENGTH)


@pytest.fixture
def mixture(tmp_path, processor):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i:03}\n" for i in range(200)))

    def build(share_of_a, num_workers=0, **kwargs):
        weights = {"a": share_of_a, "b": 1 - share_of_a}
        files = {name: str(tmp_path / f"{name}.txt") for name in "ab"}
        sources = [DataSource("lm", files[name], weights[name], sample_by="line") for name in "ab"]
        collator = RosettaDataCollator(pad_token_id=0)
        # Six tokens a sample, so that a row of 14 holds two.
        return StreamLoader(RosettaDataStream(sources, processor, 14), collator, num_workers=num_workers, **kwargs)

    return build


def _drawn(loader, number, processor) -> list[str]:
    batches = [batch["input_ids"] for batch in islice(loader, number)]
    texts = [processor.tokenizer.decode(row[i : i + 5]) for batch in batches for row in batch for i in (0, 6)]
    assert all(len(text) == 5 and text[0] in "ab" for text in texts)
    return texts


@pytest.mark.parametrize("num_workers", [0, 2])
def test_other_weights_count_from_now_on(num_workers, mixture, processor, caplog):
    first = mixture(0.9, num_workers)
    before = _drawn(first, 21, processor)
    assert abs(sum(text[0] == "a" for text in before) - 0.9 * 42) <= 2
    state = json.loads(json.dumps(first.state_dict()))

    def resumed(state):
        loader = mixture(0.5, num_workers)
        loader.load_state_dict(json.loads(json.dumps(state)))
        return loader

    second = resumed(state)
    assert caplog.messages == [
        "The weights of the sources were [0.9, 0.09999999999999998] and are [0.5, 0.5]: their shares are counted from "
        "here on."
    ]
    after = _drawn(second, 80, processor)
    # Rows that were begun are filled as they were begun; then the shares since the change are exact.
    assert abs(sum(text[0] == "a" for text in after) - 80) <= 2 * max(1, num_workers)
    late = [text[0] for text in after[80:]]
    assert abs(late.count("a") - 40) <= 2 * max(1, num_workers)
    assert len(set(before + after)) == len(before + after) or num_workers  # nothing is given twice, nothing left out
    for k in (1, 5, 16, 17, 40):  # interrupted again, before and after the change is in force
        loader = resumed(state)
        head = _drawn(loader, k, processor)
        tail = _drawn(resumed(loader.state_dict()), 80 - k, processor)
        assert head + tail == after


def test_position_needs_the_same_records(mixture, processor, tmp_path):
    state = mixture(0.5).state_dict()
    with open(tmp_path / "b.txt", "a") as file:
        file.write("b 200\n")
    with pytest.raises(ValueError, match=r"`num_records` must be what it was, \[200, 200\], got \[200, 201\]"):
        mixture(0.5).load_state_dict(state)


def test_skipped_records_are_listed_on_disk(stream, sources, tmp_path):
    def loader(**kwargs):
        kwargs = {"bad_records_folder": str(tmp_path), "batch_size": 3, "num_workers": 2, **kwargs}
        return StreamLoader(stream(), RosettaDataCollator(pad_token_id=0), **kwargs)

    def listed():
        lines = (tmp_path / "rank_0.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    whole = loader()
    list(islice(whole, 20))
    expected = listed()
    assert len(expected) == whole.skipped.total() > 10
    path = sources[1].path
    lines = [int(record.pop("place").removeprefix(f"{path}, line ")) for record in listed()]
    assert {line % 4 for line in lines} == {1}  # as they were written
    detail = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert expected[0] == {
        "task": "lm",
        "source": path,
        "place": f"{path}, line {lines[0]}",
        "reason": "broken_json",
        "detail": detail,
    }
    interrupted = loader()
    list(islice(interrupted, 7))
    state, some = interrupted.state_dict(), listed()
    assert some == expected[: len(some)] and 0 < len(some) < len(expected)
    list(islice(loader(), 12))  # gone on with, but not saved
    resumed = loader()
    resumed.load_state_dict(state)
    list(islice(resumed, 13))
    assert listed() == expected
