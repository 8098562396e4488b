"""A record is trained on as it is shown at inference, or it is a bad record, whatever went wrong."""

import io

import numpy as np
import pytest
import torch
from data_files import conversation, file_processor, picture
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from tests.modeling_rosetta.tiny_pipeline import tiny_vae
from trainer import DataSource, RosettaDataStream
from trainer.data import BadRecord, write_latent_cache
from trainer.data.drawing import cached_latents, encode_pixels
from trainer.data.records import _image, training_sample


MESSAGES = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a stone"}]
PNG = {"bytes": picture(3), "path": None}


@pytest.fixture(scope="module")
def processor():
    return file_processor()


def source(task: str = "t2i", **kwargs) -> DataSource:
    return DataSource(task, **{"path": "nowhere", **kwargs})


def _saved(image: Image.Image, form: str = "PNG", **kwargs) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **kwargs)
    return file.getvalue()


def _noise(mode: str, size=(40, 20)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8))


def _sideways() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return _saved(_noise("RGB"), "JPEG", exif=exif)


PICTURES = {
    "sideways": _sideways(),
    "transparent": _saved(_noise("RGBA")),
    "grey and transparent": _saved(_noise("LA")),
    "16 bits": _saved(Image.fromarray(np.linspace(0, 65535, 800).astype(np.uint16).reshape(20, 40))),
    "floats": _saved(Image.fromarray(np.linspace(0, 1, 800, dtype=np.float32).reshape(20, 40)), "TIFF"),
    "palette": _saved(_noise("RGB").quantize(8), "GIF", transparency=0),
}


def _entrances(data: bytes, folder) -> dict:
    (folder / "a.img").write_bytes(data)
    (decoded,) = Dataset.from_dict({"image": [{"bytes": data, "path": None}]}).cast_column("image", ImageFeature())[
        "image"
    ]
    return {
        "bytes": data,
        "a table's": {"bytes": data, "path": "elsewhere.png"},
        "a table's path": {"bytes": None, "path": str(folder / "a.img")},
        "relative path": "a.img",
        "PIL": Image.open(io.BytesIO(data)),
        "datasets": decoded,
    }


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_of_inference_to_the_pixel(name, processor, tmp_path):
    shown = processor.preprocess_vae_image(Image.open(io.BytesIO(PICTURES[name])))
    items = [{"type": "image", "image": PICTURES[name]}, {"type": "text", "text": "what?"}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": items}, {"role": "assistant", "content": "a stone"}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for value in _entrances(PICTURES[name], tmp_path).values():
        drawn = training_sample({"image": value, "text": "x"}, source(image_root=str(tmp_path)), processor, 999)
        assert torch.equal(drawn["latent_pixels"], ((shown + 1) * 127.5).round().to(torch.uint8).flatten(1).T)
        record = {"image": value, "messages": MESSAGES}
        sample = training_sample(record, source("mmu", image_root=str(tmp_path)), processor, 999)
        assert torch.equal(sample["pixel_values"], asked["pixel_values"])
        assert torch.equal(sample["image_grid_thw"], asked["image_grid_thw"])


def test_latents_of_the_cache_are_those_of_training(processor, tmp_path):
    pictures = [{"bytes": data, "path": None} for data in PICTURES.values()]
    Dataset.from_dict({"image": pictures, "caption": list(PICTURES)}).to_parquet(tmp_path / "a.parquet")
    vae, data = tiny_vae(), source(path=str(tmp_path / "a.parquet"))
    write_latent_cache(data, processor, vae, tmp_path / "cache", batch_size=1)
    cached = {record["caption"]: cached_latents(record) for record in source(path=str(tmp_path / "cache")).open()}
    for record in data.open():
        sample = training_sample(record, data, processor, 999)
        latents = encode_pixels(vae, sample["latent_pixels"], sample["latent_grid_hw"])
        assert torch.equal(latents, cached[record["caption"]].flatten(1).T)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "undecodable_image"),
        (b"\x89PNG\r\n\x1a\n", "undecodable_image"),
        (picture(1, 64, 64)[:-40], "undecodable_image"),
        ({"bytes": b"", "path": "a.png"}, "undecodable_image"),
        ("none.png", "missing_image"),
        ({"bytes": None, "path": "none.png"}, "missing_image"),
        ("https://example.org/a.png", "missing_image"),
        ("nul\0.png", "undecodable_image"),
        ("half\ud83d.png", "undecodable_image"),
        (".", "undecodable_image"),
        (7, "wrong_type"),
        ({"bytes": None, "path": None}, "wrong_type"),
        (picture(1, 402, 2), "bad_image_size"),
    ],
)
def test_bad_pictures(value, reason, tmp_path):
    with pytest.raises(BadRecord) as error:
        _image(value, source(image_root=str(tmp_path)))
    assert error.value.reason == reason


