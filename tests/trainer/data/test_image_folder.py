"""A folder of images and captions: every way to write the captions, and what is missing is named."""

import json

import pytest
from datasets import Dataset
from PIL import Image

from trainer.data.image_folder import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.JPG"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    return tmp_path


RECORDS = [{"file_name": "a.png", "text": " one "}, {"file_name": "b.JPG", "text": "two"}]
FOUND = [("a.png", ["one"]), ("b.JPG", ["two"])]


def _names(found):
    return [(file.name, captions) for file, captions in found]


def _write(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def test_every_way_to_write_captions(folder):
    with pytest.raises(ValueError, match="no metadata.jsonl in .* and no text beside a.png"):
        find_images(folder, "text")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text({"a": "one\n", "b": "two"}[name])
    assert _names(find_images(folder, "text")) == FOUND
    Dataset.from_list(RECORDS).to_parquet(folder / "metadata.parquet")
    assert _names(find_images(folder, "text")) == FOUND
    (folder / "metadata.csv").write_text("file_name,text\na.png,one\nb.JPG,two\n")
    (folder / "metadata.parquet").unlink()
    assert _names(find_images(folder, "text")) == FOUND
    (folder / "metadata.csv").unlink()
    _write(folder, *RECORDS)
    assert _names(find_images(folder, "text")) == FOUND


def test_lists_of_captions_and_texts_side_by_side(folder):
    _write(
        folder, {"file_name": "a.png", "caption": ["one", "first\u2028line"]}, {"file_name": "b.JPG", "caption": "two"}
    )
    assert _names(find_images(folder, "caption")) == [("a.png", ["one", "first\u2028line"]), ("b.JPG", ["two"])]


@pytest.mark.parametrize("caption", [None, "", "  ", [], ["one", ""], ["one", None], 7, {"en": "one"}], ids=repr)
def test_no_caption(caption, folder):
    _write(folder, RECORDS[0], {"file_name": "b.JPG", "text": caption})
    with pytest.raises(ValueError, match="the caption of '.*b.JPG' must be a text or a list of texts, got "):
        find_images(folder, "text")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"file_name": "b.JPG", "text": ', "line 2 of '.*metadata.jsonl' is no JSON"),
        ('["b.JPG", "two"]', "line 2 of '.*metadata.jsonl' must be an object"),
        ({"file_name": "c.png", "text": "three"}, "lists '.*c.png', which is not there"),
        ({"text": "two"}, "record 2 of '.*metadata.jsonl' must have a string as its file_name"),
        ({"file_name": None, "text": "two"}, "record 2 of '.*metadata.jsonl' must have a string as its file_name"),
    ],
)
def test_damaged_records(record, message, folder):
    _write(folder, RECORDS[0], record)
    with pytest.raises(ValueError, match=message):
        find_images(folder, "text")


def test_what_is_missing(folder, tmp_path):
    _write(folder, *RECORDS)
    with pytest.raises(ValueError, match="`caption_column`: there is no 'caption' in .*'file_name', 'text'"):
        find_images(folder, "caption")
    _write(folder, {"image": "a.png", "text": "one"})
    with pytest.raises(ValueError, match="`images`: there is no 'file_name' in .*'image', 'text'"):
        find_images(folder, "text")
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="metadata.jsonl' is not UTF-8"):
        find_images(folder, "text")
    with pytest.raises(ValueError, match="`images` must be a folder"):
        find_images(tmp_path / "none", "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold images"):
        find_images(tmp_path / "empty", "text")
