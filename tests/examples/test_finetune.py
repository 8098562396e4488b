"""Fine-tuning on a folder of images: what is trained, what is left alone, and that the result draws."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from examples.finetune import load_images, main
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaPipeline
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


NUM_IMAGES = 4


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    tiny_pipeline(latent_prefix=False).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """Of three sizes, with a metadata.jsonl."""
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (60 + 30 * (number % 3), 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"stone {number}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def _finetune(released, images, tmp_path, train):
    main(
        f"--model {released} --images {images} --train {train} --output_dir {tmp_path / 'out'} --max_steps 2 "
        "--per_device_train_batch_size 2 --warmup_steps 1 --use_cpu --disable_tqdm True --save_strategy no".split()
    )
    return tmp_path / "out"


def _draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("stone", num_inference_steps=2, generator=generator, output_type="np").images


def _load(folder) -> RosettaPipeline:
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("train", ["vae", "full"])
def test_result_draws_otherwise_and_only_what_was_to_be_trained_has_changed(train, released, images, tmp_path):
    result = _load(_finetune(released, images, tmp_path, train) / "model")
    assert not np.array_equal(_draw(result), _draw(_load(released)))
    before = RosettaForCausalLMAndImageGeneration.from_pretrained(released).state_dict()
    changed = {name for name, value in result.transformer.state_dict().items() if not torch.equal(value, before[name])}
    serves_drawing = {name for name in changed if ".vae." in name or "latent" in name}
    assert serves_drawing and (changed == serves_drawing) == (train == "vae")
    assert any(".experts." in name for name in serves_drawing)
    assert not any("visual" in name and "linear_fc2" not in name for name in changed)
    stages = json.loads((tmp_path / "out" / "model" / "training.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["fine-tuning"]


def test_adapter_loads_on_the_released_pipeline(released, images, tmp_path):
    pipeline = _load(released)
    before = _draw(pipeline)
    pipeline.transformer.load_adapter(str(_finetune(released, images, tmp_path, "lora") / "adapter"))
    assert not np.array_equal(_draw(pipeline), before)
    assert not (tmp_path / "out" / "model").exists()


def test_captions_may_stand_beside_the_images(images):
    captions = [caption for _, caption in load_images(images, "text")]
    assert captions == [f"stone {number}" for number in range(NUM_IMAGES)]
    (images / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="no text beside 0.png"):
        load_images(images, "text")
    for number in range(NUM_IMAGES):
        (images / f"{number}.txt").write_text(f"stone {number}\n")
    assert [caption for _, caption in load_images(images, "text")] == captions


def test_errors(images, tmp_path):
    with pytest.raises(ValueError, match="`caption_column`: .*'image', 'text'"):
        load_images(images, "caption")
    with pytest.raises(ValueError, match="`images` must be a folder"):
        load_images(tmp_path / "none", "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold images"):
        load_images(tmp_path / "empty", "text")
    for arguments, sentence in (
        (["--images", str(tmp_path / "none")], "^`images` must be a folder"),
        (["--images", str(images)], "^`model`: '.*no_model' cannot be fine-tuned"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["--model", str(tmp_path / "no_model"), *arguments])
