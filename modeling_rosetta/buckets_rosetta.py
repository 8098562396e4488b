"""Resolution buckets: the sizes that images are drawn at, and the one that an image belongs to."""

import numpy as np


NUM_RATIOS = 33


def training_buckets(base_size: int, step: int) -> list[tuple[int, int]]:
    """
    Sizes that training images are resized to. From the square of `base_size`, one side grows to twice the base while
    the other shrinks to half of it, both by `step` (33 buckets for 256 and 16).

    Args:
        base_size (`int`): side of the square bucket in pixels.
        step (`int`): pixels; a divisor of `base_size`.

    Returns:
        `list[tuple[int, int]]`: (height, width) in pixels, by ascending height / width.

    Raises:
        ValueError: if `step` does not divide `base_size`.
    """
    _check_sizes(base_size, step)
    shortest = max(base_size // 2 // step, 1) * step
    tall = [
        (min(base_size + grown, 2 * base_size), max(base_size - grown, shortest))
        for grown in range(step, base_size + step, step)
    ]
    wide = [(width, height) for height, width in reversed(tall)]
    return [*wide, (base_size, base_size), *tall]


def inference_buckets(base_size: int, step: int) -> list[tuple[int, int]]:
    """
    Sizes that the ratio tokens `<｜img_ratio_i｜>` stand for: points at equal distances along the curve of constant
    area, height x width = base_size^2, between the ratios 1:4 and 4:1, rounded down to multiples of `step`. Small
    bases have equal entries.

    Args and errors as in [`training_buckets`]; entry `i` belongs to ratio token `i`.
    """
    _check_sizes(base_size, step)
    # height = base_size * e^u and width = base_size * e^-u run along the curve at a speed of sqrt(2 cosh 2u).
    u = np.linspace(-np.log(2), np.log(2), 20001)
    speed = np.sqrt(np.cosh(2 * u))
    distance = np.concatenate([[0], np.cumsum(speed[1:] + speed[:-1])])
    u = np.interp(np.linspace(0, distance[-1], NUM_RATIOS), distance, u)
    # The ends and the middle are whole sizes: rounding errors must not take them a step down.
    heights, widths = (
        np.maximum(np.floor(base_size * np.exp(side) / step + 1e-6), 1).astype(int) * step for side in (u, -u)
    )
    return list(zip(heights.tolist(), widths.tolist(), strict=True))


def nearest_bucket(height: int, width: int, buckets: list[tuple[int, int]]) -> int:
    """Index of the bucket whose height / width is nearest, the first one of equals."""
    ratios = np.array([bucket_height / bucket_width for bucket_height, bucket_width in buckets])
    return int(np.abs(ratios - height / width).argmin())


def _check_sizes(base_size: int, step: int):
    if base_size < 1 or step < 1 or base_size % step:
        raise ValueError(f"`base_size` must be a positive multiple of `step` = {step}, got {base_size}.")


__all__ = ["NUM_RATIOS", "inference_buckets", "nearest_bucket", "training_buckets"]
