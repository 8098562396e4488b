"""Steps whose loss or gradient is not finite: skipped, counted, and too many of them stop the run."""

import json
import math
from pathlib import Path

import torch


FILE_NAME = "nonfinite_steps.json"


class NonfiniteGuard:
    """
    Lets the optimizer skip a step whose gradient is not finite: weights, moments and their step count stay as they
    are, to the bit. The step still counts: the data, the schedule and the noise move on. It goes by the global norm of
    the gradient, so that all ranks decide alike, and a fused optimizer skips on the device without waiting for it.

    Args:
        limit (`int`): of skipped steps in a row.
        device (`torch.device`)
    """

    def __init__(self, limit: int, device: torch.device):
        self.limit = limit
        self._counts = torch.zeros(3, dtype=torch.long, device=device)  # in all, in a row, longest row

    def before_step(self, gradient_norm: torch.Tensor, optimizer: torch.optim.Optimizer):
        """To be called with the norm before clipping, right before `optimizer.step`."""
        is_nonfinite = ~gradient_norm.isfinite()
        self._counts[0] += is_nonfinite
        self._counts[1] = (self._counts[1] + 1) * is_nonfinite
        self._counts[2] = self._counts[1:].max()
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = is_nonfinite.float()  # what a fused step looks at, as under a gradient scaler
        elif is_nonfinite:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = None  # without which a step leaves it alone

    def read(self) -> int:
        """
        The number of steps skipped in the run so far. Waits for the device.

        Raises:
            FloatingPointError: if `limit` steps or more were skipped in a row.
        """
        total, _, longest = self._counts.tolist()
        if longest >= self.limit:
            raise FloatingPointError(
                f"The loss or its gradient was not finite in {longest} steps in a row (`max_nonfinite_steps` is "
                f"{self.limit}), {total} in all. Those steps were skipped, so the weights are finite; look at the "
                "data, the learning rates and the precision."
            )
        return total

    def save(self, folder: str, is_main_process: bool):
        """Writes the counts into a checkpoint."""
        if not is_main_process:
            return
        total, in_a_row, _ = self._counts.tolist()
        Path(folder, FILE_NAME).write_text(json.dumps({"total": total, "in_a_row": in_a_row}))

    def load(self, folder: str | None):
        """Goes on with the counts of a checkpoint; from 0 without one, or if it has none."""
        counts = {"total": 0, "in_a_row": 0}
        if folder is not None and Path(folder, FILE_NAME).exists():
            counts = json.loads(Path(folder, FILE_NAME).read_text())
        self._counts.copy_(torch.tensor([counts["total"], counts["in_a_row"], counts["in_a_row"]]))


def spread_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """`loss`, or NaN if it is not finite, so that the gradient of every parameter on every rank is NaN as well."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


__all__ = ["NonfiniteGuard", "spread_nonfinite"]
