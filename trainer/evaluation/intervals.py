"""How far a figure may be from what more samples would give."""

import math
from collections.abc import Callable

import numpy as np


LEVEL = 0.95
Z = 1.959963984540054  # of a standard normal, both sides of `LEVEL`
NUM_RESAMPLES = 1000


def wilson_interval(num_right: float, num_samples: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (1927), which stays within 0 and 1 and is none too short at either."""
    share, weight = num_right / num_samples, Z**2 / num_samples
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / num_samples + weight / (4 * num_samples))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_intervals(
    outcomes: list[dict], metrics: Callable[[list[dict]], dict[str, float]], seed: int, resamples: int = NUM_RESAMPLES
) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of each figure, over `resamples` draws of as many samples with replacement."""
    choose, drawn = np.random.default_rng(seed), {}
    for _ in range(resamples):
        figures = metrics([outcomes[i] for i in choose.integers(len(outcomes), size=len(outcomes))])
        for name, figure in figures.items():
            drawn.setdefault(name, []).append(figure)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: tuple(np.quantile(figures, tails).tolist()) for name, figures in drawn.items()}


__all__ = ["LEVEL", "bootstrap_intervals", "wilson_interval"]
