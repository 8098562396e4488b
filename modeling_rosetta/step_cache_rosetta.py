"""Steps that do not run the model: their velocity follows from those of the steps before."""

import torch


class StepCache:
    """
    Predicts a velocity along the line through the last two that the model computed, as long as it would change by less
    than `threshold`, relative to its norm, from the last: how much it changes in a unit of time is taken from these
    two. So steps are skipped where the path of the image is straight, and not where it bends.

    It works on the guided velocity, whatever the scheduler, and skips the transformer whole: no state of its own, such
    as the keys and values of the prompts, is half updated. It keeps two tensors of the size of the latents.

    Args:
        threshold (`float`): 0 never skips a step.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._computed: list[tuple[float, torch.Tensor]] = []
        self._depends_on: tuple = ()

    def predict(self, sigma: float, *depends_on: object) -> torch.Tensor | None:
        """
        The velocity at the time `sigma`, or `None` if the model is to compute it: also if it depends, beside the time
        and the image, on other objects than before.
        """
        if any(new is not old for new, old in zip(depends_on, self._depends_on or depends_on, strict=True)):
            self._computed = []
        self._depends_on = depends_on
        if len(self._computed) < 2:
            return None
        (before, old), (last, new) = self._computed
        share = (sigma - last) / (last - before)
        difference, size = ((new - old).flatten(1).norm(dim=1), new.flatten(1).norm(dim=1))
        change = share * float((difference / size.clamp(min=1e-12)).max())  # of the image that changes most
        return new + share * (new - old) if change < self.threshold else None

    def keep(self, sigma: float, velocity: torch.Tensor) -> torch.Tensor:
        """Keeps, and returns, what the model has computed."""
        if self.threshold > 0:
            self._computed = [*(known for known in self._computed[-1:] if known[0] != sigma), (sigma, velocity)]
        return velocity

    def checked(self, latents: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
        """`replaced`; if these are others than `latents`, another path begins, of which nothing is known."""
        if replaced is not latents:
            self._computed = []
        return replaced


__all__ = ["StepCache"]
