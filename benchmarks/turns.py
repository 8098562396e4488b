"""Timing in turns: whatever slows the machine for a while slows all alike, so that ratios within a round hold."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def seconds_in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each function takes in each round. One more round before the first warms up."""
    seconds = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def timed(function: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(times: list[float], others: list[float]) -> dict[str, float]:
    """Median, least and greatest ratio of the two times of a round."""
    ratios = [time / other for time, other in zip(times, others, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def write(file: Path, result: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
