"""Batches of a stream, made by workers, with an exact position in the stream."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from .bad_records import REASONS
from .source import TASKS
from .stream import RosettaDataStream, Row


logger = logging.getLogger(__name__)


class StreamLoader(DataLoader):
    """
    Batches of the rows of a [`RosettaDataStream`]. Its state is that after the batches which were taken out of it;
    what workers have made in advance does not count.

    Args:
        stream (`RosettaDataStream`)
        collator (`Callable`): makes a batch of a list of rows, each a list of samples.
        bad_records_folder (`str`, *optional*): where each rank writes a list of the records that were skipped for its
            batches, one line of JSON each. A run that goes on goes on with the list of its position.
        kwargs: as for [`torch.utils.data.DataLoader`].

    Attributes:
        skipped (`Counter`): numbers of records that were skipped for these batches, by (task, reason).
    """

    def __init__(
        self,
        stream: RosettaDataStream,
        collator: Callable[[list[list[dict]]], dict],
        bad_records_folder: str | None = None,
        **kwargs,
    ):
        # A generator of its own: starting to read must not draw on the one that a checkpoint restores.
        super().__init__(stream, collate_fn=_RowCollator(collator), generator=torch.Generator(), **kwargs)
        self.skipped = Counter()
        self._list = None if bad_records_folder is None else Path(bad_records_folder, f"rank_{stream.rank}.jsonl")
        self._positions = [None] * max(1, self.num_workers)
        self._next_worker = 0

    def __iter__(self) -> Iterator[dict]:
        self.dataset.start_from(self._positions, self._next_worker)
        self._cut_list()
        for batch, worker, position, bad_records in super().__iter__():
            self._positions[worker] = position
            self._next_worker = (worker + 1) % len(self._positions)
            self.skipped.update((record["task"], record["reason"]) for record in bad_records)
            self._add_to_list(bad_records)
            yield batch

    def _cut_list(self):
        """Of a list that is there, what was skipped up to the position stays."""
        if self._list is not None and self._list.exists():
            with open(self._list, "rb") as lines:
                kept = sum(len(line) for line in islice(lines, self.skipped.total()))
            os.truncate(self._list, kept)

    def _add_to_list(self, bad_records: list[dict]):
        if self._list is not None and bad_records:
            self._list.parent.mkdir(parents=True, exist_ok=True)
            with open(self._list, "a", encoding="utf-8") as lines:
                lines.writelines(f"{json.dumps(record)}\n" for record in bad_records)

    def state_dict(self) -> dict:
        """The position of all workers of this rank, as JSON."""
        return {
            **_layout(self.dataset, self.num_workers),
            "positions": self._positions,
            "next_worker": self._next_worker,
            "skipped": [[*key, number] for key, number in self.skipped.items()],
        }

    def load_state_dict(self, state: dict):
        """
        Raises:
            ValueError: if the state is of other sources, or of other numbers of records, ranks or workers.
        """
        _check_layout(state, self.dataset, self.num_workers)
        weights = [source.weight for source in self.dataset.sources]
        if others := [position["weights"] for position in state["positions"] if position is not None]:
            if others[0] != weights:
                logger.warning(
                    "The weights of the sources were %s and are %s: their shares are counted from here on.",
                    others[0],
                    weights,
                )
        self._positions, self._next_worker = state["positions"], state["next_worker"]
        self.skipped = Counter({(task, reason): number for task, reason, number in state["skipped"]})

    def save(self, folder: str, is_main_process: bool):
        """Writes the position of this rank into a checkpoint."""
        _position_file(folder, self.dataset.rank).write_text(json.dumps(self.state_dict()))

    def load(self, folder: str):
        """
        Goes on at the position of this rank in a checkpoint.

        Raises:
            ValueError: as of [`check_position`].
        """
        check_position(folder, self.dataset, self.num_workers)
        self.load_state_dict(json.loads(_position_file(folder, self.dataset.rank).read_text()))

    def skipped_on_all_ranks(self, accelerator) -> dict[str, int]:
        """Numbers of records that all ranks have skipped since the start of the run, in all and by task and reason."""
        kinds = [(task, reason) for task in TASKS for reason in REASONS]
        numbers = torch.tensor([self.skipped[kind] for kind in kinds], device=accelerator.device)
        numbers = accelerator.reduce(numbers, reduction="sum").tolist()
        named = {f"skipped_{task}_{reason}": n for (task, reason), n in zip(kinds, numbers, strict=True) if n}
        return {"skipped_records": sum(numbers), **named}


def check_position(folder: str | os.PathLike, stream: RosettaDataStream, num_workers: int):
    """
    That a stream can go on at its position in a checkpoint.

    Args:
        folder (`str` or `os.PathLike`): of the checkpoint.
        stream ([`RosettaDataStream`])
        num_workers (`int`): of the loader.

    Raises:
        ValueError: if there is none, or it is of other sources, or of other numbers of records, ranks or workers.
    """
    # A run of fewer ranks has none for this one; the first one's says so.
    found = [file for rank in (stream.rank, 0) if (file := _position_file(folder, rank)).is_file()]
    if not found:
        raise ValueError(f"The data cannot go on where it was: '{folder}' has no {_position_file('', stream.rank)}.")
    _check_layout(json.loads(found[0].read_text()), stream, num_workers)


def _position_file(folder: str | os.PathLike, rank: int) -> Path:
    return Path(folder, f"data_position_{rank}.json")


def _check_layout(state: dict, stream: RosettaDataStream, num_workers: int):
    for name, now in _layout(stream, num_workers).items():
        if state.get(name) != now:
            raise ValueError(
                f"The data cannot go on where it was: `{name}` must be what it was, {state.get(name)!r}, got {now!r}."
            )


def _layout(stream: RosettaDataStream, num_workers: int) -> dict:
    """What a position is of."""
    return {
        "sources": [str(source) for source in stream.sources],
        # In another data set the same position is another record.
        "num_records": [len(records) if isinstance(records, Dataset) else None for records in stream.records],
        "num_files": [None if isinstance(records, Dataset) else records.num_shards for records in stream.records],
        "seed": stream.seed,
        "max_length": stream.max_length,
        "shares_of": stream.shares_of,
        "num_ranks": stream.num_ranks,
        "dataloader_num_workers": num_workers,
    }


class _RowCollator:
    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, rows: list[Row]) -> tuple[dict, int, dict, list[dict]]:
        batch = self.collator([row.samples for row in rows])
        batch["sample_sources"] = torch.tensor([source for row in rows for source in row.sources])
        return batch, rows[-1].worker, rows[-1].position, [record for row in rows for record in row.bad_records]


class EpochOfStream(TrainerCallback):
    """A stream has no end: its epoch is the share of the run's steps that were made, by whichever processes."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps


__all__ = ["EpochOfStream", "StreamLoader", "check_position"]
