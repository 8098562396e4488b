"""Records of files that are read here one by one: `datasets` gives up a whole file for one broken line or member."""

import csv
import io
import json
import re
import tarfile
from collections import deque
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

import fsspec
from datasets import Dataset, Features, IterableDataset, List, Value
from fsspec.compression import compr


SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".tar": "tar",
}
SAMPLE_BY = ("document", "paragraph", "line")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
MAX_LENGTH = 1 << 24  # characters of a record, beyond which its end is taken to be lost
CHUNK = 1 << 16  # characters that are read at a time
BOM = "\ufeff"
PLACE, PROBLEM, TEXT, NAMES, CONTENTS = "place", "problem", "text", "names", "contents"
LINES = Features({PLACE: Value("string"), PROBLEM: Value("string"), TEXT: Value("string")})
MEMBERS = Features(
    {
        PLACE: Value("string"),
        PROBLEM: Value("string"),
        NAMES: List(Value("string")),
        CONTENTS: List(Value("large_binary")),
    }
)


def kind_of(file: str | Path) -> str | None:
    """What a file holds by its name, a value of `SUFFIXES`, or `None`."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def open_files(
    files: list[str], kind: str, columns: tuple[str, ...], kept: tuple[str, ...], sample_by: str, streaming: bool
) -> Dataset | IterableDataset:
    """
    The records of files of one kind, each with its `place`. One that cannot be read has a `problem`, and so has the
    rest of a file that cannot be read. Else lines of json and csv and texts have `text`, those of csv as an object of
    JSON, and tars the `names` and `contents` of the members that belong together. Blank lines are no records.

    Args:
        files (`list[str]`)
        kind (`str`): a value of `SUFFIXES`.
        columns (`tuple[str, ...]`): names that members of a tar may end in, where they have dots in them.
        kept (`tuple[str, ...]`): endings of the members of a tar whose contents are wanted.
        sample_by (`str`): what a record of text is: a whole file, what stands between blank lines, or a line.
        streaming (`bool`): read while iterating, without a copy in the cache of `datasets`.

    Raises:
        ValueError: if a file is compressed in a way that cannot be read here.
    """
    for file in files:
        compression = COMPRESSIONS.get(Path(file).suffix.lower())
        if compression is not None and compression not in compr:
            raise ValueError(f"`path`: to read {file}, its compression must be installed: `pip install zstandard`.")
    # Size and time are part of the key of the cache.
    stamped = [(file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files]
    arguments = {"files": [entry for entry in stamped if entry[1]], "kind": kind, "columns": columns, "kept": kept}
    arguments["sample_by"] = sample_by
    if streaming:
        return IterableDataset.from_generator(read_files, gen_kwargs=arguments)
    features = MEMBERS if kind == "tar" else LINES
    return Dataset.from_generator(read_files, features=features, gen_kwargs=arguments)


def read_files(
    files: list[tuple], kind: str, columns: tuple[str, ...], kept: tuple[str, ...], sample_by: str
) -> Iterator[dict]:
    """The records of [`open_files`]."""
    empty = dict.fromkeys(MEMBERS if kind == "tar" else LINES)
    for name, *_ in files:
        with _opened(name) as file:
            if kind == "tar":
                records = _groups(file, columns, kept)
            elif kind == "json":
                text = io.TextIOWrapper(file, "utf-8", "replace", newline="\n")
                records = _list_items(text) if _holds_a_list(name) else _lines(text)
            elif kind == "text":
                texts = {"document": _document, "paragraph": _paragraphs, "line": _lines}[sample_by]
                records = texts(io.TextIOWrapper(file, "utf-8", "replace"))
            else:
                text = io.TextIOWrapper(file, "utf-8", "replace", newline="")
                records = _rows(text, "\t" if kind == "tsv" else ",")
            last = "the beginning"
            while True:
                try:
                    last, record = next(records)
                except StopIteration:
                    break
                except Exception as error:  # decoders raise almost anything on damaged content
                    if isinstance(error, OSError) and error.errno is not None:
                        raise  # the system's, which says nothing of the content
                    last, record = f"all after {last}", {PROBLEM: f"{type(error).__name__}, {error}"}
                yield {**empty, PLACE: _printable(f"{name}, {last}"), **record}


def _opened(name: str):
    compression = COMPRESSIONS.get(Path(name).suffix.lower())
    # To the reader of `zstandard` a file that is cut off is whole; newer Pythons have a class of their own.
    if compression == "zstd" and not isinstance(compr["zstd"], type):
        return io.BufferedReader(_ZstdReader(name))
    # Not `fsspec.open`, to which some characters of a path mean something.
    return fsspec.filesystem("file").open(name, "rb", compression=compression)


class _ZstdReader(io.RawIOBase):
    """The content of a zst file; raises an `EOFError` where the file is cut off."""

    def __init__(self, name: str):
        self.file = open(name, "rb")  # noqa: SIM115
        self.parts, self.left = self._parts(), b""

    def _parts(self) -> Iterator[bytes]:
        from zstandard import ZstdDecompressor

        frame = None
        while data := self.file.read(CHUNK):
            while data:
                frame = frame or ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = b""
                if frame.eof:  # another one may follow
                    data, frame = frame.unused_data, None
        if frame is not None:
            raise EOFError("the file is cut off")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.left and (part := next(self.parts, None)) is not None:
            self.left = part
        taken, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self):
        self.file.close()
        super().close()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _lines(lines: io.TextIOWrapper) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(lines, start=1):
        line = line.strip("\r\n").lstrip(BOM)
        if line.strip():
            yield f"line {number}", {TEXT: line}


def _paragraphs(lines: io.TextIOWrapper) -> Iterator[tuple[str, dict]]:
    for is_text, group in groupby(enumerate(lines, start=1), key=lambda line: bool(line[1].strip(f"{BOM} \t\r\n"))):
        if is_text:
            numbers, texts = zip(*group, strict=True)
            yield f"lines {numbers[0]} to {numbers[-1]}", {TEXT: "".join(texts).strip("\r\n").lstrip(BOM)}


def _document(file: io.TextIOWrapper) -> Iterator[tuple[str, dict]]:
    text = file.read().lstrip(BOM)
    if text.strip():
        yield "the whole", {TEXT: text}


def _rows(lines: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[str, dict]]:
    """Rows of csv as objects of JSON. Where a quote is not closed, reading goes on at the next line."""
    csv.field_size_limit(MAX_LENGTH)
    again, taken = deque(), []

    def feed():
        while (line := again.popleft() if again else next(numbered, None)) is not None:
            taken.append(line)
            yield line[1]

    numbered = iter(enumerate(chain([next(lines, "").lstrip(BOM)], lines), start=1))
    rows, header = csv.reader(feed(), delimiter=delimiter, strict=True), None
    while True:
        taken.clear()
        try:
            row = next(rows, None)
            if row is None:
                return
            problem = None if header is None or len(row) <= len(header) else f"{len(row)} fields of {len(header)}"
        except csv.Error as error:
            problem = f"{error}"
            again.extendleft(reversed(taken[1:]))
            rows = csv.reader(feed(), delimiter=delimiter, strict=True)
        place = f"line {taken[0][0]}"
        if problem is not None:
            yield place, {PROBLEM: problem}
        elif not any(field.strip() for field in row):
            continue
        elif header is None:
            header = row
        else:
            fields = {name: field or None for name, field in zip(header, row, strict=False)}
            yield place, {TEXT: json.dumps(fields)}


def _holds_a_list(name: str) -> bool:
    with _opened(name) as file:
        try:
            start = file.read(1 << 16).decode("utf-8", "replace").lstrip(BOM).lstrip()
        except Exception:  # which reading it meets again
            return False
    is_lines = any(suffix.lower() in (".jsonl", ".ndjson") for suffix in Path(name).suffixes)
    return bool(re.match(r"\[\s*\{" if is_lines else r"\[", start))


def _list_items(file: io.TextIOWrapper) -> Iterator[tuple[str, dict]]:
    """The items of a list of JSON, one at a time; after a broken one, from where the next seems to begin."""
    decoder, number = json.JSONDecoder(), 0
    text, position, at_end = "", 0, False
    next_item = re.compile(r",\s*(?=\{)")
    while True:
        begin = re.compile(rf"[\s,\[\]{BOM}]*").match(text, position).end()
        try:
            _, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            end = None
        # A number could go on.
        if not at_end and (end is None or end == len(text)) and len(text) - begin < MAX_LENGTH:
            more = file.read(max(CHUNK, len(text) - begin))
            text, position, at_end = text[begin:] + more, 0, not more
            continue
        if begin == len(text):
            return
        number += 1
        if end is not None:
            yield f"item {number}", {TEXT: text[begin:end]}
            if start := re.compile(r"\{\s*\"[^\"]*\"\s*:").match(text, begin):
                next_item = re.compile(rf",\s*(?={re.escape(start.group())})")
            position = end
            continue
        yield f"item {number}", {TEXT: text[begin : begin + 100]}  # it is broken
        found = next_item.search(text, begin + 1)
        if found is None:
            return
        position = found.end()


def _groups(file, columns: tuple[str, ...], kept: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Members of a tar that stand side by side and are named alike but for their endings, as in a webdataset."""
    key, names, contents = None, [], []

    def group() -> tuple[str, dict]:
        return f"key {key}", {NAMES: [_printable(name[len(key) + 1 :].lower()) for name in names], CONTENTS: contents}

    for name, content in _members(file, kept):
        if name is None:  # between records, as far as can be told
            if key is not None:
                yield group()
                key = None
            yield "a damaged header", {PROBLEM: content}
            continue
        longest = max((c for c in columns if "." in c and name.lower().endswith(f".{c}")), key=len, default=None)
        stem = name.rpartition(".")[0] if longest is None else name[: -len(longest) - 1]
        nested = key is not None and (f"{stem}.".startswith(f"{key}.") or f"{key}.".startswith(f"{stem}."))
        if key is not None and (not nested or name.lower() in map(str.lower, names)):
            yield group()
            key = None
        if isinstance(content, Exception):
            raise content  # which stands for this group
        if key is None:
            key, names, contents = stem, [], []
        key = min(key, stem, key=len)
        names.append(name)
        contents.append(content)
    if key is not None:
        yield group()


