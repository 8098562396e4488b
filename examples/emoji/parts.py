"""What the miniature of emoji is made of: as that of digits, with more words, larger pictures and other questions."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from examples.miniature.english import load_english
from examples.miniature.evaluation import answers, draw
from examples.miniature.language_model import pack_text, train_language_model
from examples.miniature.parts import PROMPT_DROPOUT, CommonParts, reading
from examples.miniature.tokenizer import train_tokenizer
from examples.miniature.vae import train_vae
from examples.miniature.vision import image_processor, train_vision_tower
from modeling_rosetta import RosettaPipeline, RosettaProcessor, encode_images

from .classifier import EmojiClassifier, ground_colours
from .conversations import (
    KIND,
    PRESENT,
    WHAT,
    all_phrases,
    drawing,
    drawing_prompts,
    question,
    question_and_answer,
    sentences,
)
from .pictures import IMAGE_SIZE, PACKAGES, Pictures, load_pictures


VOCAB_SIZE = 2048
VISION_STEPS, VAE_STEPS = 600, 600
VAE_SIZES = {"channels": (16, 32, 32), "latent_channels": 4}


@dataclass
class EmojiParts(CommonParts):
    """
    Those of any miniature, with the pictures, split, and their judge. What is held out is asked for by `probes`, of
    each emoji in its own skin the one picture that is not trained on. `made` keeps training samples by the picture
    and what is said of it: to make one takes as long as to train on it.
    """

    train: Pictures
    held_out: Pictures
    classifier: EmojiClassifier
    probes: Pictures = field(init=False)
    made: dict[tuple[int, str], dict] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        pictures = {picture.emoji: picture for picture in self.held_out.pictures if picture.tone is None}
        self.probes = Pictures(self.held_out.emoji, list(pictures.values()))

    def tasks(self) -> dict[str, Callable[[random.Random], dict]]:
        """A function for each task, LM, MMU and T2I, that makes a sample of it. All emoji are as frequent."""
        pictures, emoji = self.train.pictures, self.train.emoji
        of_emoji: list[list[int]] = [[] for _ in emoji]
        for i, picture in enumerate(pictures):
            of_emoji[picture.emoji].append(i)

        def once(i: int, text: str, conversation: list[dict]) -> dict:
            if (i, text) not in self.made:
                self.made[i, text] = self.processor.training_sample(conversation)
            return self.made[i, text]

        def see(choose: random.Random) -> dict:
            i = choose.choice(choose.choice(of_emoji))
            conversation = question(emoji, pictures[i], choose)
            return once(i, conversation[0]["content"][1]["text"], conversation)

        def paint(choose: random.Random) -> dict:
            i = choose.choice(choose.choice(of_emoji))
            conversation = drawing(self.latents[i], emoji[pictures[i].emoji], pictures[i], choose)
            sample = once(i, conversation[0]["content"], conversation)
            return self.processor.drop_prompt(sample) if choose.random() < PROMPT_DROPOUT else sample

        return {"LM": reading(self.train_rows), "MMU": see, "T2I": paint}

    def held_out_drawings(self) -> list[dict]:
        """A training sample for each of `probes`, always the same."""
        latents, choose = encode_images(self.vae, self.probes.pixels()), random.Random(0)
        return [
            self.processor.training_sample(drawing(latent, self.probes.emoji[picture.emoji], picture, choose))
            for latent, picture in zip(latents, self.probes.pictures, strict=True)
        ]

    def skills(self, pipeline: RosettaPipeline) -> dict[str, float]:
        """
        Shares, over `probes`: of names, kinds, and yes or no answered right, and of all `questions`; of drawings
        recognised as the emoji of their prompt, as one of its kind, and on a ground of the prompt's colour.
        """
        figures = {
            name: self.question_accuracy(pipeline.transformer, kind)
            for name, kind in (("names", WHAT), ("kinds", KIND), ("yes or no", PRESENT))
        }
        images, emoji = draw(pipeline, self.probe_prompts(), seed=1), self.probes.emoji
        recognised = self.classifier.predict(images)
        kinds = [emoji[a].kind == emoji[b].kind for a, b in zip(recognised, self.probes.labels, strict=True)]
        colours = [picture.colour for picture in self.probes.pictures]
        return {
            "questions": sum(figures.values()) / len(figures),
            **figures,
            "drawings": float((recognised == self.probes.labels).mean()),
            "drawn kinds": sum(kinds) / len(kinds),
            "drawn colours": float((ground_colours(images) == colours).mean()),
        }

    def probe_prompts(self) -> list[str]:
        choose = random.Random(0)
        return [
            choose.choice(drawing_prompts(self.probes.emoji[picture.emoji], picture))
            for picture in self.probes.pictures
        ]

    def question_accuracy(self, model, kind: str) -> float:
        choose = random.Random(0)
        asked = [question_and_answer(self.probes.emoji, picture, kind, choose) for picture in self.probes.pictures]
        given = answers(model, self.processor, self.probes.images, [text for text, _ in asked])
        return sum(answer.strip() == right for answer, (_, right) in zip(given, asked, strict=True)) / len(asked)


def make_parts(seed: int, folder: Path = PACKAGES) -> EmojiParts:
    """Makes them all, in a few minutes; the packages with the pictures are in `folder`, or fetched to it."""
    english = load_english()
    train, held_out = load_pictures(folder)
    tokenizer = train_tokenizer([*english.train, *all_phrases(train.emoji)], VOCAB_SIZE)
    train_rows, held_out_rows = (pack_text(tokenizer, text) for text in (english.train, english.held_out))
    print(f"{len(train.pictures)} pictures of {len(train.emoji)} emoji; {len(held_out.pictures)} held out")
    names = pack_text(tokenizer, 3 * sentences(train.emoji))
    dense = train_language_model(tokenizer, torch.cat([train_rows, names]), seed)
    labels = torch.from_numpy(train.labels)
    vision_tower = train_vision_tower(train.images, labels, dense.config.hidden_size, seed, VISION_STEPS)
    vae = train_vae(train.pixels(), seed, VAE_STEPS, **VAE_SIZES)
    return EmojiParts(
        english=english,
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        latents=encode_images(vae, train.pixels()),
        processor=RosettaProcessor(image_processor(IMAGE_SIZE), tokenizer, base_size=IMAGE_SIZE, latent_patch_size=8),
        dense=dense,
        vision_tower=vision_tower,
        vae=vae,
        train=train,
        held_out=held_out,
        classifier=EmojiClassifier(train, seed),
    )
