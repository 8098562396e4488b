"""What is said about emoji: prompts to draw them, questions of what they are and whether they are there."""

import random

import torch

from examples.miniature.conversations import question_only

from .package import Emoji
from .pictures import COLOURS, Picture


PROMPTS = ("{thing} on {colour}", "draw {thing} on {colour}", "a picture of {thing}, on {colour}")
WITH_KEYWORD = "{thing}, {keyword}, on {colour}"
WHAT, KIND, PRESENT = "What is it?", "What kind of thing is it?", "Is there any {name}?"


def drawing_prompts(emoji: Emoji, picture: Picture) -> list[str]:
    """All prompts for a picture that name nothing but what is on it."""
    tone = "" if picture.tone is None else f" with {picture.tone} skin"
    return [prompt.format(thing=emoji.name + tone, colour=list(COLOURS)[picture.colour]) for prompt in PROMPTS]


def caption(emoji: Emoji, picture: Picture, choose: random.Random) -> str:
    """One of a picture's prompts; every fourth time one that names a keyword too."""
    prompts = drawing_prompts(emoji, picture)
    prompt = choose.choice(prompts)
    if emoji.keywords and choose.random() < 0.25:
        thing, colour = prompts[0].rsplit(" on ", 1)
        prompt = WITH_KEYWORD.format(thing=thing, keyword=choose.choice(emoji.keywords), colour=colour)
    return prompt


def drawing(latents: torch.Tensor, emoji: Emoji, picture: Picture, choose: random.Random) -> list[dict]:
    """A conversation in which the picture, given as latents (C, h, w), is drawn."""
    return [
        {"role": "user", "content": caption(emoji, picture, choose)},
        {"role": "assistant", "content": [{"type": "latents", "latents": latents}]},
    ]


def question_and_answer(emoji: list[Emoji], picture: Picture, kind: str, choose: random.Random) -> tuple[str, str]:
    """
    A question about a picture, and the answer.

    Args:
        emoji (`list[Emoji]`): all.
        kind (`str`): `WHAT`, `KIND`, or `PRESENT`. Half of these are about what is there, a quarter about any other
            emoji, a quarter about another of its kind (POPE's random and adversarial negatives, arXiv 2305.10355).
    """
    shown = emoji[picture.emoji]
    if kind == WHAT:
        return WHAT, shown.name
    if kind == KIND:
        return KIND, shown.kind
    if choose.random() < 0.5:
        return PRESENT.format(name=shown.name), "yes"
    alike = choose.random() < 0.5
    others = [one for one in emoji if one is not shown and (not alike or one.kind == shown.kind)]
    return PRESENT.format(name=choose.choice(others).name), "no"


def question(emoji: list[Emoji], picture: Picture, choose: random.Random) -> list[dict]:
    """A conversation in which a question of any kind is answered."""
    text, answer = question_and_answer(emoji, picture, choose.choice((WHAT, KIND, PRESENT)), choose)
    return [*question_only(picture.image, text), {"role": "assistant", "content": answer}]


def all_phrases(emoji: list[Emoji]) -> list[str]:
    """What a tokenizer should know of what is said, often enough to weigh beside English."""
    phrases = ["user\n", "assistant\n", WHAT, KIND, "yes", "no", *PROMPTS, *COLOURS] * 30
    for one in emoji:
        phrases += [one.name, f"{one.name} on", f"any {one.name}?", one.kind] * 20 + list(one.keywords)
    return phrases


def sentences(emoji: list[Emoji]) -> list[str]:
    """A text a language model can learn the names from: each with its kind and keywords."""
    text = []
    for one in emoji:
        text.append(f"The {one.name} is a kind of {one.kind}.")
        text += [f"Of the {one.name} one says: {word}." for word in one.keywords]
    return text