def _members(file, kept: tuple[str, ...]) -> Iterator[tuple[str | None, bytes | str | Exception | None]]:
    """Name and content of each file in a tar, the content `None` if it is not kept and an error if it is cut off;
    where headers are damaged, `None` and what is wrong."""
    damaged = []

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, *args):
            try:
                return super().frombuf(*args)
            except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
                damaged.append(error)  # which `TarFile` passes over
                raise

    with tarfile.open(fileobj=file, mode="r|", tarinfo=Header, ignore_zeros=True) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            if damaged:
                yield None, f"{damaged[0]}"
                damaged.clear()
            name = member.name.removeprefix("./")
            base = name.rpartition("/")[2]
            if not member.isfile() or base.startswith(".") or "." not in base:
                continue
            is_kept = name.lower().endswith(tuple(f".{ending}" for ending in kept))
            try:
                content = tar.extractfile(member).read()
            except Exception as error:
                content = error
            yield name, content if is_kept or isinstance(content, Exception) else None
    if damaged:
        yield None, f"{damaged[0]}"


__all__ = [
    "COMPRESSIONS",
    "CONTENTS",
    "NAMES",
    "PLACE",
    "PROBLEM",
    "SAMPLE_BY",
    "SUFFIXES",
    "TEXT",
    "kind_of",
    "open_files",
]
