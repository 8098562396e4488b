"""The stream of packed rows that a stage trains on."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import IterableDataset, get_worker_info

from .bad_records import BadRecord, SkippedRecords
from .packing import FirstFit
from .records import training_sample
from .source import DataSource, ShuffledReader, StreamReader


NUM_OPEN_ROWS = 16  # that are filled at a time


@dataclass
class Row:
    """
    Args:
        samples (`list[dict]`): that together fill a row of the batch.
        bad_records (`list[dict]`): that were skipped on the way to it, each the [`BadRecord.entry`].
        worker (`int`): of this rank, that made it.
        position (`dict`): where this worker stands after it; JSON.
    """

    samples: list[dict]
    bad_records: list[dict]
    worker: int
    position: dict

    @property
    def skipped(self) -> Counter:
        """Numbers of the records that were skipped, by (task, reason)."""
        return Counter((record["task"], record["reason"]) for record in self.bad_records)


class RosettaDataStream(IterableDataset):
    """
    Mixes sources, turns records into samples and packs them into rows, for ever. Every worker of every rank reads a
    part of its own of each source. In each the number of samples of a source is at any time within one of its share;
    if a run goes on with other weights, of those drawn since, once the rows are full that were begun.
    A record that cannot be trained on is counted and skipped, and the next one of its source comes instead.

    Args:
        sources (`list[DataSource]`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a row.
        seed (`int`): of the order of records, and of the prompts that are dropped.
        prompt_dropout (`float`): share of the images to draw that are trained without their prompt, for
            classifier-free guidance.
        max_skipped_share (`float`): the share of skipped records of a source above which a reader stops the run, once
            it is sure ([`SkippedRecords`]).

    Raises:
        ValueError: if an argument is out of its range.
        RuntimeError: while reading, if too many records were skipped.
    """

    def __init__(
        self,
        sources: list[DataSource],
        processor,
        max_length: int,
        seed: int = 0,
        prompt_dropout: float = 0.1,
        max_skipped_share: float = 0.01,
    ):
        if not sources:
            raise ValueError("`sources` is empty.")
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, got {max_length}.")
        for name, share in (("prompt_dropout", prompt_dropout), ("max_skipped_share", max_skipped_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {share}.")
        self.sources = sources
        self.processor = processor
        self.max_length = max_length
        self.seed = seed
        self.prompt_dropout = prompt_dropout
        self.max_skipped_share = max_skipped_share
        self.records = [source.open() for source in sources]
        self.rank, self.num_ranks = PartialState().process_index, PartialState().num_processes
        self.start_from([None], 0)

    def start_from(self, positions: list[dict | None], next_worker: int):
        """
        Args:
            positions (`list[dict | None]`): of each worker of this rank, `position` of its last [`Row`], if any.
            next_worker (`int`): whose row is next.
        """
        self.positions = positions
        self.next_worker = next_worker

    def __iter__(self) -> Iterator[Row]:
        info = get_worker_info()
        num_workers, process = (1, 0) if info is None else (info.num_workers, info.id)
        # A loader asks its first process first: that is the worker whose row is next.
        worker = (process + self.next_worker) % num_workers
        reader = _MixedReader(self, self.rank * num_workers + worker, self.num_ranks * num_workers)
        for samples, bad_records, position in reader.rows(self.positions[worker]):
            yield Row(samples, bad_records, worker, position)


class _MixedReader:
    """Draws samples of all sources at their shares, for one worker of one rank, and packs them."""

    def __init__(self, stream: RosettaDataStream, reader: int, num_readers: int):
        self.stream = stream
        self.reader = reader
        self.readers = [
            (ShuffledReader if isinstance(records, Dataset) else StreamReader)(
                records, reader, num_readers, stream.seed + index
            )
            for index, records in enumerate(stream.records)
        ]
        self.skipped = [SkippedRecords(str(source), stream.max_skipped_share) for source in stream.sources]
        self.weights = [source.weight for source in stream.sources]
        self.num_samples = [0] * len(stream.sources)
        self.num_before = [0] * len(stream.sources)  # drawn with other weights

    def rows(self, position: dict | None) -> Iterator[tuple[list[dict], list[dict], dict]]:
        """
        Rows of samples, what was skipped, and the position after each. Several rows are filled at a time: a position
        is the state before their first sample was drawn, and how many of them were given since.

        Rows that were begun are filled with the weights they were begun with. Where others come into force is part of
        the position: their shares are counted from there.
        """
        weights, changed_after, num_given = self.weights, None, 0
        if position is not None:
            num_given = position["num_given"]
            self._load_state(position["before"])
            if self.weights != weights:
                changed_after = position["changed_after"] if position["weights"] == weights else num_given
        before, drawn = self._state(), None
        while True:
            packer, skipped = FirstFit(self.stream.max_length, NUM_OPEN_ROWS), []
            while True:
                if drawn is None:
                    before_sample, drawn = self._state(), self._draw()
                index, sample, skipped_before_sample = drawn
                if not packer.add((index, sample), len(sample["input_ids"])):
                    break  # it begins the next rows
                skipped += skipped_before_sample
                drawn = None
            for number, row in enumerate(packer.rows, start=1):
                if number > num_given:
                    news = skipped if number == 1 else []
                    place = {"num_given": number, "weights": weights, "changed_after": changed_after}
                    yield [sample for _, sample in row], news, {"before": before, **place}
            if changed_after is not None:
                given = Counter(index for row in packer.rows[:changed_after] for index, _ in row)
                num_before = [number + given[index] for index, number in enumerate(before["num_samples"])]
                before_sample = {**before_sample, "weights": weights, "num_before": num_before}
                self._load_state(before_sample)
                changed_after, drawn = None, None
            before, num_given = before_sample, 0

    def _draw(self) -> tuple[int, dict, list[dict]]:
        """A sample of the source that is furthest behind its share, its index, and what was skipped on the way."""
        number = sum(self.num_samples)
        shares = [weight / sum(self.weights) for weight in self.weights]
        drawn = [now - before for now, before in zip(self.num_samples, self.num_before, strict=True)]
        index = max(range(len(shares)), key=lambda i: shares[i] * (sum(drawn) + 1) - drawn[i])
        source, reader, processor = self.stream.sources[index], self.readers[index], self.stream.processor
        sample, skipped = None, []
        while sample is None:
            try:
                record = next(reader)
            except Exception as error:
                raise RuntimeError(f"{source}: reading its records failed, {error}") from error
            try:
                sample = training_sample(record, source, processor, self.stream.max_length)
                self.skipped[index].add(None)
            except BadRecord as error:
                error.place = source.place(record, reader.place)
                self.skipped[index].add(error)
                skipped.append(error.entry(source))
        if source.task == "t2i":
            choose = random.Random(f"{self.stream.seed} {self.reader} {number}")
            if choose.random() < self.stream.prompt_dropout:
                sample = processor.drop_prompt(sample)
        self.num_samples[index] += 1
        return index, sample, skipped

    def _state(self) -> dict:
        return {
            "weights": self.weights,
            "num_samples": list(self.num_samples),
            "num_before": list(self.num_before),
            "readers": [reader.state_dict() for reader in self.readers],
            "skipped": [skipped.state_dict() for skipped in self.skipped],
        }

    def _load_state(self, state: dict):
        self.weights = state["weights"]
        self.num_samples, self.num_before = list(state["num_samples"]), list(state["num_before"])
        for parts, states in ((self.readers, state["readers"]), (self.skipped, state["skipped"])):
            for part, own in zip(parts, states, strict=True):
                part.load_state_dict(own)


__all__ = ["RosettaDataStream", "Row"]
