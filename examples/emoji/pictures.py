"""Emoji on coloured grounds, with combinations that are held out: each part of them is trained on, never together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples.miniature.digits import images_to_pixels

from .package import TONES, Emoji, load_emoji


IMAGE_SIZE = 32
EMOJI_SIZE = 28
COLOURS = {
    "white": (255, 255, 255),
    "red": (230, 110, 110),
    "yellow": (245, 225, 120),
    "green": (140, 205, 130),
    "blue": (120, 165, 235),
    "grey": (120, 120, 120),
}
PACKAGES = Path("outputs/emoji")


@dataclass(frozen=True)
class Picture:
    """`emoji` and `colour` are numbers, in the list of emoji and in `COLOURS`; `tone` is a word or `None`."""

    emoji: int
    tone: str | None
    colour: int
    image: Image.Image


@dataclass(frozen=True)
class Pictures:
    emoji: list[Emoji]
    pictures: list[Picture]

    @property
    def images(self) -> list[Image.Image]:
        return [picture.image for picture in self.pictures]

    @property
    def labels(self) -> np.ndarray:
        """(N,)"""
        return np.array([picture.emoji for picture in self.pictures])

    def pixels(self) -> torch.Tensor:
        """(N, 3, 32, 32) in [-1, 1]."""
        return images_to_pixels(self.images)


def load_pictures(folder: Path = PACKAGES) -> tuple[Pictures, Pictures]:
    """The pictures to train on, and those held out: of each emoji's drawing on one colour, and in one tone of skin."""
    emoji = load_emoji(folder)
    sides: tuple[list[Picture], list[Picture]] = ([], [])
    for number, one in enumerate(emoji):
        for tone, drawing in one.drawings.items():
            for colour, rgb in enumerate(COLOURS.values()):
                sides[is_held_out(number, tone, colour)].append(Picture(number, tone, colour, on_ground(drawing, rgb)))
    return Pictures(emoji, sides[0]), Pictures(emoji, sides[1])


def is_held_out(emoji: int, tone: str | None, colour: int) -> bool:
    """Turns with the emoji, so that of each colour and tone as much is held out."""
    step = 0 if tone is None else 1 + list(TONES.values()).index(tone)
    return colour == (emoji + step) % len(COLOURS) or step == 1 + emoji % len(TONES)


def on_ground(drawing: Image.Image, rgb: tuple[int, int, int]) -> Image.Image:
    """An RGBA drawing of any size in the middle of a ground: RGB, 32 x 32 pixels."""
    ground = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), rgb)
    small = drawing.resize((EMOJI_SIZE, EMOJI_SIZE), Image.Resampling.BOX)
    ground.paste(small, ((IMAGE_SIZE - EMOJI_SIZE) // 2,) * 2, small)
    return ground
