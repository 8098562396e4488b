"""One reader's way through the samples of a source: records one after another, and long documents piece by piece."""

import random
from collections.abc import Iterator

import torch
from datasets import Dataset, IterableDataset

from .bad_records import BadRecord, SkippedRecords
from .records import training_sample
from .source import DataSource, ShuffledReader, StreamReader


SMALLEST_CUT = 1 / 16  # of a row, below which no room is filled with a piece of a document


def pieces(sample: dict[str, torch.Tensor], max_length: int) -> Iterator[dict[str, torch.Tensor]]:
    """A sample as it is, or a document of more than `max_length` tokens in pieces: rows `(S,)` cut to `(s,)`."""
    length = len(sample["input_ids"])
    if length <= max_length:
        yield sample
        return
    for start in range(0, length, max_length):
        yield {key: values[start : start + max_length] for key, values in sample.items()}


class SampleReader:
    """
    The samples of one source, for one reader. A record that cannot be trained on is counted and passed over. A
    document that is longer than a row comes in pieces, disjoint, in order, and together the whole of it.

    Args:
        source (`DataSource`)
        records (`Dataset` or `IterableDataset`): of the source.
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a sample.
        max_skipped_share (`float`): see [`SkippedRecords`].
        reader, num_readers, seed (`int`): see [`ShuffledReader`].
    """

    def __init__(
        self,
        source: DataSource,
        records: Dataset | IterableDataset,
        processor,
        max_length: int,
        max_skipped_share: float,
        reader: int,
        num_readers: int,
        seed: int,
    ):
        self.source = source
        self.processor = processor
        self.max_length = max_length
        self.seed = f"{seed} {reader}"
        kind = ShuffledReader if isinstance(records, Dataset) else StreamReader
        self.records = kind(records, reader, num_readers, seed)
        self.skipped = SkippedRecords(str(source), max_skipped_share)
        self.before: dict = {}
        self.rest: dict[str, torch.Tensor] | None = None
        self.num_given = 0

    @property
    def is_within_a_document(self) -> bool:
        """Whether the next sample goes on with the document of the last one."""
        return self.num_given > 0

    def next(self, room: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
        """
        The next sample, and the records that were skipped on the way to it, each the [`BadRecord.entry`].

        Args:
            room (`int`): tokens for which there is room in a row that was begun. The next piece of what is left of a
                document fills it, if that is longer than a row.

        Raises:
            RuntimeError: if records cannot be read, or too many were skipped.
        """
        skipped = []
        while self.rest is None:
            self.before, sample = self.records.state_dict(), self.read()
            if isinstance(sample, BadRecord):
                self.skipped.add(sample)
                skipped.append(sample.entry(self.source))
            else:
                self.skipped.add(None)
                self.rest = sample
        length = len(self.rest["input_ids"])
        if length <= self.max_length:
            sample, self.rest, self.num_given = self.rest, None, 0
            return sample, skipped
        length = room if SMALLEST_CUT * self.max_length <= room < self.max_length else self.max_length
        piece = {key: values[:length] for key, values in self.rest.items()}
        self._pass_over(length)
        return piece, skipped

    def read(self) -> dict[str, torch.Tensor] | BadRecord:
        """The next record as a sample, a document as a whole, or why it is none."""
        try:
            record = next(self.records)
        except Exception as error:
            raise RuntimeError(f"{self.source}: reading its records failed, {error}") from error
        choose = random.Random(f"{self.seed} {self.records.epoch} {self.records.place}")
        try:
            return training_sample(record, self.source, self.processor, self.max_length, choose)
        except BadRecord as error:
            error.place = self.source.place(record, self.records.place)
            return error

    def state_dict(self) -> dict:
        records = self.before if self.num_given else self.records.state_dict()
        return {**records, "num_given": self.num_given}

    def load_state_dict(self, state: dict, skipped: dict):
        """`skipped`: the state of what was skipped."""
        self.records.load_state_dict(state)
        self.skipped.load_state_dict(skipped)
        self.rest, self.num_given = None, 0
        if state["num_given"]:  # tokens of a document
            self.before, document = self.records.state_dict(), self.read()
            if isinstance(document, BadRecord):
                raise RuntimeError(f"{self.source}: a document that was begun is not what it was, {document}")
            self.rest = document
            self._pass_over(state["num_given"])

    def _pass_over(self, length: int):
        self.rest = {key: values[length:] for key, values in self.rest.items()}
        self.num_given += length


__all__ = ["SampleReader", "pieces"]
