"""Where records come from, and a reader's way through them."""

import copy
import json
import os
from dataclasses import dataclass
from glob import escape, glob, has_magic
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Image, IterableDataset, load_dataset
from datasets.data_files import DataFilesDict, DataFilesList, get_data_patterns
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError

from .bad_records import BadRecord
from .files import COMPRESSIONS, CONTENTS, NAMES, PLACE, PROBLEM, SAMPLE_BY, SUFFIXES, TEXT, kind_of, open_files


TASKS = ("lm", "mmu", "t2i")
# Files that are left to `datasets`; those that are not are in `files.SUFFIXES`.
BUILDERS = {".arrow": "arrow", ".parquet": "parquet"}
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
COLUMNS = {
    "text_column": ("text",),
    "conversation_column": ("conversations", "messages"),
    "image_column": ("image", "images", *IMAGE_SUFFIXES, "file_name"),
    "caption_column": ("caption", "text", "txt"),
    "source_column": ("source_image", "source_images"),
}
BLOCK_SIZE = 256  # records of a stream that are shuffled among one another, and held in memory


@dataclass
class DataSource:
    """
    Records of one task, local or on the Hub.

    Args:
        task (`str`): what a record is. `"lm"`: a text, or a conversation without images. `"mmu"`: images to
            understand and a conversation about them. `"t2i"`: a caption and the image to draw, or its cached latents;
            of an edit, the images that it is drawn from, too.
        path (`str`): a file (json, jsonl, csv, tsv, txt, tar of a webdataset, each also as gz, bz2, xz or zst;
            parquet, arrow), a pattern of files, a folder of them, or the id of a data set on the Hub.
        weight (`float`, defaults to 1): its share of the samples is its weight over the sum of all weights.
        name (`str`, *optional*): the configuration of a data set on the Hub.
        data_files (`str` or `list[str]`, *optional*): some of the files in `path`, as for `datasets.load_dataset`.
        split (`str`, defaults to `"train"`): of a data set on the Hub or a folder whose files are named after splits.
        streaming (`bool`, defaults to `False`): read while training, without a copy in the cache. Records are then
            shuffled in blocks of 256 only; else all among one another.
        text_column, conversation_column, image_column, caption_column (`str`, *optional*): by default whichever of
            the usual names has a value in a record: `text`; `conversations` or `messages`; `image`, `images`, the
            suffix of a kind of images or `file_name`; `caption`, `text` or `txt`. Of a list of captions one is drawn
            each time, and of several columns, `caption_column={"short": 0.3, "long": 0.7}`, one by its weight.
        source_column (`str`, *optional*): of an edit, the image or images that another is drawn from, by default
            `source_image` or `source_images`; with one, the record must have them.
        user_column, assistant_column (`str` or `list[str]`, *optional*): columns that are a question and its answer,
            e.g. `["instruction", "input"]` and `"output"`; what is empty of several is left out.
        system_column (`str`, *optional*): a system prompt beside a conversation, by default `system`.
        image_root (`str`, *optional*): the folder that the paths of images are relative to; by default that of `path`.
        sample_by (`str`, defaults to `"document"`): what a record of a txt file is: the whole `"document"`, a
            `"paragraph"` between blank lines, or a `"line"`.

    Attributes:
        kind (`str`, *optional*): a value of `files.SUFFIXES`, if the records are those of [`open_files`].

    Raises:
        ValueError: if the task or `sample_by` is unknown or the weight is not above 0.
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
    caption_column: str | dict[str, float] | None = None
    source_column: str | None = None
    user_column: str | list[str] | None = None
    assistant_column: str | list[str] | None = None
    system_column: str | None = None
    image_root: str | None = None
    sample_by: str = "document"

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {self.task!r}.")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < float("inf"):
            raise ValueError(f"`weight` must be a number above 0, got {self.weight!r}.")
        if self.sample_by not in SAMPLE_BY:
            raise ValueError(f"`sample_by` must be one of {SAMPLE_BY}, got {self.sample_by!r}.")
        if (self.user_column is None) != (self.assistant_column is None):
            raise ValueError("`user_column` and `assistant_column` must be given together, or neither.")
        if isinstance(self.caption_column, dict) and not all(
            isinstance(w, int | float) and 0 < w < float("inf") for w in self.caption_column.values()
        ):
            raise ValueError(f"`caption_column` must map columns to weights above 0, got {self.caption_column!r}.")
        self.path = os.fspath(self.path)
        if self.image_root is None:
            folder = Path(self.path)
            while folder.is_file() or (has_magic(str(folder)) and not folder.is_dir()):
                folder = folder.parent
            self.image_root = str(folder)
        self.kind = None

    def __str__(self) -> str:
        return f"{self.task} from {self.path}"

    def open(self) -> Dataset | IterableDataset:
        """
        Opens the records, images undecoded, since one that cannot be decoded must not end the stream.

        Raises:
            FileNotFoundError: if there is nothing at `path`.
            ValueError: if there are no records, or files of a kind that cannot be read.
        """
        files = self._files()
        kinds = {kind_of(file) for file in files}
        self.kind = kinds.pop() if len(kinds) == 1 else None
        if files and not any(Path(file).stat().st_size for file in files):
            raise ValueError(f"`path`: there are no records in {self.path}.")
        try:
            records = self._open(files)
        except DatasetGenerationError as error:
            raise ValueError(f"`path`: {self.path} cannot be read, {error.__cause__ or error}") from error
        if isinstance(records, Dataset) and len(records) == 0:
            raise ValueError(f"`path`: there are no records in {self.path}.")
        for column, feature in (records.features or {}).items():
            if isinstance(feature, Image):
                records = records.cast_column(column, Image(decode=False))
            elif isinstance(feature, datasets.List) and isinstance(feature.feature, Image):
                records = records.cast_column(column, datasets.List(Image(decode=False)))
        return records

    def _open(self, files: list[str]) -> Dataset | IterableDataset:
        if self.kind is not None:
            given = self._given_columns()
            kept = tuple(sorted({*given, "json", *(column for columns in COLUMNS.values() for column in columns)}))
            return open_files(files, self.kind, given, kept, self.sample_by, self.streaming)
        kwargs = {"name": self.name, "split": self.split, "streaming": self.streaming}
        if files and not Path(self.path).is_dir():
            return load_dataset(BUILDERS[Path(files[0]).suffix.lower()], data_files=list(map(escape, files)), **kwargs)
        return load_dataset(self.path, data_files=self.data_files, **kwargs)

    def _given_columns(self) -> tuple[str, ...]:
        given = (*(getattr(self, kind) for kind in COLUMNS), self.user_column, self.assistant_column)
        return tuple(
            name
            for column in (*given, self.system_column)
            for name in ([column] if isinstance(column, str) else column or ())
        )

    def parse(self, record: dict) -> dict:
        """
        A record as a dictionary of columns.

        Raises:
            BadRecord: if it could not be read, or is no object of JSON.
        """
        if self.kind is None:
            return record
        if record[PROBLEM] is not None:
            raise BadRecord("unreadable", record[PROBLEM])
        if self.kind == "tar":
            return self._parse_members(record)
        if self.kind == "text":
            return {TEXT: record[TEXT]}
        parsed = _parsed_json(record[TEXT])
        if not isinstance(parsed, dict):
            raise BadRecord("wrong_type", f"a line of JSON must be an object, got {type(parsed).__name__}")
        return parsed

    def _parse_members(self, record: dict) -> dict:
        """Of a tar: each member by its ending, and what an object of JSON beside them says."""
        contents = dict(zip(record[NAMES], record[CONTENTS], strict=True))
        beside = contents.pop("json", None)
        members = {
            name: None if content is None else self._member(name, content) for name, content in contents.items()
        }
        if beside is None:
            return members
        try:
            members["json"] = _parsed_json(beside)
        except BadRecord:
            if "json" in self._given_columns():
                raise
            members["json"] = None  # of a file that was not asked for
        said = members["json"] if isinstance(members["json"], dict) else {}
        # An image that is there comes before what is said of one.
        images = COLUMNS["image_column"] if any(name in IMAGE_SUFFIXES for name in members) else ()
        return {**{name: value for name, value in said.items() if name not in images}, **members}

    def _member(self, name: str, content: bytes) -> dict | str:
        ending = name.rpartition(".")[2]
        if name == self.image_column or ending in IMAGE_SUFFIXES:
            return {"bytes": content, "path": name}
        return _parsed_json(content) if ending == "json" else content.decode("utf-8", "replace")

    def place(self, record: dict, otherwise: str) -> str:
        """Where a record is: its file and line or key, or what is known if `datasets` reads the files."""
        return f"{self.path}, {otherwise}" if self.kind is None else record[PLACE]

    def _files(self) -> list[str]:
        """The local files of the source, of those kinds that records are read from; none for what is left to
        `datasets`: the Hub, and folders of images."""
        path = Path(self.path)
        if path.is_file():
            found = [str(path)]
        elif path.is_dir():
            found = self._files_in_folder(path)
        elif has_magic(self.path) or path.suffix.lower() in (*BUILDERS, *SUFFIXES, *COMPRESSIONS):
            found = sorted(file for file in glob(self.path, recursive=True) if Path(file).is_file())
            if not found:
                raise FileNotFoundError(f"`path`: there is no file {self.path}.")
        else:
            return []
        if not path.is_dir():
            kinds = {kind_of(file) or BUILDERS.get(Path(file).suffix.lower()) for file in found}
            if None in kinds or len(kinds) > 1:
                raise ValueError(
                    f"`path`: the files must be all of one of the kinds {[*SUFFIXES, *BUILDERS]}, all but the last "
                    f"two also with {list(COMPRESSIONS)}; got {self.path}."
                )
        return found

    def _files_in_folder(self, path: Path) -> list[str]:
        folder = escape(str(path))
        try:
            if self.data_files is None:
                files = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)[self.split]
            else:
                patterns = [self.data_files] if isinstance(self.data_files, str) else self.data_files
                files = DataFilesList.from_patterns(patterns, base_path=folder)
        except (FileNotFoundError, KeyError):
            return []  # of which `datasets` then says what is wrong
        known = [file for file in files if kind_of(file) or Path(file).suffix.lower() in BUILDERS]
        others = [file for file in known if Path(file).stem != "metadata"]
        # Metadata beside images are the business of `datasets`' image folder.
        if len(others) < len(known) and {kind_of(file) for file in others} != {"json"}:
            return []
        return others


def _parsed_json(text: str | bytes):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord("broken_json", str(error)) from error


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

    @property
    def place(self) -> str:
        """Of the last record."""
        return f"record {self.part[self.position - 1]}"

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict):
        self.epoch, self.position = state["epoch"], state["position"]
        order = np.arange(len(self.records), dtype=np.int32 if len(self.records) < 2**31 else np.int64)
        np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        # Readers take turns in being first, so that with few records none goes without for ever. A copy, so that the
        # whole is not kept.
        self.part = order[(self.reader + self.epoch) % self.num_readers :: self.num_readers].copy()


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
        self.part = f"of reader {reader} of {num_readers}"
        self.start = copy.deepcopy(self.records.state_dict())
        self.load_state_dict({"epoch": 0, "index": 0, "position": 0, "stream": self.start})

    def __next__(self) -> dict:
        while self.position == len(self.block):
            self._read_block()
        self.position += 1
        return self.block[self.position - 1]

    @property
    def place(self) -> str:
        """Of the last record."""
        return f"record {self.order[self.position - 1]} of block {self.index} of epoch {self.epoch} {self.part}"

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
        self.order = np.random.default_rng([self.seed, self.epoch, self.index]).permutation(size).tolist()
        self.block = [{name: values[row] for name, values in columns.items()} for row in self.order]
        self.position = 0


__all__ = ["DataSource", "ShuffledReader", "StreamReader"]
