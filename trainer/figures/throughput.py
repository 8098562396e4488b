"""How fast a run is, and when it will be done."""

import contextlib
import time


class Throughput:
    """
    Measures the time between readings, without what is spent in [`Throughput.paused`].

    Args:
        flops (`dict[str, float]`): of each unit of a batch, from [`training_flops`].
        peak (`float`, *optional*): FLOP/s of all devices together; without it there is no MFU.
        first_step, last_step (`int`): of this run, which may have been resumed.
    """

    def __init__(self, flops: dict[str, float], peak: float | None, first_step: int, last_step: int):
        self.flops, self.peak = flops, peak
        self.first_step, self.last_step = first_step, last_step
        self._start = self._last = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        """For evaluation and saving: they do not slow the figures down, but the end of the run is further off."""
        start = time.perf_counter()
        yield
        self._last += time.perf_counter() - start

    def read(self, step: int, counts: dict[str, int]) -> dict[str, float]:
        """
        Args:
            step (`int`): how many steps are done.
            counts (`dict[str, int]`): the units since the last reading, on all ranks.

        Returns:
            `tokens_per_second` on all ranks, `mfu` (share of the peak, if that is known) and `time_left` in seconds,
            from the speed of this run so far.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        tokens = sum(count for unit, count in counts.items() if unit.startswith("num_tokens_"))
        figures = {"tokens_per_second": tokens / seconds}
        if self.peak is not None:
            figures["mfu"] = sum(flops * counts[unit] for unit, flops in self.flops.items()) / seconds / self.peak
        figures["time_left"] = (self.last_step - step) * (now - self._start) / (step - self.first_step)
        return figures


__all__ = ["Throughput"]
