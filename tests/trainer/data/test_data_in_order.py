"""Records in order: images where they were put, those of an assistant to draw, and edits with their sources."""

import io

import pytest
import torch
from data_files import file_processor, file_vae, picture
from datasets import Dataset
from PIL import Image

from modeling_rosetta import RosettaProcessor
from modeling_rosetta.latent_codec_rosetta import with_latents
from modeling_rosetta.latent_roles_rosetta import CONTEXT, COPY, DRAFT, DRAWN
from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data import write_latent_cache
from trainer.data.bad_records import BadRecord
from trainer.data.records import training_sample


RED, BLUE = picture(1), picture(200)
BOTH = ["noisy_latents", "pixel_values"]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def made(**kwargs) -> RosettaProcessor:
    processor = file_processor()
    return RosettaProcessor(processor.image_processor, processor.tokenizer, base_size=64, **kwargs)


@pytest.fixture(scope="module")
def processor() -> RosettaProcessor:
    return made(layout="in_order", image_embeds_from=BOTH)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


RECORDS = [
    {"messages": [{"role": "user", "content": "a <image> b"}, {"role": "assistant", "content": "c <image> d"}]},
    {
        "conversations": [
            {"from": "human", "value": "a <image> b"},
            {"from": "gpt", "value": "c <image> d"},
        ]
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " b"}],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "c "}, {"type": "image"}, {"type": "text", "text": " d"}],
            },
        ]
    },
]


@pytest.mark.parametrize("record", RECORDS)
def test_images_stay_where_they_are(record, processor):
    sample = training_sample({**record, "images": [RED, BLUE]}, DataSource("mmu", "."), processor, 500)
    text = {"type": "text"}
    expected = processor.training_sample(
        [
            {
                "role": "user",
                "content": [{**text, "text": "a "}, {"type": "image", "image": opened(RED)}, {**text, "text": " b"}],
            },
            {
                "role": "assistant",
                "content": [
                    {**text, "text": "c "},
                    {"type": "latents", "image": opened(BLUE)},
                    {**text, "text": " d"},
                ],
            },
        ]
    )
    assert same(sample, expected)
    assert sample["latent_roles"].tolist() == [CONTEXT, DRAFT, COPY]
    with pytest.raises(BadRecord, match="bad_conversation|interleaved|image_count"):
        training_sample({**record, "images": [RED, BLUE]}, DataSource("mmu", "."), file_processor(), 500)


EDIT = {"caption": "make it blue", "source_image": RED, "image": BLUE}


@pytest.mark.parametrize("kwargs", [{}, {"layout": "in_order"}, {"layout": "in_order", "image_embeds_from": BOTH}])
def test_an_edit_is_drawn_from_its_sources(kwargs):
    processor = made(**kwargs)
    sample = training_sample(EDIT, DataSource("t2i", "."), processor, 500)
    images = [{"type": "image", "image": opened(RED)}]
    drawn = {"role": "assistant", "content": [{"type": "latents", "image": opened(BLUE)}]}
    user = {"role": "user", "content": [*images, {"type": "text", "text": "make it blue"}]}
    assert same(sample, processor.training_sample([user, drawn]))
    assert ("latent_roles" in sample) == ("image_embeds_from" in kwargs)
    several = {**EDIT, "before": [RED, BLUE]}
    sample = training_sample(several, DataSource("t2i", ".", source_column="before"), processor, 500)
    assert len(sample["image_grid_thw"]) == 2
    with pytest.raises(BadRecord, match="missing_column"):
        training_sample(EDIT, DataSource("t2i", ".", source_column="before"), processor, 500)
    with pytest.raises(BadRecord, match="undecodable_image"):
        training_sample({**EDIT, "source_image": b"none"}, DataSource("t2i", "."), processor, 500)


def test_cached_edits_train_as_those_that_are_encoded(processor, tmp_path):
    Dataset.from_list([{"caption": "x", "source_image": RED, "image": BLUE}] * 3).to_parquet(
        tmp_path / "edits.parquet"
    )
    source, vae = DataSource("t2i", str(tmp_path / "edits.parquet")), file_vae()
    counts = write_latent_cache(source, processor, vae, tmp_path / "cache")
    assert counts["written"] == 3
    cached = DataSource("t2i", str(tmp_path / "cache"))
    record = next(iter(cached.open()))
    sample = training_sample(record, cached, processor, 500)
    expected = dict(with_latents(training_sample(EDIT | {"caption": "x"}, source, processor, 500), vae))
    torch.testing.assert_close(sample.pop("latents"), expected.pop("latents"), rtol=0, atol=1e-5)
    assert same(sample, expected)


def test_prompts_and_sources_are_dropped(processor, tmp_path):
    """Each in its share, apart and together."""
    Dataset.from_list([{"caption": "abc", "source_image": RED, "image": BLUE}] * 8).to_parquet(tmp_path / "e.parquet")
    source = DataSource("t2i", str(tmp_path / "e.parquet"))
    stream = RosettaDataStream([source], processor, 300, prompt_dropout=0.2)
    kinds, rows = [], iter(stream)
    while len(kinds) < 120:
        for sample in next(rows).samples:
            has_text = processor.cfg_token_id not in sample["input_ids"]
            kinds.append((has_text, "pixel_values" in sample))
    share = {kind: kinds.count(kind) / len(kinds) for kind in {*kinds}}
    assert share.keys() == {(True, True), (False, True), (True, False), (False, False)}
    assert all(abs(share[kind] - (0.4 if kind == (True, True) else 0.2)) < 0.13 for kind in share)


def test_a_batch_says_what_its_images_are_for(processor):
    """Also of samples that do not say, of which all are to draw."""
    plain = training_sample({"caption": "x", "image": BLUE}, DataSource("t2i", "."), processor, 500)
    edit = training_sample(EDIT, DataSource("t2i", "."), processor, 500)
    assert "latent_roles" not in plain
    batch = RosettaDataCollator(0)([plain, edit])
    assert batch["latent_roles"].tolist() == [DRAWN, CONTEXT, DRAWN]
    encoded = with_latents(batch, file_vae())
    assert len(encoded["latents"]) == int(batch["latent_grid_hw"].prod(-1).sum())
