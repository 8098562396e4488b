"""The shapes that people's data have give the samples that a person expects."""

import base64
import gzip
import io
import json
import random
import tarfile
from collections import Counter
from itertools import islice

import pytest
import torch
from data_files import file_processor, picture
from datasets import Dataset
from PIL import Image

from trainer import DataSource, RosettaDataStream
from trainer.data.bad_records import BadRecord
from trainer.data.records import training_sample


RED, BLUE = picture(1), picture(200)
QUESTION, ANSWER = {"role": "user", "content": "which?"}, {"role": "assistant", "content": "this"}


@pytest.fixture(scope="module")
def processor():
    return file_processor()


def chat(user, answer="this", images=(), system=None):
    """What a person expects: a conversation as the processor takes it."""
    parts = [{"type": "image", "image": Image.open(io.BytesIO(image))} for image in images]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": [*parts, {"type": "text", "text": user}]})
    return [*messages, {"role": "assistant", "content": answer}]


LLAVA = [{"from": "human", "value": "<image>\nwhich?"}, {"from": "gpt", "value": "this"}]
ITEMS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "this"}]},
]


@pytest.mark.parametrize(
    ("task", "record", "columns", "expected"),
    [
        ("mmu", {"id": "1", "image": RED, "conversations": LLAVA}, {}, chat("which?", images=[RED])),
        ("mmu", {"id": "1", "conversations": [{"from": "human", "value": "which?"}, LLAVA[1]]}, {}, chat("which?")),
        ("mmu", {"image": None, "messages": [QUESTION, ANSWER]}, {}, chat("which?")),
        ("mmu", {"images": [], "messages": [QUESTION, ANSWER]}, {}, chat("which?")),
        (
            "mmu",
            {"image": RED, "conversations": [{"from": "human", "value": "which?\n<image>"}, LLAVA[1]]},
            {},
            chat("which?", images=[RED]),
        ),
        ("mmu", {"images": [RED, BLUE], "messages": [QUESTION, ANSWER]}, {}, chat("which?", images=[RED, BLUE])),
        ("mmu", {"images": [{"bytes": RED, "path": None}], "messages": ITEMS}, {}, chat("which?", images=[RED])),
        ("lm", {"messages": [QUESTION, ANSWER]}, {}, chat("which?")),
        (
            "lm",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "which?"}]}, ANSWER]},
            {},
            chat("which?"),
        ),
        ("lm", {"system": "be brief", "messages": [QUESTION, ANSWER]}, {}, chat("which?", system="be brief")),
        (
            "mmu",
            {"system": "be brief", "image": RED, "conversations": LLAVA},
            {},
            chat("which?", "this", [RED], "be brief"),
        ),
        ("lm", {"prompt": [QUESTION], "completion": [ANSWER]}, {}, chat("which?")),
        ("mmu", {"images": [RED], "prompt": [QUESTION], "completion": [ANSWER]}, {}, chat("which?", images=[RED])),
        ("mmu", {"image": RED, "prompt": "which?", "completion": "this"}, {}, chat("which?", images=[RED])),
        (
            "mmu",
            {"images": [{"bytes": RED}], "texts": [{"user": "which?", "assistant": "this", "source": "x"}]},
            {},
            chat("which?", images=[RED]),
        ),
        (
            "lm",
            {"instruction": "which?", "input": "a or b", "output": "this"},
            {"user_column": ["instruction", "input"], "assistant_column": "output"},
            chat("which?\n\na or b"),
        ),
        (
            "lm",
            {"instruction": "which?", "input": "", "output": "this"},
            {"user_column": ["instruction", "input"], "assistant_column": "output"},
            chat("which?"),
        ),
        (
            "mmu",
            {"image": RED, "question": "which?", "answer": "this", "role": "be brief"},
            {"user_column": "question", "assistant_column": "answer", "system_column": "role"},
            chat("which?", "this", [RED], "be brief"),
        ),
        ("lm", {"text": "a document"}, {}, "a document"),
    ],
)
def test_layouts(task, record, columns, expected, processor):
    sample = training_sample(record, DataSource(task, "nowhere", **columns), processor, 999)
    expected = processor.training_sample(expected)
    assert sample.keys() == expected.keys()
    assert all(torch.equal(sample[key], expected[key]) for key in expected)


