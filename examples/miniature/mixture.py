"""Training samples of several tasks, mixed at given ratios."""

import random
from collections.abc import Callable

from torch.utils.data import Dataset


class Mixture(Dataset):
    """
    Sample `i` is of a task drawn at the given ratios, and is the same whenever it is asked for.

    Args:
        tasks (`dict[str, Callable]`): for each task, a function that makes a sample with a `random.Random`.
        ratios (`dict[str, float]`): share of each task; they sum to 1.
        num_samples (`int`)
        seed (`int`)
    """

    def __init__(
        self,
        tasks: dict[str, Callable[[random.Random], dict]],
        ratios: dict[str, float],
        num_samples: int,
        seed: int = 0,
    ):
        if abs(sum(ratios.values()) - 1) > 1e-6 or not set(ratios) <= set(tasks):
            raise ValueError(f"`ratios` must give shares of {list(tasks)} that sum to 1, got {ratios}.")
        self.tasks = tasks
        self.ratios = ratios
        self.num_samples = num_samples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict:
        choose = random.Random(f"{self.seed} {index}")
        (task,) = choose.choices(list(self.ratios), list(self.ratios.values()))
        return self.tasks[task](choose)
