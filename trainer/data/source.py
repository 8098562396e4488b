"""Where records come from, and a reader's way through them."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Image, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node

from .bad_records import BadRecord


TASKS = ("lm", "mmu", "t2i")
BUILDERS = {".arrow": "arrow", ".csv": "csv", ".parquet": "parquet", ".tar": "webdataset", ".txt": "text"}
JSON_SUFFIXES = (".json", ".jsonl")
BLOCK_SIZE = 256  # records of a stream that are shuffled among one another, and held in memory
LINE = "text"  # the column of the `text` builder


@dataclass
class DataSource:
    """
    Records of one task, local or on the Hub.

    Args:
        task (`str`): what a record is. `"lm"`: a text, or a conversation without images. `"mmu"`: images to
            understand and a conversation about them. `"t2i"`: a caption and the image to draw, or its cached latents.
        path (`str`): a file (json, jsonl, parquet, arrow, csv, txt, tar of a webdataset), a folder of them, or the id
            of a data set on the Hub.
        weight (`float`, defaults to 1): its share of the samples is its weight over the sum of all weights.
        name (`str`, *optional*): the configuration of a data set on the Hub.
        data_files (`str` or `list[str]`, *optional*): some of the files in `path`, as for `datasets.load_dataset`.
        split (`str`, defaults to `"train"`)
        streaming (`bool`, defaults to `False`): read while training, without a copy in the cache. Records are then
            shuffled in blocks of 256 only; else all among one another.
        text_column, conversation_column, image_column, caption_column (`str`, *optional*): by default whichever of
            the usual names a record has: `text`; `conversations` or `messages`; `image`, `images`, `jpg`, `jpeg`,
            `png` or `webp`; `caption`, `text` or `txt`.
        image_root (`str`, *optional*): the folder that the paths of images are relative to; by default that of `path`.

    Raises:
        ValueError: if the task is unknown or the weight is not above 0.
    """

    task: str
    path: str
    weight: float = 1.0
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    streaming: bool = False
    text_column: str | None = None
    conversation_column: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    image_root: str | None = None

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {self.task!r}.")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < float("inf"):
            raise ValueError(f"`weight` must be a number above 0, got {self.weight!r}.")
        if self.image_root is None:
            path = Path(self.path)
            self.image_root = str(path.parent if path.is_file() else path)

    def __str__(self) -> str:
        return f"{self.task} from {self.path}"

    def open(self) -> Dataset | IterableDataset:
        """
        Opens the records, images undecoded, since one that cannot be decoded must not end the stream.

        Raises:
            FileNotFoundError: if there is nothing at `path`.
            ValueError: if there are no records.
        """
        path, files = Path(self.path), self.data_files
        kwargs = {"name": self.name, "split": self.split, "streaming": self.streaming}
        if path.suffix in (*BUILDERS, *JSON_SUFFIXES) and not path.is_file():
            raise FileNotFoundError(f"`path`: there is no file {self.path}.")
        json_files = self._json_files()
        self.is_json = bool(json_files)
        if self.is_json:
            records = self._open_json(json_files)
        elif path.is_file():
            options = {"encoding_errors": "replace"} if path.suffix == ".txt" else {}
            records = load_dataset(BUILDERS[path.suffix], data_files=self.path, **kwargs, **options)
        else:
            records = load_dataset(self.path, data_files=files, **kwargs)
        if isinstance(records, Dataset) and len(records) == 0:
            raise ValueError(f"`path`: there are no records in {self.path}.")
        for column, feature in (records.features or {}).items():
            if isinstance(feature, Image):
                records = records.cast_column(column, Image(decode=False))
            elif isinstance(feature, datasets.List) and isinstance(feature.feature, Image):
                records = records.cast_column(column, datasets.List(Image(decode=False)))
        return records

    def parse(self, record: dict) -> dict:
        """
        A record as a dictionary of columns.

        Raises:
            BadRecord: if it is a line that is not JSON.
        """
        if not self.is_json:
            return record
        try:
            parsed = json.loads(record[LINE])
        except json.JSONDecodeError as error:
            raise BadRecord("broken_json", str(error)) from error
        if not isinstance(parsed, dict):
            raise BadRecord("wrong_type", f"a line of JSON must be an object, got {type(parsed).__name__}")
        return parsed

    def _json_files(self) -> list[str]:
        """The local files of JSON among the files, which are read here line by line: `datasets` would give up a whole
        file for one broken line, or for a column that changes its type."""
        path = Path(self.path)
        files = [self.data_files] if isinstance(self.data_files, str) else self.data_files
        if path.is_file():
            found = [path]
        elif path.is_dir() and files is not None:
            found = [match for file in files for match in sorted(path.glob(file))]
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in (*BUILDERS, *JSON_SUFFIXES))
        else:
            found = []
        is_json = [file.suffix in JSON_SUFFIXES for file in found]
        # `metadata.jsonl` beside images is the business of `datasets`' image folder.
        return [str(file) for file in found if file.name != "metadata.jsonl"] if found and all(is_json) else []

    def _open_json(self, files: list[str]) -> Dataset | IterableDataset:
        files = [file for file in files if Path(file).stat().st_size]
        if not files:
            raise ValueError(f"`path`: there are no records in {self.path}.")
        if not any(map(_holds_a_list, files)):
            kwargs = {"split": "train", "streaming": self.streaming, "encoding_errors": "replace"}
            return load_dataset("text", data_files=files, **kwargs)
        records = []
        for file in files:
            try:
                records += json.loads(Path(file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"`path`: {file} is no list of JSON, {error}") from error
        return Dataset.from_dict({LINE: [json.dumps(record) for record in records]})


def _holds_a_list(file: str) -> bool:
    with open(file, encoding="utf-8", errors="replace") as lines:
        return next((line.lstrip()[0] for line in lines if line.strip()), "") == "["


class ShuffledReader:
    """
    One reader's part of a data set that can be indexed: in each epoch a random permutation of all records is dealt out
    to the readers, and each record goes to one of them.

    Args:
        records (`Dataset`)
        reader (`int`): the number of this reader.
        num_readers (`int`)
        seed (`int`)
    """

    def __init__(self, records: Dataset, reader: int, num_readers: int, seed: int):
        self.records = records
        self.reader = reader
        self.num_readers = num_readers
        self.seed = seed
        self.load_state_dict({"epoch": 0, "position": 0})

    def __next__(self) -> dict:
        while self.position == len(self.part):  # also of length 0, with more readers than records
            self.load_state_dict({"epoch": self.epoch + 1, "position": 0})
        self.position += 1
        return self.records[int(self.part[self.position - 1])]

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict):
        self.epoch, self.position = state["epoch"], state["position"]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.records))
        # Readers take turns in being first, so that with few records none goes without for ever.
        self.part = order[(self.reader + self.epoch) % self.num_readers :: self.num_readers]


class StreamReader:
    """
    One reader's part of a data set that is streamed: whole files if there are enough of them, else every n-th record.
    Records are shuffled within blocks; `datasets`' own shuffling would lose what it holds when a run is resumed.

    Args: as for [`ShuffledReader`].

    Raises:
        RuntimeError: while reading, if there is no record for this reader.
    """

    def __init__(self, records: IterableDataset, reader: int, num_readers: int, seed: int):
        if records.num_shards >= num_readers:
            self.records = records.shard(num_readers, reader)
        else:
            self.records = split_dataset_by_node(records, reader, num_readers)
        self.seed = seed
        self.start = copy.deepcopy(self.records.state_dict())
        self.load_state_dict({"epoch": 0, "index": 0, "position": 0, "stream": self.start})

    def __next__(self) -> dict:
        while self.position == len(self.block):
            self._read_block()
        self.position += 1
        return self.block[self.position - 1]

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "index": self.index, "position": self.position, "stream": self.stream}

    def load_state_dict(self, state: dict):
        # `stream` is where the block begins that was read last, `index` its number in the epoch.
        self.epoch, self.index, self.stream = state["epoch"], state["index"], state["stream"]
        self.records.load_state_dict(self.stream)
        self.blocks = self.records.iter(BLOCK_SIZE)
        self.block, self.position = [], 0
        if state["position"]:
            self._read_block()
            self.position = state["position"]

    def _read_block(self):
        if self.block:
            self.index, self.stream = self.index + 1, copy.deepcopy(self.records.state_dict())
        columns = next(self.blocks, None)
        if columns is None:
            if self.index == 0:
                raise RuntimeError("A stream has no record for one of its readers: use fewer workers or ranks.")
            self.load_state_dict({"epoch": self.epoch + 1, "index": 0, "position": 0, "stream": self.start})
            return
        size = len(next(iter(columns.values())))
        order = np.random.default_rng([self.seed, self.epoch, self.index]).permutation(size)
        self.block = [{name: values[row] for name, values in columns.items()} for row in order.tolist()]
        self.position = 0


__all__ = ["DataSource", "ShuffledReader", "StreamReader"]
