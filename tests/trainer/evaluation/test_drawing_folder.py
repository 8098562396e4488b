"""Prompts of a file become a folder of images: the same whatever kills, ranks and batches there were."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from examples.generate_images import main
from modeling_rosetta.composition_rosetta import unmount
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline
from trainer.evaluation.drawing import Drawings, draw_prompts, read_prompts


SETTINGS = {"num_inference_steps": 2}
PROMPTS = [{"prompt": prompt} for prompt in ("stone", "hello stone", "red", "red stone", "hello")]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def drawn(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return draw_prompts(pipe, PROMPTS, folder, "tiny", batch_size=2, seed=7, settings=SETTINGS)


def bytes_of(drawings):
    return [file.read_bytes() for file in drawings.files]


def test_each_image_is_what_the_pipeline_draws_from_its_seed(pipe, drawn):
    assert [record["seed"] for record in drawn.records] == [7, 8, 9, 10, 11]
    assert drawn.prompts == [prompt["prompt"] for prompt in PROMPTS]
    for record, file in [*zip(drawn.records, drawn.files, strict=True)][3:]:
        alone = pipe(record["prompt"], latents=noise(seed=record["seed"]), **SETTINGS).images[0]
        drawing = pipe(record["prompt"], generator=torch.Generator().manual_seed(record["seed"]), **SETTINGS).images[0]
        there = np.asarray(Image.open(file), dtype=int)
        assert np.abs(there - np.asarray(drawing, dtype=int)).max() <= 1  # bytes, of sums over another batch
        assert alone.tobytes() == drawing.tobytes()
    assert len({*bytes_of(drawn)}) == 5


def test_ranks_draw_the_same(pipe, drawn, tmp_path, monkeypatch):
    num_ranks, counts = 3, []
    for rank in reversed(range(num_ranks)):
        monkeypatch.setattr("trainer.evaluation.drawing.draw.rank_and_size", lambda rank=rank: (rank, num_ranks))
        shared = draw_prompts(pipe, PROMPTS, tmp_path, "tiny", batch_size=2, seed=7, settings=SETTINGS)
        counts.append(len(shared.files) - len(shared.missing()))
    assert bytes_of(shared) == bytes_of(drawn) and len({*counts}) == num_ranks


def test_killed_between_two_images_of_a_batch_it_goes_on_to_the_same(pipe, drawn, tmp_path, monkeypatch):
    from trainer.evaluation.drawing import draw

    whole, saved = draw.save_image, []

    def until_killed(image, file):
        if len(saved) == 3:
            file.with_name(f".{file.name}.saving").write_bytes(b"half")
            raise KeyboardInterrupt
        saved.append(file)
        whole(image, file)

    monkeypatch.setattr(draw, "save_image", until_killed)
    with pytest.raises(KeyboardInterrupt):
        draw_prompts(pipe, PROMPTS, tmp_path, "tiny", batch_size=2, seed=7, settings=SETTINGS)
    with pytest.raises(ValueError, match="2 of 5 drawings are missing .* the first is 00003_0.png"):
        Drawings.read(tmp_path)
    monkeypatch.setattr(draw, "save_image", whole)
    times = [file.stat().st_mtime_ns for file in saved]
    resumed = draw_prompts(pipe, PROMPTS, tmp_path, "tiny", batch_size=2, seed=7, settings=SETTINGS)
    assert bytes_of(resumed) == bytes_of(drawn) and [file.stat().st_mtime_ns for file in saved] == times
    assert Drawings.read(tmp_path).manifest == drawn.manifest


def test_the_batch_size_changes_bytes_by_rounding_only(pipe, drawn, tmp_path):
    other = draw_prompts(pipe, PROMPTS, tmp_path, "tiny", batch_size=5, seed=7, settings=SETTINGS)
    for file, same in zip(other.files, drawn.files, strict=True):
        there, here = (np.asarray(Image.open(each), dtype=int) for each in (file, same))
        assert np.abs(there - here).max() <= 1


def test_several_images_of_a_prompt_and_seeds_of_its_own(pipe, tmp_path):
    prompts = [{"prompt": "stone", "seed": 40, "questions": "a stone?"}, {"prompt": "red"}]
    drawings = draw_prompts(pipe, prompts, tmp_path, "tiny", num_images_per_prompt=2, settings=SETTINGS)
    assert [(r["file"], r["seed"]) for r in drawings.records] == [
        ("00000_0.png", 40),
        ("00000_1.png", 41),
        ("00001_0.png", 2),
        ("00001_1.png", 3),
    ]
    assert drawings.records[1]["questions"] == "a stone?"


def test_a_folder_of_other_drawings_is_left_alone(pipe, drawn, tmp_path):
    def again(folder=drawn.folder, pipe=pipe, prompts=PROMPTS, settings=SETTINGS, seed=7):
        return draw_prompts(pipe, prompts, folder, "tiny", batch_size=2, seed=seed, settings=settings)

    again()
    with pytest.raises(ValueError, match="other settings .num_inference_steps was 2 and is 3"):
        again(settings={"num_inference_steps": 3})
    with pytest.raises(ValueError, match="other prompts .seed was 7 and is 8"):
        again(seed=8)
    with pytest.raises(ValueError, match="other prompts .there were 5 and are 4"):
        again(prompts=PROMPTS[:4])
    with pytest.raises(ValueError, match="other weights"):
        again(pipe=tiny_pipeline("moe"))
    Image.new("RGB", (4, 4)).save(tmp_path / "00001_0.png")
    with pytest.raises(ValueError, match="has no manifest.json, yet a 00001_0.png"):
        again(folder=tmp_path)


def test_bad_settings_leave_nothing_behind(pipe, tmp_path):
    with pytest.raises(ValueError, match="`height` of an image to draw must be a positive"):
        draw_prompts(pipe, PROMPTS, tmp_path / "new", "tiny", settings={"height": 50})
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got 0"):
        draw_prompts(pipe, PROMPTS, tmp_path / "new", "tiny", batch_size=0)
    with pytest.raises(ValueError, match="`noise_device` must be 'cpu' or the model's, 'cpu', got 'cuda'"):
        draw_prompts(pipe, PROMPTS, tmp_path / "new", "tiny", noise_device="cuda")
    assert not (tmp_path / "new").exists()


def test_a_model_that_cannot_draw(tmp_path):
    pipe = tiny_pipeline()
    pipe.vae = None
    with pytest.raises(ValueError, match="The model does not draw: its repository has no vae."):
        draw_prompts(pipe, PROMPTS, tmp_path, "tiny")
    pipe = tiny_pipeline()
    unmount(pipe.transformer, "vae")
    with pytest.raises(
        ValueError, match="The model does not draw: none of its token types .'text', 'vit'. is made of"
    ):
        draw_prompts(pipe, PROMPTS, tmp_path, "tiny")


def test_a_broken_drawing_is_named(drawn, tmp_path):
    for file in drawn.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "00002_0.png").write_bytes((tmp_path / "00002_0.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="00002_0.png' cannot be read as an image"):
        Drawings.read(tmp_path)
    with pytest.raises(ValueError, match="manifest.json' cannot be read"):
        Drawings.read(tmp_path / "nowhere")


def test_files_of_prompts(tmp_path):
    def read(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_prompts(tmp_path / name)

    assert read("a.txt", "a red stone\n\n two \n") == [{"prompt": "a red stone"}, {"prompt": "two"}]
    coco = {"annotations": [{"id": 1, "image_id": 5, "caption": "A dog.", "seed": 12}]}
    assert read("coco.json", json.dumps(coco)) == [{"prompt": "A dog.", "id": 1, "image_id": 5, "seed": 12}]
    compbench = 'index,seed,prompt,questions\n3,3,"a red book, a blue mug",a red book?##a blue mug?\n'
    questions = {"index": "3", "questions": "a red book?##a blue mug?"}
    assert read("c.csv", compbench) == [{"prompt": "a red book, a blue mug", "seed": 3, **questions}]
    assert read("g.jsonl", '{"prompt": "x", "include": []}\n') == [{"prompt": "x", "include": []}]
    for name, text, message in (
        ("a.yaml", "x", "must be a file of the kind .txt, .jsonl, .json, .csv"),
        ("b.txt", "\n", "must hold a list of prompts that is not empty"),
        ("b.jsonl", '{"prompt": ""}', "record 0 of .*`prompt` must be a text, got ''"),
        ("c.jsonl", '{"text": "a"}', "has neither of the columns .* but .'text'."),
        ("d.jsonl", '{"prompt": "a", "seed": "x"}', "`seed` must be an integer, got 'x'"),
        ("e.json", '{"prompt": "a"}', "must hold a list of prompts"),
        ("f.json", "{", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, text)
    with pytest.raises(ValueError, match="nowhere.txt' cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


def test_the_command(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("stone\nred\n")
    command = [str(tmp_path / name) for name in ("model", "prompts.txt", "drawn")] + ["--num_inference_steps=2"]
    main(command)
    assert "2 images of 2 prompts are in" in capsys.readouterr().out
    drawings = Drawings.read(tmp_path / "drawn")
    assert drawings.prompts == ["stone", "red"] and drawings.manifest["settings"]["num_inference_steps"] == 2
    with pytest.raises(SystemExit):
        main([*command, "--seed=5"])
    assert "holds drawings with other prompts (seed was 0 and is 5)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere"), *command[1:]])
    assert "nowhere' cannot be loaded: " in capsys.readouterr().err
