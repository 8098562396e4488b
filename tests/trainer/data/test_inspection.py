"""What is said of data before anything is trained on them."""

import base64
import io
import json
import re

import numpy as np
import pytest
from data_files import conversation, file_processor, picture
from datasets import Dataset
from PIL import Image

from trainer import DataSource, RosettaDataStream
from trainer.data.inspection import inspect_stream
from trainer.data.inspection_page import write_page


MAX_LENGTH = 120


@pytest.fixture
def report(tmp_path):
    texts = [{"text": f"text {i}"} for i in range(30)] + [{"text": "long " * 100}, {"text": 7}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "seen.png").write_bytes(picture(3))
    questions = [{"image": "seen.png", "conversations": conversation(i)} for i in range(9)]
    (tmp_path / "questions.jsonl").write_text(
        "\n".join(map(json.dumps, [*questions, {"image": "x.png", **questions[0]}]))
    )
    drawings = [{"image": picture(i, 64, 64), "caption": f"drawing <b> {i}"} for i in range(4)]
    Dataset.from_list(drawings).to_parquet(tmp_path / "drawings.parquet")
    sources = [
        DataSource("lm", str(tmp_path / "texts.jsonl"), weight=2),
        DataSource("mmu", str(tmp_path / "questions.jsonl"), streaming=True),
        DataSource("t2i", str(tmp_path / "drawings.parquet")),
    ]
    stream = RosettaDataStream(sources, file_processor(), MAX_LENGTH, max_skipped_share=0.5)
    return inspect_stream(stream, 1000)


def test_numbers(report):
    texts, questions, drawings = report.sources
    assert [s.num_records for s in report.sources] == [32, 10, 4]
    assert [entry["reason"] for entry in texts.skipped] == ["wrong_type"]
    assert texts.num_samples == 30 + 5 and texts.longest == MAX_LENGTH  # 500 characters and an end
    assert texts.tokens == {"input_ids": sum(len(f"text {i}") + 1 for i in range(30)) + 501}
    assert questions.num_images == 10 and questions.tokens["pixel_values"] == 10 * 4
    assert drawings.num_images == 4 and drawings.tokens["noisy_latents"] == 4 * 16
    of_samples, of_tokens = zip(*report.shares(), strict=True)
    assert abs(of_samples[0] - 0.5) < 0.05 and abs(sum(of_tokens) - 1) < 1e-9
    assert len(report.rows) == 64 and 0.9 < report.fill <= 1


def test_words(report):
    said = str(report)
    assert "32 read, 31 to train on, 1 skipped" in said
    assert re.search(r"1 wrong_type, the first .*texts.jsonl, line 32: text must be a string, got int", said)
    assert re.search(r"64 rows of 120 tokens are \d\d\.\d% full\.", said)


def test_the_page_shows_what_the_model_gets(report, tmp_path):
    write_page(report, file_processor(), tmp_path / "data.html", title="Data of <a> stage")
    page = (tmp_path / "data.html").read_text()
    assert "Data of &lt;a&gt; stage" in page and "drawing &lt;b&gt;" in page
    assert re.search(r"<span class=\"target\">it is \d&lt;\|im_end\|&gt;</span>", page)
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
        for code in re.findall(r"data:image/png;base64,([^\"]*)", page)
    ]
    colours = {tuple(image[0, 0]) for image in images}
    assert {image.shape for image in images} == {(16, 16, 3), (64, 64, 3)}
    assert (3, 21, 100) in colours and {(i, 7 * i, 100) for i in range(4)} <= colours
    assert page.count('<div class="row">') == 64


def test_a_run_that_would_stop_says_so(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n" * 5)
    stream = RosettaDataStream([DataSource("lm", str(tmp_path / "bad.jsonl"))], file_processor(), MAX_LENGTH)
    report = inspect_stream(stream, 10)
    assert report.rows == [] and "100 of 100 records were skipped" in report.stopped
    assert "A run would stop: " in str(report)
    write_page(report, file_processor(), tmp_path / "data.html")
    assert "A run would stop:" in (tmp_path / "data.html").read_text()
