"""What a digit can be turned into, and what is said in order: edits, a word with a drawing, and what was drawn."""

import random

import numpy as np
import torch
from PIL import Image, ImageFilter

from .conversations import DIGIT_WORDS
from .digits import Digits


BOLD, TURNED, NEXT = "Make it bold.", "Turn it over.", "Draw the digit after this one."
TELL = "Write the digit {digit} as a word, then draw it."
ANY, ASK = "Draw any digit.", "What did you draw?"
EXACT = {
    BOLD: lambda image: image.filter(ImageFilter.MaxFilter(3)),
    TURNED: lambda image: image.transpose(Image.Transpose.ROTATE_180),
}


def edit_prompt(image: Image.Image, latents: torch.Tensor | None, text: str) -> list[dict]:
    """A conversation that waits for its drawing."""
    shown = {"type": "image", "image": image, **({} if latents is None else {"latents": latents})}
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def tell_prompt(label: int) -> list[dict]:
    return [{"role": "user", "content": TELL.format(digit=label)}]


class Lessons:
    """
    Training samples in order.

    Args:
        processor (`RosettaProcessor`): whose layout is in order.
        digits (`Digits`): to train on.
        encode: images to their latents `(N, C, h, w)`.
        dropout (`float`): shares of edits without their prompt, without their image, and without both.
    """

    def __init__(self, processor, digits: Digits, encode, dropout: float = 0.05):
        self.processor, self.digits, self.dropout = processor, digits, dropout
        self.latents = encode(digits.images)
        self.edited = {text: encode([edit(image) for image in digits.images]) for text, edit in EXACT.items()}
        self.of_label = [np.flatnonzero(digits.labels == label) for label in range(10)]

    def edit(self, choose: random.Random) -> dict:
        i = choose.randrange(len(self.digits.images))
        text = choose.choice([*EXACT, NEXT])
        if text == NEXT:
            target = self.latents[choose.choice(self.of_label[(self.digits.labels[i] + 1) % 10])]
        else:
            target = self.edited[text][i]
        prompt = edit_prompt(self.digits.images[i], self.latents[i], text)
        sample = self.processor.training_sample([*prompt, _drawn([], target)])
        number = choose.random()
        if self.dropout <= number < 3 * self.dropout:
            sample = self.processor.drop_images(sample)
        if number < 2 * self.dropout:
            sample = self.processor.drop_prompt(sample)
        return sample

    def tell(self, choose: random.Random) -> dict:
        i = choose.randrange(len(self.digits.images))
        label = self.digits.labels[i]
        word = {"type": "text", "text": DIGIT_WORDS[label]}
        return self.processor.training_sample([*tell_prompt(label), _drawn([word], self.latents[i])])

    def ask(self, choose: random.Random) -> dict:
        i = choose.randrange(len(self.digits.images))
        return self.processor.training_sample(
            [
                {"role": "user", "content": ANY},
                _drawn([], self.latents[i]),
                {"role": "user", "content": ASK},
                {"role": "assistant", "content": DIGIT_WORDS[self.digits.labels[i]]},
            ]
        )


def _drawn(before: list[dict], latents: torch.Tensor) -> dict:
    return {"role": "assistant", "content": [*before, {"type": "latents", "latents": latents}]}


def edited_right(drawn: list[Image.Image], originals: list[Image.Image], text: str) -> float:
    """Share of N drawings that are nearer to the exact edit of their original than to that of any other, and than to
    any original."""
    pixels = _pixels(drawn)
    candidates = np.concatenate([_pixels([EXACT[text](image) for image in originals]), _pixels(originals)])
    distances = ((pixels[:, None] - candidates[None]) ** 2).mean(-1)
    return float((distances.argmin(1) == np.arange(len(drawn))).mean())


def _pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("L"), dtype=np.float64).ravel() for image in images])


__all__ = ["ANY", "ASK", "EXACT", "NEXT", "Lessons", "edit_prompt", "edited_right", "tell_prompt"]
