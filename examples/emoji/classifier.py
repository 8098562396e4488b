"""The judge of what is drawn: a classifier that shares nothing with the models it judges but the train split."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from examples.miniature.digits import images_to_pixels
from examples.miniature.progress import Progress

from .pictures import COLOURS, IMAGE_SIZE, Pictures


NUM_STEPS = 1200
BATCH_SIZE = 64
LEARNING_RATE = 4e-3


class EmojiClassifier:
    """A small convolutional network, trained on pictures that are moved, blurred, noisy and off in colour."""

    def __init__(self, train: Pictures, seed: int = 0, num_steps: int = NUM_STEPS):
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            *_block(3, 24), nn.MaxPool2d(2), *_block(24, 48), nn.MaxPool2d(2), *_block(48, 96), nn.MaxPool2d(2)
        )
        self.net.extend([nn.Flatten(), nn.Linear(96 * 16, len(train.emoji))])
        pixels, labels = train.pixels(), torch.from_numpy(train.labels)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
        progress = Progress("judge", num_steps)
        for step in range(1, num_steps + 1):
            batch = torch.randint(len(pixels), (BATCH_SIZE,))
            loss = F.cross_entropy(self.net(augmented(pixels[batch])), labels[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            progress.show(step, {"loss": loss.item()})
        self.net.eval().requires_grad_(False)

    def predict(self, images: list[Image.Image]) -> np.ndarray:
        """The number of the emoji on each of N images of any size: (N,)."""
        pixels = images_to_pixels([image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)) for image in images])
        return self.net(pixels).argmax(1).numpy()

    def accuracy(self, images: list[Image.Image], labels: np.ndarray) -> float:
        """Share of the images recognised as the emoji they should show."""
        return float((self.predict(images) == labels).mean())


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W), each moved by up to two pixels; half of all batches blurred; noise and other colours."""
    size = pixels.shape[-1]
    padded = F.pad(pixels, (2,) * 4, mode="replicate")
    moves = torch.randint(5, (len(pixels), 2)).tolist()
    moved = torch.stack([one[:, y : y + size, x : x + size] for one, (y, x) in zip(padded, moves, strict=True)])
    if torch.rand(()) < 0.5:
        moved = F.avg_pool2d(F.pad(moved, (1,) * 4, mode="replicate"), 3, stride=1)
    off = 0.15 * torch.randn(len(pixels), 3, 1, 1)
    return moved + off + 0.25 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(moved)


def ground_colours(images: list[Image.Image]) -> np.ndarray:
    """The number of the colour that the outermost pixels of each of N images are nearest to in the mean: (N,)."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float64) for image in images])
    edges = [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]
    means = np.concatenate(edges, axis=1).mean(1)
    return ((means[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(-1).argmin(1)


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
