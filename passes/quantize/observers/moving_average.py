"""moving-average: what a batch usually spans."""

from .base import Observer, Range
from .statistics import Statistics


class MovingAverage(Observer):
    """An exponential moving average of each batch's smallest and largest value: one odd batch moves it little.

    The first batch is taken whole, then range = (1 - momentum) * range + momentum * batch. It depends on how the data
    is split into batches.
    Source: Jacob et al., section 3.1, CVPR 2018, arXiv:1712.05877.
    """

    def range(self, seen: Statistics) -> Range:
        return seen.average_low, seen.average_high
