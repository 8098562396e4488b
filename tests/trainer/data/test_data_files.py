"""Files of all kinds, whole and damaged: each record is read or named."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest
import zstandard
from data_files import picture
from datasets import Dataset

from trainer.data import BadRecord, DataSource, RosettaDataStream
from trainer.data.source import ShuffledReader, StreamReader


TEXTS = [f"text {i}" for i in range(6)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def read(path, task="lm", **kwargs) -> list[dict | str]:
    """The records of a source in the order of their files, or the reason and place of those that are bad."""
    source = DataSource(task, str(path), **kwargs)
    records = []
    for record in source.open():
        try:
            records.append(source.parse(record))
        except BadRecord as error:
            records.append(f"{error.reason} at {source.place(record, '').removeprefix(str(path))}")
    return records


def texts(path, **kwargs) -> list[str]:
    return [record if isinstance(record, str) else record["text"] for record in read(path, **kwargs)]


both = pytest.mark.parametrize("streaming", [False, True])


@both
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.v2.jsonl"])
@pytest.mark.parametrize(
    ("compress", "suffix"),
    [
        (bytes, ""),
        (gzip.compress, ".gz"),
        (bz2.compress, ".bz2"),
        (lzma.compress, ".XZ"),
        (zstandard.compress, ".zst"),
    ],
)
def test_names_of_lines(name, compress, suffix, streaming, tmp_path):
    file = tmp_path / f"{name}{suffix}"
    file.write_bytes(compress(LINES.encode()))
    assert texts(file, streaming=streaming) == TEXTS


@both
@pytest.mark.parametrize(
    "content",
    [
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\n\n  \n"),
        "\ufeff" + LINES + "\n\n",
        LINES.rstrip(),
        json.dumps([json.loads(line) for line in LINES.splitlines()]),
        json.dumps([json.loads(line) for line in LINES.splitlines()], indent=2) + "\n",
        "\ufeff\n[\n" + LINES.rstrip().replace("\n", ",\n") + "\n]",
    ],
    ids=["CRLF", "blank lines", "BOM", "no end", "list", "indented list", "list with BOM"],
)
def test_lines_and_lists(content, streaming, tmp_path):
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(content.encode())
        assert texts(tmp_path / name, streaming=streaming) == TEXTS


def test_odd_lines(tmp_path):
    odd = {
        b"\xff\xfe": "broken_json",
        b'{"text": "a", "text": "b"}': "b",
        b'{"text": NaN}': None,
        b"NaN": "wrong_type",
        b"7": "wrong_type",
        b'["a", "list"]': "wrong_type",
        b'{"text": "cut': "broken_json",
        b'{"text": "a\x00b"}': "broken_json",
        b"[" * 100_000: "broken_json",
        b'{"a":' * 100_000: "broken_json",
        b'{"text": "c", "n": ' + b"9" * 10_000 + b"}": "broken_json",
        '{"text": "a\u2028b\u0085c"}'.encode(): "a\u2028b\u0085c",
    }
    (tmp_path / "odd.jsonl").write_bytes(LINES.encode() + b"\n".join(odd))
    found = texts(tmp_path / "odd.jsonl")
    assert found[: len(TEXTS)] == TEXTS
    for number, (text, expected) in enumerate(zip(found[len(TEXTS) :], odd.values(), strict=True), start=7):
        if expected is None:
            assert text != text
        else:
            assert text == (f"{expected} at , line {number}" if "_" in expected else expected)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_with_a_broken_item(indent, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.files.MAX_LENGTH", 500)
    items = [{"text": text, "turns": [{"from": "a"}, {"from": "b"}], "n": [1, 2.5]} for text in TEXTS]
    content = json.dumps(items, indent=indent)
    for damaged in (content.replace('text 2"', "text 2"), content.replace('"text 2",', '"text 2"')):
        (tmp_path / "a.json").write_text(damaged)
        assert texts(tmp_path / "a.json") == [*TEXTS[:2], "broken_json at , item 3", *TEXTS[3:]]
    (tmp_path / "a.json").write_text(content[: content.index("text 4")])
    assert texts(tmp_path / "a.json") == [*TEXTS[:4], "broken_json at , item 5"]


def test_a_list_is_read_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.files.CHUNK", 3)  # characters, so that all ends are in the midst of something
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]) + " ")
    assert texts(tmp_path / "a.json", streaming=True) == TEXTS
    (tmp_path / "a.json").write_text("[123456, null, true]")
    assert texts(tmp_path / "a.json", streaming=True) == [f"wrong_type at , item {i}" for i in (1, 2, 3)]


def test_a_list_that_is_packed(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([{"text": text} for text in TEXTS]).encode()))
    assert texts(tmp_path / "a.json.gz") == TEXTS


@both
def test_csv(streaming, tmp_path):
    rows = ["\ufefftext,n", "one,1", '"two, and ""more""\nlines",2', "", "123,4", 'a"b,5', "six,6,7", '"open,8']
    rows += ["nine,9", '"ten" x,10', "eleven"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    expected = ["one", 'two, and "more"\nlines', "123", 'a"b', "unreadable at , line 8", "unreadable at , line 9"]
    expected += ["nine", "unreadable at , line 11", "eleven"]
    assert texts(tmp_path / "a.csv", streaming=streaming) == expected
    (tmp_path / "a.tsv").write_text("text\tn\none\t1\n\t2\n")
    assert [record["text"] for record in read(tmp_path / "a.tsv")] == ["one", None]


@both
@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        (None, ["one\n\n  two\n2\n \nthree\N{REPLACEMENT CHARACTER}", "4"]),
        ("document", ["one\n\n  two\n2\n \nthree\N{REPLACEMENT CHARACTER}", "4"]),
        ("paragraph", ["one", "  two\n2", "three\N{REPLACEMENT CHARACTER}", "4"]),
        ("line", ["one", "  two", "2", "three\N{REPLACEMENT CHARACTER}", "4"]),
    ],
)
def test_texts(sample_by, expected, streaming, tmp_path):
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfone\r\n\n  two\n2\n \nthree\xff")
    (tmp_path / "b.txt").write_bytes(b"4")
    (tmp_path / "c.txt").write_bytes(b" \n\n")
    chosen = {} if sample_by is None else {"sample_by": sample_by}
    assert texts(tmp_path / "*.[tT]*", streaming=streaming, **chosen) == expected


def test_places_in_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    for sample_by, places in (
        ("document", ["the whole"]),
        ("paragraph", ["lines 1 to 2", "lines 5 to 5"]),
        ("line", ["line 1", "line 2", "line 5"]),
    ):
        source = DataSource("lm", str(tmp_path / "a.txt"), sample_by=sample_by)
        records = list(source.open())
        assert [source.place(record, "") for record in records] == [f"{tmp_path}/a.txt, {place}" for place in places]
    with pytest.raises(
        ValueError, match=r"`sample_by` must be one of \('document', 'paragraph', 'line'\), got 'page'"
    ):
        DataSource("lm", str(tmp_path), sample_by="page")


@both
def test_the_rest_of_a_damaged_file_is_named(streaming, tmp_path):
    lines = [json.dumps({"text": f"{i} " + picture(i).hex()}) for i in range(400)]
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    found = texts(tmp_path, streaming=streaming)
    number = found.index("text 0") - 1
    assert 50 < number < 400
    assert found[number].startswith(f"unreadable at /a.jsonl.gz, all after line {number}")
    assert found[number + 1 : -1] == TEXTS
    assert found[-1] == "unreadable at /c.jsonl.gz, all after the beginning"


@both
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_any_name(suffix, streaming, tmp_path):
    folder = tmp_path / "part[1] *?"
    folder.mkdir()
    file = folder / f"a[1] *?.{suffix}"
    if suffix == "jsonl":
        file.write_text(LINES)
        assert texts(folder, streaming=streaming) == TEXTS
    else:
        Dataset.from_dict({"text": TEXTS}).to_parquet(file)
    assert texts(file, streaming=streaming) == TEXTS


def test_a_path_is_text_from_then_on(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    source = DataSource("lm", tmp_path / "*.jsonl")
    assert [record["text"] for record in source.open()] == LINES.splitlines()
    json.dumps(BadRecord("empty", "").entry(source))  # as it stands in the list of what was skipped


@both
def test_zstandard_that_is_damaged(streaming, tmp_path):
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    frames = [
        compress("".join(json.dumps({"text": f"{i} " + "x" * 999}) for _ in "a").encode() + b"\n") for i in range(4)
    ]
    whole = b"".join(frames)
    long = compress("\n".join(json.dumps({"text": picture(i).hex()}) for i in range(4000)).encode())
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    assert len(read(tmp_path / "a.jsonl.zst", streaming=streaming)) == 4
    files = {"b": whole + b"no frame", "c": whole[:-9], "d": long[: len(long) // 2], "e": b"no zstd"}
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl.zst").write_bytes(content)
        found = texts(tmp_path / f"{name}.jsonl.zst", streaming=streaming)
        assert found[-1].startswith("unreadable at , all after "), name
        assert all("unreadable" not in text for text in found[:-1])


@pytest.mark.parametrize("name", ["a.zip", "a.parquet.gz", "a.pdf", "a"])
def test_kinds_that_cannot_be_read(name, tmp_path):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"`path`: the files must be all of one of the kinds \['.json', .*got .*/a"):
        DataSource("lm", str(tmp_path / name)).open()


def test_zstandard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.files.compr", {})
    (tmp_path / "a.jsonl.zst").write_text("x")
    with pytest.raises(ValueError, match="to read .*a.jsonl.zst, its compression must be installed: `pip install zst"):
        DataSource("lm", str(tmp_path / "a.jsonl.zst")).open()


@both
def test_a_damaged_table_of_parquet_is_named(streaming, tmp_path):
    Dataset.from_dict({"text": [picture(i).hex() for i in range(200)]}).to_parquet(tmp_path / "a.parquet")
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    whole[200:900] = bytes(700)
    (tmp_path / "a.parquet").write_bytes(whole)
    source = DataSource("lm", str(tmp_path / "a.parquet"), streaming=streaming)
    with pytest.raises((ValueError, RuntimeError), match="a.parquet.* (cannot be read|reading its records failed), ."):
        next(iter(RosettaDataStream([source], None, 100)))


def test_patterns_splits_and_data_files(tmp_path):
    for part in ("train-0", "train-1", "validation-0"):
        (tmp_path / f"{part}.jsonl").write_text(json.dumps({"text": part}))
    assert texts(tmp_path) == ["train-0", "train-1"]
    assert texts(tmp_path, split="validation") == ["validation-0"]
    assert texts(tmp_path / "*-0.jsonl") == ["train-0", "validation-0"]
    assert texts(tmp_path, data_files="val*.jsonl") == ["validation-0"]
    assert DataSource("mmu", str(tmp_path / "*-0.jsonl")).image_root == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file .*none-"):
        DataSource("lm", str(tmp_path / "none-*.jsonl")).open()


def test_metadata_by_its_own(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "red"}))
    assert read(tmp_path / "metadata.jsonl", "t2i") == [{"file_name": "a.png", "text": "red"}]
    assert read(tmp_path, "t2i")[0]["image"]["path"].endswith("a.png")


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


PNG = {"bytes": b"png", "path": "png"}


@both
def test_members_of_a_tar(streaming, tmp_path):
    members = [
        ("./a/", b""),
        ("./a/1.png", b"png"),
        ("./a/1.txt", b"one"),
        ("a/._1.png", b"of a Mac"),
        ("b/1.txt", b"two"),
        ("b/1.PNG", b"png"),
        ("b/1.cls", b"unused"),
        ("b/1.json", b"{broken, but not asked for"),
        ("photo.2.5x.png", b"png"),
        ("photo.2.5x.txt", b"three"),
        ("photo.2.6x.png", b"png"),
        ("photo.2.6x.txt", b"four"),
        ("3.seg.png", b"unused"),
        ("3.png", b"png"),
        ("3.txt", b"caf\xe9"),
        ("4.txt", b"no picture"),
        ("5.png", b""),
        ("5.txt", b""),
        ("LICENSE", b"free"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    expected = [
        {"png": PNG, "txt": "one"},
        {"txt": "two", "png": PNG, "cls": None, "json": None},
        {"png": PNG, "txt": "three"},
        {"png": PNG, "txt": "four"},
        {"seg.png": {"bytes": b"unused", "path": "seg.png"}, "png": PNG, "txt": "caf\N{REPLACEMENT CHARACTER}"},
        {"txt": "no picture"},
        {"png": {"bytes": b"", "path": "png"}, "txt": ""},
    ]
    assert read(tmp_path / "a.tar", "t2i", streaming=streaming) == expected


def test_columns_of_a_tar_that_are_named(tmp_path):
    members = [("1.image.png", b"png"), ("1.cap.txt", b"one"), ("1.json", b"[7]")]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    columns = {"image_column": "image.png", "caption_column": "cap.txt", "conversation_column": "json"}
    (record,) = read(tmp_path / "a.tar", "t2i", **columns)
    assert record == {"image.png": {"bytes": b"png", "path": "image.png"}, "cap.txt": "one", "json": [7]}
    (tmp_path / "b.tar").write_bytes(tar_of([("1.jp2", b"j"), ("1.txt", b"one")]))
    (record,) = read(tmp_path / "b.tar", "t2i", image_column="jp2")
    assert record == {"jp2": {"bytes": b"j", "path": "jp2"}, "txt": "one"}
    (tmp_path / "a.tar").write_bytes(tar_of([*members[:2], ("1.json", b"{")]))
    assert read(tmp_path / "a.tar", "t2i", **columns) == ["broken_json at , key 1"]


@both
def test_a_damaged_tar(streaming, tmp_path):
    members = [(f"{i}.{ending}", b"x" * 700) for i in range(4) for ending in ("png", "txt")]
    whole = tar_of(members)
    size = 512 + 1024  # of a member

    def keys(content: bytes) -> list[str]:
        (tmp_path / "a.tar").write_bytes(content)
        found = read(tmp_path / "a.tar", "t2i", streaming=streaming)
        return [record if isinstance(record, str) else "+".join(sorted(record)) for record in found]

    assert keys(whole) == ["png+txt"] * 4
    cut_off = ["unreadable at , all after key 1"]
    assert keys(whole[: 4 * size + 600]) == ["png+txt"] * 2 + cut_off  # in the first of two
    assert keys(whole[: 5 * size + 600]) == ["png+txt"] * 2 + cut_off  # in the second
    assert keys(whole[: 4 * size + 100]) == ["png+txt"] * 2 + ["unreadable at , a damaged header"]
    damaged = whole[: 4 * size + 20] + b"\1\2\3" + whole[4 * size + 23 :]
    assert keys(damaged) == ["png+txt"] * 2 + ["unreadable at , a damaged header", "txt", "png+txt"]
    assert keys(b"no tar at all" * 100) == ["unreadable at , all after the beginning"]


@both
@pytest.mark.parametrize("num_readers", [1, 2, 3])
def test_readers_of_tars_go_on_where_they_were(num_readers, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.source.BLOCK_SIZE", 3)
    for shard in range(2):
        members = [(f"{shard}{i}.{end}", b"%d" % (10 * shard + i)) for i in range(5) for end in ("png", "txt")]
        (tmp_path / f"{shard}.tar").write_bytes(tar_of(members[:-1]))  # the last one is no pair
    kind = StreamReader if streaming else ShuffledReader

    def readers():
        source = DataSource("t2i", str(tmp_path / "*.tar"), streaming=streaming)
        return [kind(source.open(), number, num_readers, 0) for number in range(num_readers)]

    seen = []
    for number, reader in enumerate(readers()):
        places = []
        while reader.epoch < 1:
            state = json.dumps(reader.state_dict())
            places.append(next(reader)["place"])
            other = readers()[number]
            other.load_state_dict(json.loads(state))
            assert next(other)["place"] == places[-1]
        seen += places[:-1]
    assert len(seen) == len(set(seen)) == 10
