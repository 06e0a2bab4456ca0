"""min-max: all that was seen."""

from .base import Observer, Range
from .statistics import Statistics


class MinMax(Observer):
    """The smallest and the largest value ever seen.

    Source: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, arXiv:1806.08342.
    """

    def range(self, seen: Statistics) -> Range:
        return seen.low, seen.high
