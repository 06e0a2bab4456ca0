"""Fair timing on a shared machine: candidates take turns in short blocks, and figures are compared within one run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: least, median, and the middle half."""

    least: float
    median: float
    low: float
    high: float


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int = 30, calls: int = 8) -> dict[str, Timing]:
    """Each round gives every candidate a block of calls after two to warm its caches; the order rotates."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            call = candidates[name]
            for _ in range(2):
                call()
            for _ in range(calls):
                started = time.perf_counter()
                call()
                taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: _summary(values) for name, values in taken.items()}


def _summary(values: list[float]) -> Timing:
    quarters = statistics.quantiles(values, n=4)
    return Timing(min(values), statistics.median(values), quarters[0], quarters[2])