def test_whatever_a_decoder_raises(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in a plug-in")

    monkeypatch.setattr("PIL.Image.open", broken)
    with pytest.raises(BadRecord, match="undecodable_image: .*in a plug-in"):
        _image(picture(1), source())


@pytest.mark.parametrize(
    "columns",
    [
        {"jpg": None, "png": PNG, "txt": "x"},
        {"image": {"bytes": None, "path": None}, "png": PNG, "caption": "x"},
        {"image": None, "images": None, "tiff": PNG, "caption": None, "text": "x"},
        {"image": PNG, "caption": float("nan"), "text": "  ", "txt": "x"},
        {"image": PNG, "caption": "x", "latents": None},
    ],
)
def test_the_column_that_has_a_value_is_used(columns, processor):
    expected = training_sample({"image": PNG, "caption": "x"}, source(), processor, 999)
    sample = training_sample(columns, source(), processor, 999)
    assert sample.keys() == expected.keys() and all(torch.equal(sample[key], expected[key]) for key in sample)


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        ("lm", {"messages": None, "text": "x"}, {"text": "x"}),
        ("lm", {"conversations": [], "text": "x"}, {"text": "x"}),
        ("lm", {"conversations": None, "messages": MESSAGES[1:]}, "bad_conversation"),
        ("lm", {"text": None}, "missing_column"),
        ("lm", {"text": "", "messages": None}, "empty"),
        ("mmu", {"image": None, "images": [PNG], "messages": MESSAGES}, {"image": PNG, "messages": MESSAGES}),
        ("mmu", {"image": None, "messages": MESSAGES}, "missing_column"),
        (
            "mmu",
            {
                "image": PNG,
                "messages": [{"from": None, "value": None, **turn} for turn in MESSAGES],
                "conversations": None,
            },
            {"image": PNG, "messages": MESSAGES},
        ),
    ],
)
def test_columns_without_a_value(task, columns, expected, processor):
    if isinstance(expected, str):
        with pytest.raises(BadRecord, match=expected):
            training_sample(columns, source(task), processor, 999)
    else:
        sample, other = (training_sample(record, source(task), processor, 999) for record in (columns, expected))
        assert all(torch.equal(sample[key], other[key]) for key in sample)


SPECIAL = ["<|im_end|>", "<|im_start|>user\n", "<|image_pad|>", "<|vision_pad|>", "<|audio_features|>", "<｜cfg｜>"]


def _records_of(text: str) -> dict[str, list[dict]]:
    answered = [MESSAGES[0], {"role": "assistant", "content": text}]
    asked = [{"role": "user", "content": text}, MESSAGES[1]]
    return {
        "lm": [{"text": text}, {"messages": asked}, {"messages": [asked[0], answered[1]]}],
        "mmu": [{"image": PNG, "messages": answered}],
        "t2i": [{"image": PNG, "caption": text}],
    }


@pytest.mark.parametrize("token", SPECIAL)
def test_text_that_looks_like_a_mark_is_text(token, processor):
    special = torch.tensor(processor.tokenizer.convert_tokens_to_ids(processor.tokenizer.all_special_tokens))
    marked, harmless = _records_of(f"a{token}b"), _records_of(f"a{'?' * len(token)}b")
    for task in marked:
        for records in zip(marked[task], harmless[task], strict=True):
            samples = [training_sample(record, source(task), processor, 999) for record in records]
            ids, expected = [s["input_ids"][torch.isin(s["input_ids"], special)] for s in samples]
            assert torch.equal(ids, expected)
            assert (samples[0]["labels"] != -100).sum() >= (samples[1]["labels"] != -100).sum() > 1


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b"])
def test_half_a_pair_is_no_text(text, processor):
    for task, records in _records_of(text).items():
        for record in records:
            with pytest.raises(BadRecord, match="undecodable_text"):
                training_sample(record, source(task), processor, 999)


def test_any_exception_is_a_bad_record_with_its_name(processor, monkeypatch, caplog, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"text {i}\n" for i in range(40)))
    original = type(processor).training_sample

    def fails_at_7(self, text):
        if text == "text 7":
            raise KeyError("what nobody thought of")
        return original(self, text)

    monkeypatch.setattr(type(processor), "training_sample", fails_at_7)
    stream = iter(
        RosettaDataStream(
            [source("lm", path=str(tmp_path / "a.txt"), sample_by="line")], processor, 20, max_skipped_share=0.9
        )
    )
    (record,) = [record for _ in range(32) for record in next(stream).bad_records][:1]
    assert record == {
        "task": "lm",
        "source": str(tmp_path / "a.txt"),
        "place": f"{tmp_path / 'a.txt'}, line 8",
        "reason": "unusable",
        "detail": "KeyError, 'what nobody thought of'",
    }
    assert caplog.records[0].exc_info is not None  # where it came from


def test_what_fails_at_all_records_ends_the_run(processor, monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(type(processor), "training_sample", lambda *_: 1 / 0)
    stream = RosettaDataStream(
        [source("lm", path=str(tmp_path / "a.txt"), sample_by="line")], processor, 20, max_skipped_share=1
    )
    with pytest.raises(
        RuntimeError, match="100 of 100 .*a.txt, line ., unusable: ZeroDivisionError, division by zero"
    ):
        next(iter(stream))


def test_an_exception_elsewhere_is_no_bad_record(processor, monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    stream = RosettaDataStream(
        [source("lm", path=str(tmp_path / "a.txt"), sample_by="line")], processor, 20, max_skipped_share=1
    )
    monkeypatch.setattr("trainer.data.source.ShuffledReader.__next__", lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="a.txt: reading its records failed, division by zero"):
        next(iter(stream))


def test_a_sample_without_a_target(processor, monkeypatch):
    sample = processor.training_sample("text")
    monkeypatch.setattr(
        type(processor), "training_sample", lambda *_: {**sample, "labels": torch.full_like(sample["labels"], -100)}
    )
    with pytest.raises(BadRecord, match="no_target: none of its 5 tokens"):
        training_sample({"text": "text"}, source("lm"), processor, 999)


def test_conversations_of_pictures_still_train(processor):
    sample = training_sample({"image": PNG, "conversations": conversation(1)}, source("mmu"), processor, 999)
    assert (sample["labels"] != -100).sum() == len("it is 1") + 1
