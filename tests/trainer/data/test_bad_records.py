"""A share of bad records that is allowed never stops a reader, a larger one soon does."""

import random
from pathlib import Path

import numpy as np
import pytest
from data_files import TOOLS_OF_FUZZ

from trainer.data.bad_records import MIN_RECORDS, NUM_LOGGED, BadRecord, SkippedRecords


ERROR = BadRecord("empty", "text is empty")


def _stop(share: float, limit: float, records: int, rng: random.Random) -> int | None:
    """The record at which a reader stops, `None` if it does not. Good records are counted, but not one by one."""
    skipped = SkippedRecords("a source", limit)
    while skipped.num_records < records:
        skipped.num_records += int(np.log(1 - rng.random()) / np.log1p(-share)) if share < 1 else 0
        try:
            skipped.add(ERROR)
        except RuntimeError:
            return skipped.num_records
    return None


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("share", [0.2, 1])
def test_an_allowed_share_never_stops(share, limit):
    rng = random.Random(0)
    assert not any(_stop(share * limit, limit, int(100 / limit), rng) for _ in range(256))


@pytest.mark.parametrize(("share", "soonest", "latest"), [(0.02, 1_000, 30_000), (0.05, 100, 2_000), (1, 100, 100)])
def test_a_larger_share_stops_soon(share, soonest, latest):
    rng = random.Random(0)
    stops = [_stop(share, 0.01, 10 * latest, rng) for _ in range(50)]
    assert all(soonest <= stop <= latest for stop in stops)


@pytest.mark.parametrize("limit", [0, 0.01, 0.5, 1])
def test_a_source_of_bad_records_alone_stops(limit):
    skipped = SkippedRecords("a source", limit)
    for _ in range(MIN_RECORDS - 1):
        skipped.add(ERROR)
    with pytest.raises(
        RuntimeError, match=f"100 of 100 .* `max_skipped_share` = {limit}: .* the last a record, empty"
    ):
        skipped.add(ERROR)


def test_where_none_is_allowed_one_stops():
    skipped = SkippedRecords("a source", 0)
    skipped.add(ERROR)
    for _ in range(MIN_RECORDS - 2):
        skipped.add(None)
    with pytest.raises(RuntimeError, match="1 of 100 records were skipped"):
        skipped.add(None)


def test_where_all_are_allowed_one_good_one_is_enough():
    skipped = SkippedRecords("a source", 1)
    skipped.add(None)
    for _ in range(1000):
        skipped.add(ERROR)


def test_a_cluster_among_many_good_ones_is_no_share():
    skipped = SkippedRecords("a source", 0.01)
    skipped.num_records = 100_000
    for _ in range(1000):
        skipped.add(ERROR)


def test_messages_name_the_place_and_are_no_flood(caplog):
    skipped, error = SkippedRecords("a source", 1), BadRecord("broken_json", "x" * 10_000)
    error.place = "a.jsonl, line 7"
    skipped.add(None)
    for _ in range(10):
        skipped.add(error)
    assert len(caplog.messages) == NUM_LOGGED
    assert caplog.messages[0].startswith("skipped a.jsonl, line 7, broken_json: xxx") and len(caplog.messages[0]) < 400


def test_fuzz(tmp_path, monkeypatch):
    """`benchmarks/fuzz_records.py` in short."""
    monkeypatch.syspath_prepend(TOOLS_OF_FUZZ)
    monkeypatch.setattr("trainer.data.stream.NUM_OPEN_ROWS", 2)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1_000_000)
    from fuzz_records import fuzz

    table, wrong = fuzz(Path(tmp_path), 240, seed=0, layouts=((1, 0, False), (2, 0, True)))
    assert wrong == [] and len(table) > 25
    assert sum(fates.total() for fates in table.values()) >= 240
