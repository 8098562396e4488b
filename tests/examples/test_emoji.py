"""The miniature of emoji, on a stand-in of its packages: what is held out, said and judged, and a whole arm."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3ForCausalLM

from examples import make_emoji_data
from examples.emoji import package, parts
from examples.emoji.classifier import EmojiClassifier, ground_colours
from examples.emoji.conversations import (
    KIND,
    PRESENT,
    WHAT,
    all_phrases,
    drawing,
    drawing_prompts,
    question_and_answer,
)
from examples.emoji.drawings import save_drawings
from examples.emoji.pictures import COLOURS, IMAGE_SIZE, load_pictures
from examples.forgetting_study.arms import read_arms
from examples.forgetting_study.miniatures import Miniature
from examples.forgetting_study.run import run_arm
from examples.forgetting_study.starts import Starts
from examples.forgetting_study.study import ARMS
from examples.miniature.language_model import dense_config, pack_text
from examples.miniature.tokenizer import train_tokenizer
from examples.miniature.vae import train_vae
from examples.miniature.vision import image_processor, train_vision_tower
from modeling_rosetta import RosettaProcessor, encode_images
from tests.examples.emoji_packages import EMOJI, write_packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    write_packages(folder)
    pinned = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in package.SHA256}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "SHA256", pinned)
        yield folder


@pytest.fixture(scope="module")
def pictures(packages):
    return load_pictures(packages)


@pytest.fixture(scope="module")
def judge(pictures):
    return EmojiClassifier(pictures[0], num_steps=50)


@pytest.fixture(scope="module")
def emoji_parts(pictures, judge, english):
    """All parts, of which only the judge knows something."""
    train, held_out = pictures
    tokenizer = train_tokenizer([*english.train[:200], *all_phrases(train.emoji)])
    vae = train_vae(train.pixels(), num_steps=1, **parts.VAE_SIZES)
    torch.manual_seed(0)
    return parts.EmojiParts(
        english=english,
        train_rows=pack_text(tokenizer, english.train[:200]),
        held_out_rows=pack_text(tokenizer, english.held_out[:20]),
        latents=encode_images(vae, train.pixels()),
        processor=RosettaProcessor(image_processor(IMAGE_SIZE), tokenizer, base_size=IMAGE_SIZE, latent_patch_size=8),
        dense=Qwen3ForCausalLM(dense_config(tokenizer)),
        vision_tower=train_vision_tower(train.images, torch.from_numpy(train.labels), 64, num_steps=1),
        vae=vae,
        train=train,
        held_out=held_out,
        classifier=judge,
    )


def test_the_packages_are_read(packages):
    emoji = package.load_emoji(packages)
    assert [one.name for one in emoji] == list(EMOJI)[:-1]  # in the order of the index; of the kinds that are taken
    assert [one.kind for one in emoji] == ["hand"] * 2 + ["mammal"] * 2 + ["reptile"] * 2 + ["fruit"] * 2
    assert emoji[0].keywords == ("stop", "high five")
    assert list(emoji[0].drawings) == [None, *package.TONES.values()] and list(emoji[2].drawings) == [None]
    assert {tone: drawing.getpixel((32, 32))[0] for tone, drawing in emoji[0].drawings.items()} == {
        tone: 250 - 20 * number for number, tone in enumerate([None, *package.TONES.values()])
    }


def test_packages_are_fetched_once_and_must_be_those_that_were_pinned(tmp_path, monkeypatch):
    fetched = []

    def npm(command, **kwargs):
        fetched.append(command[2])
        write_packages(tmp_path)

    monkeypatch.setattr(package.subprocess, "run", npm)
    monkeypatch.setattr(package, "SHA256", dict.fromkeys(package.SHA256, 64 * "0"))
    for _ in range(2):
        with pytest.raises(ValueError, match="The sha256 of .*emoji-datasource-twitter-16.0.0.tgz must be "):
            package.load_emoji(tmp_path)
    assert fetched == ["emoji-datasource-twitter@16.0.0"]
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="needs `npm`"):
        package.load_emoji(tmp_path / "none")


def test_what_is_held_out_is_known_in_parts(pictures):
    train, held_out = (
        {(picture.emoji, picture.tone, picture.colour) for picture in side.pictures} for side in pictures
    )
    assert not train & held_out and len(train | held_out) == (8 + 2 * 5) * len(COLOURS)
    for element in range(3):  # emoji, tones, colours
        assert {one[element] for one in held_out} <= {one[element] for one in train}
    assert Counter(emoji for emoji, tone, _ in held_out if tone is None) == dict.fromkeys(range(8), 1)
    assert {tone for _, tone, _ in held_out} >= {"light"} and (0, "light") not in {one[:2] for one in train}


def test_a_picture_is_its_emoji_on_its_colour(pictures):
    for picture in pictures[0].pictures:
        assert picture.image.size == (32, 32)
        assert picture.image.getpixel((0, 0)) == list(COLOURS.values())[picture.colour]
        if picture.tone is None:
            assert picture.image.getpixel((16, 16)) == EMOJI[pictures[0].emoji[picture.emoji].name][2]
    train = pictures[0]
    assert np.array_equal(ground_colours(train.images), [picture.colour for picture in train.pictures])


def test_prompts_name_what_is_to_be_seen(pictures):
    train = pictures[0]
    toned = next(picture for picture in train.pictures if picture.tone == "medium dark")
    colour = list(COLOURS)[toned.colour]
    assert drawing_prompts(train.emoji[0], toned)[0] == f"raised hand with medium dark skin on {colour}"
    said = [drawing(torch.zeros(1), train.emoji[0], toned, random.Random(i))[0]["content"] for i in range(400)]
    assert all("raised hand with medium dark skin" in text and text.endswith(f"on {colour}") for text in said)
    with_keyword = [text for text in said if ", stop, " in text or ", high five, " in text]
    assert len(with_keyword) == pytest.approx(100, abs=30)


def test_questions_of_what_is_there_are_balanced(pictures):
    train = pictures[0]
    apple = next(picture for picture in train.pictures if train.emoji[picture.emoji].name == "red apple")
    choose = random.Random(0)
    assert question_and_answer(train.emoji, apple, WHAT, choose) == (WHAT, "red apple")
    assert question_and_answer(train.emoji, apple, KIND, choose) == (KIND, "fruit")
    asked = Counter(question_and_answer(train.emoji, apple, PRESENT, choose) for _ in range(2000))
    assert asked.pop(("Is there any red apple?", "yes")) == pytest.approx(1000, abs=80)
    assert {answer for _, answer in asked} == {"no"} and len(asked) == 7
    # the other fruit: all of the same kind, and a seventh of any
    assert asked["Is there any grapes?", "no"] == pytest.approx(571, abs=80)


def test_the_judge_recognises_combinations_it_has_not_seen(pictures, judge):
    held_out = pictures[1]
    assert judge.accuracy(held_out.images, held_out.labels) > 0.9
    assert judge.accuracy([image.resize((64, 64)) for image in held_out.images], held_out.labels) > 0.9
    assert judge.accuracy(held_out.images, (held_out.labels + 1) % 8) < 0.1


def test_skills(emoji_parts, monkeypatch):
    probes = emoji_parts.probes
    assert [picture.emoji for picture in probes.pictures] == list(range(8))

    def told(model, processor, images, questions):
        return [" red apple" if text == WHAT else "fruit" if text == KIND else "no" for text in questions]

    monkeypatch.setattr(parts, "answers", told)
    drawn = (0, 1, 3, 2, 4, 5, 6, 7)
    monkeypatch.setattr(parts, "draw", lambda pipeline, prompts, seed: [probes.images[i] for i in drawn])
    skills = emoji_parts.skills(type("Pipeline", (), {"transformer": None}))
    choose = random.Random(0)
    no = sum(question_and_answer(probes.emoji, one, PRESENT, choose)[1] == "no" for one in probes.pictures) / 8
    assert skills["names"] == 1 / 8 and skills["kinds"] == 2 / 8 and skills["yes or no"] == no
    assert skills["questions"] == pytest.approx((3 / 8 + no) / 3)
    assert skills["drawings"] == 6 / 8 and skills["drawn kinds"] == 1 and skills["drawn colours"] == 6 / 8


def test_all_emoji_are_trained_on_alike(emoji_parts):
    tasks = emoji_parts.tasks()
    painted = Counter()
    for i in range(600):
        sample = tasks["T2I"](random.Random(i))
        painted[emoji_parts.processor.tokenizer.decode(sample["input_ids"]).count("raised hand")] += 1
    assert painted[1] == pytest.approx(68, abs=25)  # an eighth, less the prompts that are left out
    seen = tasks["MMU"](random.Random(0))
    assert (seen["labels"] != -100).sum() > 0 and seen["pixel_values"].shape[0] == 16
    assert len(emoji_parts.held_out_drawings()) == 8


def test_an_arm_of_emoji(emoji_parts, tmp_path):
    arm = next(arm for arm in read_arms(ARMS) if arm.id == "EWC, rosetta, none, rate 0.001, strength 10")
    miniature = Miniature(lambda seed: emoji_parts, dict.fromkeys(("LM", "projectors", "MMU", "T2I"), 2), tmp_path)
    result = run_arm(arm, 0, Starts(tmp_path, miniature, scale=0.01), tmp_path / "model")
    for figures in (result["before"], result["after"]):
        assert {"text loss", "flow loss", "questions", "names", "kinds", "yes or no", "drawings"} <= figures.keys()
    assert result["before"]["flow loss"] != result["after"]["flow loss"]
    assert result["before"]["text loss"] != result["after"]["text loss"]
    save_drawings(tmp_path / "model", emoji_parts.probes, tmp_path / "drawings.png")
    assert Image.open(tmp_path / "drawings.png").height > 100


def test_what_the_recipes_start_from(emoji_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(make_emoji_data, "make_parts", lambda seed, packages: emoji_parts)
    make_emoji_data.main(["--output_dir", str(tmp_path)])
    assert "CC BY 4.0" in (tmp_path / "NOTICE.txt").read_text()
    for folder, pictures in ((tmp_path, emoji_parts.train), (tmp_path / "held_out", emoji_parts.probes)):
        drawings = Dataset.from_parquet(str(folder / "drawings.parquet"), cache_dir=str(tmp_path / "cache"))
        questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
        assert len(drawings) == len(questions) == len(pictures.pictures)
        for picture, drawn, asked in zip(pictures.pictures, drawings, questions, strict=True):
            name = pictures.emoji[picture.emoji].name
            assert name in drawn["caption"] and np.array_equal(drawn["image"], picture.image)
            said, answer = (turn["value"] for turn in asked["conversations"])
            assert {"What is it?": answer == name, f"Is there any {name}?": answer == "yes"}.get(said[8:], True)
            assert np.array_equal(Image.open(folder / "images" / asked["image"]), picture.image)
    assert AutoTokenizer.from_pretrained(tmp_path / "dense").vocab_size > 0
    assert AutoImageProcessor.from_pretrained(tmp_path / "vision_tower").patch_size == 8
