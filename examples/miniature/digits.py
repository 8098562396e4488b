"""Scikit-learn's 1,797 scanned digits as images, split once and for all into 1,500 to train on and 297 to test on."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits as load_scans


IMAGE_SIZE = 16
NUM_TRAIN = 1500
MAX_INK = 16


@dataclass(frozen=True)
class Digits:
    """
    Args:
        scans (`np.ndarray` of shape `(N, 8, 8)`): ink of each pixel, 0 to 16.
        labels (`np.ndarray` of shape `(N,)`): the digit that was written, 0 to 9.
        images (`list[Image.Image]`): the same scans as RGB images of 16 x 16 pixels, white on black.
    """

    scans: np.ndarray
    labels: np.ndarray
    images: list[Image.Image]

    def pixels(self) -> torch.Tensor:
        """(N, 3, 16, 16) in [-1, 1]."""
        return images_to_pixels(self.images)


def load_digits() -> tuple[Digits, Digits]:
    """The train and the held-out digits."""
    data = load_scans()
    order = np.random.default_rng(0).permutation(len(data.images))
    train, held_out = (
        Digits(data.images[part], data.target[part], [scan_to_image(scan) for scan in data.images[part]])
        for part in (order[:NUM_TRAIN], order[NUM_TRAIN:])
    )
    return train, held_out


def scan_to_image(scan: np.ndarray) -> Image.Image:
    """A scan (8, 8) as an image of 16 x 16 pixels."""
    image = Image.fromarray((scan * (255 / MAX_INK)).round().astype(np.uint8))
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")


def image_to_scan(image: Image.Image) -> np.ndarray:
    """Back from an image of any size to ink (8, 8)."""
    small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) * (MAX_INK / 255)


def images_to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """RGB images of one size to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def pixels_to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1], or a little beyond, to RGB images."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).numpy()]
