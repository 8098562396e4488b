"""Images to draw: encoded in training, or read from a cache, they train the same."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from data_files import file_model, file_processor, picture, text
from datasets import Dataset, load_dataset
from PIL import Image

from modeling_rosetta import encode_images
from tests.modeling_rosetta.tiny_pipeline import tiny_vae
from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data import latent_cache, write_latent_cache
from trainer.data.drawing import cached_latents, drawing_sample, encode_pixels


@pytest.fixture(scope="module")
def processor():
    return file_processor()


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture
def pictures(tmp_path) -> DataSource:
    """Twelve in two sizes, and one that cannot be decoded."""
    images = [picture(i, 16 + 48 * (i % 2), 32) for i in range(12)] + [b"no picture"]
    data = {"image": [{"bytes": image, "path": None} for image in images], "caption": [text(i) for i in range(13)]}
    Dataset.from_dict(data).to_parquet(tmp_path / "pictures.parquet")
    return DataSource("t2i", str(tmp_path / "pictures.parquet"))


def test_a_sample_of_pixels_is_that_of_latents(processor, vae):
    image = Image.effect_noise((80, 40), 90).convert("RGB")
    pixels = processor.preprocess_vae_image(image)
    latents = encode_images(vae, pixels[None])[0]
    sample = drawing_sample(processor, "a red stone", image=image)
    expected = drawing_sample(processor, "a red stone", latents=latents)
    encoded = encode_pixels(vae, sample.pop("latent_pixels"), sample["latent_grid_hw"])
    torch.testing.assert_close(encoded, expected.pop("latents"), rtol=0, atol=0)
    assert sample.keys() == expected.keys()
    assert all(torch.equal(sample[key], expected[key]) for key in sample)
    assert torch.equal(processor.drop_prompt(sample)["labels"], processor.drop_prompt(expected)["labels"])


def test_images_of_several_sizes_keep_their_order(processor, vae):
    images = [Image.effect_noise(size, 90).convert("RGB") for size in [(64, 64), (90, 40), (64, 64), (30, 80)]]
    samples = [drawing_sample(processor, "a stone", image=image) for image in images]
    batch = RosettaDataCollator(0, max_length=80, packed=True)(samples)
    encoded = encode_pixels(vae, batch["latent_pixels"], batch["latent_grid_hw"])
    alone = [encode_images(vae, processor.preprocess_vae_image(image)[None])[0].flatten(1).T for image in images]
    torch.testing.assert_close(encoded, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_pixels_and_latents_that_do_not_fit(processor, vae):
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    pixels = drawing_sample(processor, "a", image=image)
    latents = drawing_sample(processor, "a", latents=torch.zeros(8, 4, 4))
    collator = RosettaDataCollator(0)
    with pytest.raises(ValueError, match="all `latents` or all `latent_pixels`, got both"):
        collator([pixels, latents])
    with pytest.raises(
        ValueError, match="`latent_pixels` of sample 0 has 4095 entries, but `latent_grid_hw` makes 16"
    ):
        collator([{**pixels, "latent_pixels": pixels["latent_pixels"][1:]}])
    with pytest.raises(ValueError, match="must have `latent_pixels` and `latent_grid_hw`, or neither"):
        collator([{key: value for key, value in pixels.items() if key != "latent_grid_hw"}])


def _train(source, processor, trainer_of, vae=None, **arguments):
    trainer = trainer_of(
        file_model(processor),
        RosettaDataStream([source], processor, 80, max_skipped_share=0.5, prompt_dropout=0.3),
        data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
        vae=vae,
        adam_epsilon=1e-2,  # AdamW shall not make steps of the rounding in gradients that are zero
        **arguments,
    )
    trainer.train()
    return trainer


def test_training_on_pixels_is_training_on_the_cache(pictures, processor, vae, trainer_of, tmp_path):
    pictures.path = _without_bad(pictures, tmp_path)
    on_the_fly = _train(pictures, processor, trainer_of, vae, dataloader_num_workers=1)
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert write_latent_cache(pictures, processor, vae, tmp_path / "cache") == {"written": 12}
    cache = DataSource("t2i", str(tmp_path / "cache"))
    cached = _train(cache, processor, trainer_of)
    for weight, other in zip(on_the_fly.model.parameters(), cached.model.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-5)
    assert on_the_fly.state.log_history[0]["flow_loss"] == pytest.approx(cached.state.log_history[0]["flow_loss"])
    assert on_the_fly.state.log_history[0]["num_latent_images"] == 4


def _without_bad(pictures, folder) -> str:
    good = load_dataset("parquet", data_files=pictures.path, split="train").select(range(12))
    good.to_parquet(folder / "good.parquet")
    return str(folder / "good.parquet")


def test_pixels_need_a_vae(pictures, processor, trainer_of):
    with pytest.raises(ValueError, match="`vae` must be given: there are images to draw as pixels"):
        _train(pictures, processor, trainer_of)


def test_prompts_are_dropped_at_the_asked_rate(pictures, processor):
    stream = RosettaDataStream([pictures], processor, 60, max_skipped_share=0.5, prompt_dropout=0.3)
    dropped = Counter()
    for number, row in enumerate(stream):
        dropped.update(bool((sample["input_ids"] == processor.cfg_token_id).any()) for sample in row.samples)
        if number == 300:
            break
    assert abs(dropped[True] / dropped.total() - 0.3) < 0.06


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(latent_cache, "RECORDS_PER_FILE", 4)


def _cached(folder) -> dict[str, torch.Tensor]:
    records = DataSource("t2i", str(folder)).open()
    return {record["caption"]: cached_latents(record) for record in records}


def test_cache_counts_goes_on_and_is_parted(pictures, processor, vae, small_files, tmp_path):
    arguments = {"max_skipped_share": 0.5}
    whole = tmp_path / "whole"
    assert write_latent_cache(pictures, processor, vae, whole, **arguments) == {"written": 12, "undecodable_image": 1}
    assert len(list(whole.glob("latents-000-*.parquet"))) == 4
    expected = _cached(whole)
    assert set(expected) == {text(i) for i in range(12)}
    (listed,) = [json.loads(line) for file in whole.glob(".*.skipped.jsonl") for line in file.open()]
    assert listed["place"] == f"{pictures.path}, record 12 of part 0 of 1"
    assert listed["reason"] == "undecodable_image"

    lost = sorted(whole.glob("*.parquet"))[1]
    lost.unlink()
    (whole / f".{lost.name}.saving").write_text("cut off")
    assert write_latent_cache(pictures, processor, vae, whole, **arguments) == {"written": 4}
    again = _cached(whole)
    assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in again)

    for process in range(2):
        write_latent_cache(pictures, processor, vae, tmp_path / "parts", process=process, num_processes=2, **arguments)
    parts = _cached(tmp_path / "parts")
    assert parts.keys() == expected.keys()


def test_cache_of_something_else_is_not_mixed(pictures, processor, vae, tmp_path):
    write_latent_cache(pictures, processor, vae, tmp_path / "cache")
    other = tiny_vae()
    other.bn.running_mean += 1
    with pytest.raises(ValueError, match="holds latents with vae = "):
        write_latent_cache(pictures, processor, other, tmp_path / "cache")
    with pytest.raises(ValueError, match="holds latents with num_processes = 1, but now it is 2"):
        write_latent_cache(pictures, processor, vae, tmp_path / "cache", num_processes=2)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (b"nothing", "cannot be read"),
        (None, "cannot be read"),
        (torch.zeros(4, 4), r"must have shape \(C, h, w\), got \(4, 4\)"),
        (torch.full((8, 2, 2), float("nan")), "not finite"),
    ],
)
def test_damaged_latents(latents, message):
    if torch.is_tensor(latents):
        latents = latent_cache.safetensors.torch.save({"latents": latents})
    with pytest.raises(ValueError, match=message):
        cached_latents({"latents": latents})


def test_script(pictures, processor, vae, tmp_path):
    vae.save_pretrained(tmp_path / "parts" / "vae")
    processor.save_pretrained(tmp_path / "parts")
    script = Path(__file__).parents[3] / "examples" / "cache_latents.py"
    command = [sys.executable, script, pictures.path, tmp_path / "cache", "--vae", tmp_path / "parts"]
    run = subprocess.run([*command, "--processor", tmp_path / "parts"], capture_output=True, text=True, check=True)
    assert "Process 0 of 1: {'undecodable_image': 1, 'written': 12}" in run.stdout
    assert len(_cached(tmp_path / "cache")) == 12
