"""The stream of packed rows that a stage trains on."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch.utils.data import IterableDataset, get_worker_info

from modeling_rosetta.latent_roles_rosetta import CONTEXT

from .packing import BestFit
from .samples import SampleReader
from .source import DataSource


SHARES_OF = ("samples", "tokens")
NUM_OPEN_ROWS = 16  # that are filled at a time


@dataclass
class Row:
    """
    Args:
        samples (`list[dict]`): that together fill a row of the batch.
        sources (`list[int]`): the number of the source of each.
        bad_records (`list[dict]`): that were skipped on the way to it, each the [`BadRecord.entry`].
        worker (`int`): of this rank, that made it.
        position (`dict`): where this worker stands after it; JSON.
    """

    samples: list[dict]
    sources: list[int]
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
    part of its own of each source. In each the number of samples of a source is at any time within one of its share
    (with `shares_of="tokens"` that of its tokens, within a row of it); if a run goes on with other weights, of those
    drawn since, once the rows are full that were begun. A text that is longer than a row comes as several samples.
    A record that cannot be trained on is counted and skipped, and the next one of its source comes instead.

    Args:
        sources (`list[DataSource]`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a row.
        seed (`int`): of the order of records, and of the prompts that are dropped.
        prompt_dropout (`float`): share of the images to draw that are trained without their prompt, for
            classifier-free guidance; as many more without the images that they are drawn from, and without both.
        max_skipped_share (`float`): the share of skipped records of a source above which a reader stops the run, once
            it is sure ([`SkippedRecords`]).
        shares_of (`str`, defaults to `"samples"`): what the weights are shares of, `"samples"` or `"tokens"`.

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
        shares_of: str = "samples",
    ):
        if not sources:
            raise ValueError("`sources` is empty.")
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, got {max_length}.")
        for name, share in (("prompt_dropout", prompt_dropout), ("max_skipped_share", max_skipped_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {share}.")
        if shares_of not in SHARES_OF:
            raise ValueError(f"`shares_of` must be one of {SHARES_OF}, got {shares_of!r}.")
        self.sources = sources
        self.processor = processor
        self.max_length = max_length
        self.seed = seed
        self.prompt_dropout = prompt_dropout
        self.max_skipped_share = max_skipped_share
        self.shares_of = shares_of
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
        for row, bad_records, position in reader.rows(self.positions[worker]):
            samples, sources = [drawn.sample for drawn in row], [drawn.index for drawn in row]
            yield Row(samples, sources, bad_records, worker, position)


class _Drawn(NamedTuple):
    """
    Args:
        index (`int`): of the source.
        sample (`dict`)
        length (`int`): tokens of it.
        goes_on (`bool`): with the document of the source's last sample.
    """

    index: int
    sample: dict
    length: int
    goes_on: bool


class _Rows:
    """
    Rows that are filled at a time. The pieces of a document come to stand in their order.

    Attributes:
        aside (`list[_Drawn]`): samples for which there is no room.
    """

    def __init__(self, max_length: int):
        self.packer = BestFit(max_length, NUM_OPEN_ROWS)
        self.aside: list[_Drawn] = []
        self.last_row: dict[int, int | None] = {}  # of each source's last sample

    def add(self, drawn: _Drawn):
        row = self.last_row.get(drawn.index, 0) if drawn.goes_on else 0
        if row is not None:
            row = self.packer.add(drawn, drawn.length, first_row=row)
        if row is None:
            self.aside.append(drawn)
        self.last_row[drawn.index] = row

    def hole(self, index: int, goes_on: bool) -> int:
        """The most room for a sample in a row that was begun."""
        row = self.last_row.get(index, 0) if goes_on else 0
        return 0 if row is None else self.packer.largest_hole(row)


class _MixedReader:
    """Draws samples of all sources at their shares, for one worker of one rank, and packs them."""

    def __init__(self, stream: RosettaDataStream, reader: int, num_readers: int):
        self.stream = stream
        self.reader = reader
        settings = (stream.processor, stream.max_length, stream.max_skipped_share, reader, num_readers)
        self.readers = [
            SampleReader(source, records, *settings, seed=stream.seed + index)
            for index, (source, records) in enumerate(zip(stream.sources, stream.records, strict=True))
        ]
        nothing = [0] * len(stream.sources)
        self.weights = [source.weight for source in stream.sources]
        self.num_samples, self.num_tokens = list(nothing), list(nothing)
        self.amounts_before = list(nothing)  # drawn with other weights

    def rows(self, position: dict | None) -> Iterator[tuple[list[_Drawn], list[dict], dict]]:
        """
        Rows of samples, what was skipped, and the position after each.

        Several rows are filled at a time. A sample that has room in none of them is laid aside for the next ones, and
        further samples are tried, until half as many are aside as there are rows. So a position is the state before
        the first of those that were aside when these rows were begun, the lengths of all samples from it on, which of
        them were aside, and how many of these rows were given since.

        Rows that were begun are filled with the weights they were begun with. Where others come into force is part of
        the position: their shares are counted from there.
        """
        weights, changed_after, num_given = self.weights, None, 0
        start = {"before": self._state(), "lengths": [], "aside": [], "then": self._shares()}
        if position is not None:
            start, num_given = {key: position[key] for key in start}, position["num_given"]
        aside, skipped = self._draw_again(start)
        if self.weights != weights:
            changed_after = position["changed_after"] if position["weights"] == weights else num_given
        while True:
            rows, before, lengths, places, skipped_later = _Rows(self.stream.max_length), None, [], [], []
            for drawn in aside:
                rows.add(drawn)
            while len(rows.aside) < NUM_OPEN_ROWS / 2:  # so that there is room for all in the next ones
                state, num_aside = self._state(), len(rows.aside)
                drawn, passed_over = self._draw(rows.hole)
                rows.add(drawn)
                if len(rows.aside) > num_aside:
                    before = state if before is None else before
                    places.append(len(lengths))
                if before is not None:
                    lengths.append(drawn.length)
                (skipped if before is None else skipped_later).extend(passed_over)
            filled, aside = rows.packer.rows, rows.aside
            for number, row in enumerate(filled, start=1):
                if number > num_given:
                    news = skipped if number == 1 else []
                    place = {"num_given": number, "weights": weights, "changed_after": changed_after}
                    yield row, news, {**start, **place}
            if changed_after is not None:
                self._change_weights(weights, to_give=[*chain(*filled[changed_after:]), *aside])
                changed_after = None
            start = {"before": before, "lengths": lengths, "aside": places, "then": self._shares()}
            num_given, skipped = 0, skipped_later

    def _draw_again(self, start: dict) -> tuple[list[_Drawn], list[dict]]:
        """Goes to the position before some rows; returns the samples that were aside, and what was skipped since the
        first of them."""
        before = start["before"]
        for reader, *states in zip(self.readers, before["readers"], before["skipped"], strict=True):
            reader.load_state_dict(*states)
        self.num_samples, self.num_tokens = list(before["num_samples"]), list(before["num_tokens"])
        self._load_shares(before)
        drawn = [self._draw(lambda *_, length=length: length) for length in start["lengths"]]
        self._load_shares(start["then"])
        return [drawn[place][0] for place in start["aside"]], [*chain(*(passed_over for _, passed_over in drawn))]

    def _draw(self, room: Callable[[int, bool], int]) -> tuple[_Drawn, list[dict]]:
        """A sample of the source that is furthest behind its share, and what was skipped on the way. `room`: for a
        sample of a source that does or does not go on with a document, see [`SampleReader.next`]."""
        number = sum(self.num_samples)
        shares = [weight / sum(self.weights) for weight in self.weights]
        amounts = [now - before for now, before in zip(self._amounts, self.amounts_before, strict=True)]
        index = max(range(len(shares)), key=lambda i: shares[i] * (sum(amounts) + 1) - amounts[i])
        goes_on = self.readers[index].is_within_a_document
        sample, skipped = self.readers[index].next(room(index, goes_on))
        if self.stream.sources[index].task == "t2i":
            choose = random.Random(f"{self.stream.seed} {self.reader} {number}")
            sample = self._dropped(sample, choose.random())
        length = len(sample["input_ids"])
        self.num_samples[index] += 1
        self.num_tokens[index] += length
        return _Drawn(index, sample, length, goes_on), skipped

    def _dropped(self, sample: dict, number: float) -> dict:
        """A sample without its prompt, without the images it is drawn from, or without both, by a number in [0, 1)."""
        processor, share = self.stream.processor, self.stream.prompt_dropout
        has_images = "image_grid_thw" in sample or (sample.get("latent_roles", torch.ones(1)) == CONTEXT).any()
        if has_images and share <= number < 3 * share:
            sample = processor.drop_images(sample)
        if number < share or (has_images and 2 * share <= number < 3 * share):
            sample = processor.drop_prompt(sample)
        return sample

    @property
    def _amounts(self) -> list[int]:
        """What the shares are of."""
        return self.num_samples if self.stream.shares_of == "samples" else self.num_tokens

    def _change_weights(self, weights: list[float], to_give: list[_Drawn]):
        """From now on others hold, and regard what was drawn but is still `to_give`, too."""
        self.weights, self.amounts_before = weights, list(self._amounts)
        for drawn in to_give:
            self.amounts_before[drawn.index] -= 1 if self.stream.shares_of == "samples" else drawn.length

    def _state(self) -> dict:
        return {
            "num_samples": list(self.num_samples),
            "num_tokens": list(self.num_tokens),
            "readers": [reader.state_dict() for reader in self.readers],
            "skipped": [reader.skipped.state_dict() for reader in self.readers],
            **self._shares(),
        }

    def _shares(self) -> dict:
        return {"weights": self.weights, "amounts_before": list(self.amounts_before)}

    def _load_shares(self, shares: dict):
        self.weights, self.amounts_before = shares["weights"], list(shares["amounts_before"])


__all__ = ["RosettaDataStream", "Row"]