def test_images_in_the_items_of_a_message(processor, tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    url = f"data:image/png;base64,{base64.b64encode(BLUE).decode()}"
    items = [
        {"type": "image", "path": "red.png"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "which?"},
    ]
    record = {"messages": [{"role": "user", "content": items}, ANSWER]}
    sample = training_sample(record, DataSource("mmu", "nowhere", image_root=str(tmp_path)), processor, 999)
    expected = processor.training_sample(chat("which?", images=[RED, BLUE]))
    assert all(torch.equal(sample[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("task", "record", "reason"),
    [
        ("mmu", {"image": RED, "conversations": [{"from": "human", "value": "a <image> b"}, LLAVA[1]]}, "interleaved"),
        (
            "mmu",
            {"image": [RED, RED], "conversations": [{"from": "human", "value": "<image> b <image>"}, LLAVA[1]]},
            "interleaved",
        ),
        ("lm", {"texts": ["a", None, "b"], "images": [None, RED, None]}, "interleaved"),
        ("mmu", {"texts": ["a", None, "b"], "images": [None, RED, None]}, "interleaved"),
        ("lm", {"messages": [QUESTION, {"role": "tool", "content": "4"}, ANSWER]}, "tool_turn"),
        ("lm", {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}, "tool_turn"),
        ("lm", {"conversations": [LLAVA[0], {"from": "function_call", "value": "f()"}]}, "tool_turn"),
        ("lm", {"messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWER]}, "wrong_type"),
        (
            "mmu",
            {"image": RED, "messages": [QUESTION, {"role": "assistant", "content": ITEMS[0]["content"]}]},
            "bad_conv",
        ),
        (
            "lm",
            {"system": "a", "messages": [{"role": "system", "content": "b"}, QUESTION, ANSWER]},
            "bad_conversation",
        ),
        ("lm", {"messages": [QUESTION, {**ANSWER, "weight": 0.5}]}, "bad_conversation"),
        ("lm", {"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "no_target"),
        ("mmu", {"image": RED, "conversations": [{"from": "human", "value": "no mark"}, LLAVA[1]]}, "image_count"),
        ("lm", {"messages": ITEMS}, "image_count"),
        ("lm", {"messages": [{"role": "user", "content": [{"type": "image", "image": RED}]}, ANSWER]}, "image_count"),
        ("mmu", {"conversations": LLAVA}, "missing_column"),
        ("mmu", {"image": RED, "text": "x"}, "missing_column"),
        ("lm", {"prompt": "a", "completion": 3}, "wrong_type"),
    ],
)
def test_what_has_no_place_is_counted_by_its_reason(task, record, reason, processor):
    with pytest.raises(BadRecord, match=reason):
        training_sample(record, DataSource(task, "nowhere"), processor, 999)


def test_prompt_and_completion_as_text(processor):
    sample = training_sample({"prompt": "1 + 1 =", "completion": " 2"}, DataSource("lm", "nowhere"), processor, 999)
    ids = [*processor.tokenizer("1 + 1 =").input_ids, *processor.tokenizer(" 2").input_ids]
    assert sample["input_ids"].tolist() == [*ids, processor.turn_end_token_id]
    assert sample["labels"].tolist() == [-100] * 7 + sample["input_ids"][7:].tolist()


def test_only_the_completion_of_a_chat_is_a_target(processor):
    record = {"prompt": [QUESTION, {**ANSWER, "content": "that"}, QUESTION], "completion": [ANSWER]}
    sample = training_sample(record, DataSource("lm", "nowhere"), processor, 999)
    assert processor.tokenizer.decode(sample["input_ids"][sample["labels"] != -100]) == "this<|im_end|>"


def test_turns_without_weight_are_no_targets(processor):
    messages = [QUESTION, {**ANSWER, "content": "that", "weight": 0}, QUESTION, {**ANSWER, "weight": 1}]
    sample = training_sample({"messages": messages}, DataSource("lm", "nowhere"), processor, 999)
    assert processor.tokenizer.decode(sample["input_ids"][sample["labels"] != -100]) == "this<|im_end|>"


def _prompts(record, processor, number=60, **columns):
    source = DataSource("t2i", "nowhere", **columns)
    samples = [training_sample(record, source, processor, 999, random.Random(i)) for i in range(number)]
    texts = [processor.tokenizer.decode(sample["input_ids"]) for sample in samples]
    return Counter(text.partition("user\n")[2].partition("<|im_end|>")[0] for text in texts)


def test_one_of_several_captions_is_drawn(processor):
    assert set(_prompts({"image": RED, "caption": ["a", "b", " "]}, processor)) == {"a", "b"}
    record = {"image": RED, "short": "s", "long": "l", "none": None}
    drawn = _prompts(record, processor, 300, caption_column={"short": 1, "long": 3, "none": 5})
    assert set(drawn) == {"s", "l"} and 180 < drawn["l"] < 270
    with pytest.raises(BadRecord, match="empty"):
        _prompts({"image": RED, "caption": []}, processor)
    with pytest.raises(ValueError, match="`caption_column` must map columns to weights above 0"):
        DataSource("t2i", "nowhere", caption_column={"short": 0})


def test_captions_of_a_stream_are_drawn_again_alike(processor, tmp_path):
    captions = [f"{letter}{i}" for letter in "abc" for i in range(3)]
    Dataset.from_list([{"image": RED, "caption": captions}] * 3).to_parquet(tmp_path / "a.parquet")

    def texts():
        stream = RosettaDataStream([DataSource("t2i", str(tmp_path))], processor, 100, prompt_dropout=0.0)
        samples = [sample for row in islice(stream, 20) for sample in row.samples]
        return [processor.tokenizer.decode(sample["input_ids"]) for sample in samples]

    assert texts() == texts() and len(set(texts())) == len(captions)


def _tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("task", "said", "expected"),
    [
        ("t2i", {"caption": "red", "url": "http://x", "width": 16, "image": "elsewhere.png"}, None),
        ("mmu", {"conversations": LLAVA, "image": "elsewhere.png"}, chat("which?", images=[RED])),
        ("lm", {"messages": [QUESTION, ANSWER]}, chat("which?")),
        ("lm", {"text": "a document"}, "a document"),
    ],
)
def test_json_beside_the_members_of_a_tar(task, said, expected, processor, tmp_path):
    _tar(tmp_path / "a.tar", [("1.png", RED), ("1.json", json.dumps(said).encode())])
    source = DataSource(task, str(tmp_path / "a.tar"))
    sample = training_sample(source.open()[0], source, processor, 999)
    if expected is None:
        assert "red" in processor.tokenizer.decode(sample["input_ids"]) and "latent_pixels" in sample
    else:
        expected = processor.training_sample(expected)
        assert all(torch.equal(sample[key], expected[key]) for key in expected)


def test_columns_are_given_together():
    with pytest.raises(ValueError, match="`user_column` and `assistant_column` must be given together"):
        DataSource("lm", "nowhere", user_column="question")


def test_packed_files_and_patterns(processor, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": name}).encode()))
    source = DataSource("lm", str(tmp_path / "*.jsonl.gz"))
    records = [source.parse(record) for record in source.open()]
    assert records == [{"text": "a"}, {"text": "b"}]
