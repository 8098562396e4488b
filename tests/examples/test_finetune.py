"""Fine-tuning on a folder of images: what is trained, what is left alone, and that the result draws."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from examples import finetune
from examples.finetune import encode, main
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaPipeline, encode_images
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from trainer import RosettaTrainer
from trainer.data.image_folder import find_images
from trainer.stages.adapter_card import adapter_card


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


def _finetune(released, images, tmp_path, train, *options):
    main(
        f"--model {released} --images {images} --train {train} --output_dir {tmp_path / 'out'} --max_steps 2 "
        "--per_device_train_batch_size 2 --warmup_steps 1 --use_cpu --disable_tqdm True --save_strategy no".split()
        + list(options)
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


def test_adapter_has_a_card(released, images, tmp_path):
    adapter = _finetune(released, images, tmp_path, "lora", "--lora_rank", "2") / "adapter"
    card = ModelCard.load(adapter / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-to-image")
    assert card.data.base_model is None and str(tmp_path) not in card.content  # a folder is nobody's business
    assert (
        "LoRA of rank 2" in card.text
        and "2 steps on 4 images" in card.text
        and "`learning_rate` | 0.0001" in card.text
    )
    card = adapter_card("owner/name", {"steps": 1, "data": None, "hyperparameters": {}}, rank=4)
    assert card.data.base_model == "owner/name" and 'from_pretrained("owner/name"' in card.text
    assert "pipeline.transformer.load_adapter(" in card.text


def test_goes_on_where_it_was_interrupted(released, images, tmp_path):
    def run(name, *options):
        settings = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")
        folder = _finetune(released, images, tmp_path / name, "vae", *settings, *options)
        return load_file(folder / "model" / "model.safetensors")

    for file in images.glob("metadata.*"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [{**line, "text": [line["text"], "a stone", "any"]} for line in lines]  # drawn by the seed
        file.write_text("\n".join(map(json.dumps, lines)))
    whole = run("whole")
    checkpoint = tmp_path / "whole" / "out" / "checkpoint-2"
    shutil.copytree(checkpoint, tmp_path / "interrupted" / "out" / "checkpoint-2")
    for resumed in (run("interrupted"), run("another", "--resume_from_checkpoint", str(checkpoint))):
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    log = json.loads((tmp_path / "another" / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert log["global_step"] == 4 and not (tmp_path / "another" / "out" / "checkpoint-2").exists()


def test_images_are_read_some_at_a_time_and_named_if_they_cannot_be(images, monkeypatch, capsys):
    pipeline = tiny_pipeline(latent_prefix=False)
    files = [file for file, _ in find_images(images, "text")]
    expected = [encode_images(pipeline.vae, pipeline.processor.preprocess_vae_image(file)[None])[0] for file in files]
    alive = []
    monkeypatch.setattr(
        finetune, "encode_images", lambda vae, pixels: alive.append(len(pixels)) or encode_images(vae, pixels)
    )
    monkeypatch.setattr(finetune, "IMAGES_AT_A_TIME", 3)
    latents = encode(files, pipeline.processor, pipeline.vae)
    for one, other in zip(latents, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.untyped_storage().nbytes() == one.nbytes
    assert max(alive) <= 3 and sum(alive) == len(files)
    assert "4/4" in capsys.readouterr().err.rpartition("Encoding images")[2]

    files[2].write_bytes(files[2].read_bytes()[:-40])
    with pytest.raises(ValueError, match="`images`: '.*2.png' cannot be read as an image"):
        encode(files, pipeline.processor, pipeline.vae)


def test_each_process_reads_its_share(images, monkeypatch):
    pipeline = tiny_pipeline(latent_prefix=False)
    files = [file for file, _ in find_images(images, "text")]
    expected = encode(files, pipeline.processor, pipeline.vae, disable_tqdm=True)
    read = []
    for rank in range(3):
        state = SimpleNamespace(process_index=rank, num_processes=3)
        monkeypatch.setattr(finetune, "PartialState", lambda state=state: state)
        monkeypatch.setattr(finetune, "gather_object", lambda own: read.extend(own) or list(enumerate(expected)))
        encode(files, pipeline.processor, pipeline.vae, disable_tqdm=True)
    assert sorted(index for index, _ in read) == list(range(len(files)))
    for index, latents in read:
        torch.testing.assert_close(latents, expected[index])


def test_a_photo_is_trained_as_it_is_seen(images):
    pipeline = tiny_pipeline(latent_prefix=False)
    upright = Image.open(images / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    sideways = images / "sideways.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(sideways, exif=exif)
    upright.convert("RGBA").save(images / "rgba.png")
    latents = encode([images / "0.png", sideways, images / "rgba.png"], pipeline.processor, pipeline.vae, True)
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


def test_errors(images, tmp_path):
    (images / "3.png").write_bytes(b"no image")
    for arguments, sentence in (
        (["--images", str(tmp_path / "none")], "^`images` must be a folder"),
        (["--images", str(images)], "^`model`: '.*no_model' cannot be fine-tuned"),
        (
            ["--images", str(images), "--resume_from_checkpoint", "nowhere"],
            "^`resume_from_checkpoint`: 'nowhere' is no checkpoint",
        ),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["--model", str(tmp_path / "no_model"), *arguments])


def test_a_bad_image_ends_it_with_its_name(released, images, tmp_path):
    (images / "3.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="^`images`: '.*3.png' cannot be read as an image: its format is not known"):
        _finetune(released, images, tmp_path, "vae")


def test_a_bad_image_of_another_process_ends_this_one_too(images, monkeypatch):
    pipeline = tiny_pipeline(latent_prefix=False)
    files = [file for file, _ in find_images(images, "text")]
    state = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(finetune, "PartialState", lambda: state)
    monkeypatch.setattr(finetune, "gather_object", lambda own: [*own, (1, "`images`: '1.png' is broken")])
    with pytest.raises(ValueError, match="^`images`: '1.png' is broken$"):
        encode(files, pipeline.processor, pipeline.vae, disable_tqdm=True)


@pytest.mark.parametrize("how", ["keyboard", "SIGTERM"])
def test_an_interruption_says_in_a_sentence_how_to_go_on(how, released, images, tmp_path, monkeypatch, capfd):
    saving = ("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "3", "--enable_jit_checkpoint", "true")
    step = RosettaTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 1:
            if how == "keyboard":
                raise KeyboardInterrupt
            self._stop.jit_manager.is_checkpoint_requested = True
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(RosettaTrainer, "training_step", interrupted)
        _finetune(released, images, tmp_path, "vae", *saving)
    last = "checkpoint-1" if how == "keyboard" else "checkpoint-2"
    assert f"The same command goes on from {tmp_path / 'out' / last}." in capfd.readouterr().err
    assert exit.value.code == (130 if how == "keyboard" else 143)
    assert not (tmp_path / "out" / "model").exists()
    assert (_finetune(released, images, tmp_path, "vae", *saving) / "model").is_dir()
    with pytest.raises(SystemExit, match="`max_steps` must be at least 3"):
        _finetune(released, images, tmp_path, "vae", *saving, "--max_steps", "2")
