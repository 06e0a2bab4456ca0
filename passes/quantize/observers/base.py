"""Observer: from what was seen of a value to the range that its levels should cover."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..scales import Levels
from .histogram import Histogram
from .statistics import Statistics

Range = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ObserverOptions:
    """The numbers that observers take.

    percentile  for `percentile`: per cent of the values below the upper end (and above the lower end) of the range
    """

    percentile: float = 99.99


_INT8 = Levels(-128, 127)
_DEFAULTS = ObserverOptions()


@dataclass(frozen=True)
class Observer(ABC):
    """Chooses a range for levels. One `Statistics` serves any number of observers."""

    levels: Levels = _INT8
    options: ObserverOptions = _DEFAULTS

    needs_histogram: ClassVar[bool] = False

    @abstractmethod
    def range(self, seen: Statistics) -> Range:
        """Low and high, float64 [ranges], within what was seen."""


class HistogramReader(Observer):
    """An observer that looks at each histogram alone."""

    needs_histogram: ClassVar[bool] = True

    def range(self, seen: Statistics) -> Range:
        if not seen.histograms:
            return seen.low, seen.high
        ends = zip(seen.histograms, seen.low.tolist(), seen.high.tolist(), strict=True)
        found = torch.tensor([self.choose(*each) for each in ends], dtype=torch.float64)
        return found[:, 0].clamp(seen.low, seen.high), found[:, 1].clamp(seen.low, seen.high)

    @abstractmethod
    def choose(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        """The range for one histogram of values between low and high."""
