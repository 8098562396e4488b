"""Figures of a training run, gathered on the device and read once in a while."""

from collections.abc import Iterable

import torch


class RunningFigures:
    """
    Weighted means and counts over the batches since the last reading. Adding never waits for the device. All ranks
    must use the same names, since reading sums over the ranks.

    Args:
        means (`Iterable[str]`): names of the means.
        counts (`Iterable[str]`): names of the counts.
        device (`torch.device`)
    """

    def __init__(self, means: Iterable[str], counts: Iterable[str], device: torch.device):
        self._means = {name: row for row, name in enumerate(means)}
        self._counts = {name: row for row, name in enumerate(counts)}
        self._sums = torch.zeros(len(self._means), 2, device=device)  # total, weight
        self._numbers = torch.zeros(len(self._counts), dtype=torch.long, device=device)

    def add_to_mean(self, name: str, total: torch.Tensor, weight: torch.Tensor | float = 1.0):
        """Adds `total`, a sum over values of the total weight `weight`; nothing if it is not finite."""
        sums = self._sums[self._means[name]]
        sums[0] += total.nan_to_num(0.0, 0.0, 0.0)
        sums[1] += total.isfinite() * weight

    def add_to_count(self, name: str, number: torch.Tensor | int):
        """Adds `number`."""
        self._numbers[self._counts[name]] += number

    def read(self, accelerator) -> dict[str, float]:
        """Means and counts over all ranks; starts again. Means of nothing are left out."""
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        numbers = accelerator.reduce(self._numbers, reduction="sum").tolist()
        self._sums.zero_()
        self._numbers.zero_()
        means = {name: sum / weight for name, (sum, weight) in zip(self._means, sums, strict=True) if weight > 0}
        return means | dict(zip(self._counts, numbers, strict=True))


__all__ = ["RunningFigures"]
