"""Observers: what range a stream of values has. Each keeps a few numbers or one histogram, never the values."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

BINS = 8192  # over the positive and negative side together; 32 bins or more for each of 256 quantization steps
_CHUNK = 1 << 16  # values that are counted at a time: temporaries stay in cache
_SMALLEST_EXPONENT = -100  # float32 neither overflows nor underflows in the bin index


@dataclass(frozen=True)
class ObserverOptions:
    """The numbers that observers take.

    percentile  per cent of the values below the upper end (and above the lower end) of the range
    momentum    weight of a new batch in the moving average, over 0 up to 1
    """

    percentile: float = 99.99
    momentum: float = 0.1


class Observer(ABC):
    """Sees tensors batch by batch and tells their range.

    axis  None for one range of a whole tensor, else the axis whose every index has a range of its own

    A range is a pair of float64 tensors (low, high) of shape [] or [channels]. `observe` takes any number of tensors
    of a batch, `end_batch` closes it, `range` may be asked when a batch was closed.
    """

    def __init__(self, axis: int | None = None, options: ObserverOptions | None = None):
        self.axis = axis
        self.options = options or ObserverOptions()
        self.batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def observe(self, values: torch.Tensor) -> tuple[float, float]:
        """Take in one tensor. Returns its smallest and largest value; NaN where it holds one."""
        if not values.numel():
            return 0.0, 0.0
        rows = self._rows(values.detach())
        # Over a whole tensor torch is eight times as fast as over the one long row of [1, n].
        low, high = torch.aminmax(rows, dim=1) if self.axis is not None else torch.aminmax(rows)
        low, high = low.reshape(-1), high.reshape(-1)
        ends = float(low.min()), float(high.max())
        if all(map(math.isfinite, ends)):
            low, high = low.double(), high.double()
            if self.batch is not None:
                low, high = torch.minimum(self.batch[0], low), torch.maximum(self.batch[1], high)
            self.batch = low, high
            self._count(rows, torch.maximum(-low, high).tolist())
        return ends

    def end_batch(self) -> None:
        if self.batch is not None:
            self._merge(*self.batch)
            self.batch = None

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self._range()
        return (low, high) if self.axis is not None else (low[0], high[0])

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """[ranges, values of each]"""
        if self.axis is None:
            return values.reshape(1, -1)
        return values.movedim(self.axis, 0).reshape(values.shape[self.axis], -1)

    def _count(self, rows: torch.Tensor, magnitudes: list[float]) -> None:  # noqa: B027  most need no more
        """For observers that look at more than the ends. `magnitudes`: at least the largest of each row."""

    @abstractmethod
    def _merge(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take in the ends of a batch."""

    @abstractmethod
    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Low and high as [ranges]."""


class MinMax(Observer):
    """The smallest and the largest value ever seen.

    Source: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, arXiv:1806.08342.
    """

    low = high = torch.zeros(0, dtype=torch.float64)

    def _merge(self, low: torch.Tensor, high: torch.Tensor) -> None:
        seen = self.low.numel() > 0
        self.low = torch.minimum(self.low, low) if seen else low
        self.high = torch.maximum(self.high, high) if seen else high

    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.low, self.high


class MovingAverage(MinMax):
    """An exponential moving average of each batch's smallest and largest value: one odd batch moves it little.

    The first batch is taken whole, then range = (1 - momentum) * range + momentum * batch.
    Source: Jacob et al., section 3.1, CVPR 2018, arXiv:1712.05877.
    """

    def _merge(self, low: torch.Tensor, high: torch.Tensor) -> None:
        if self.low.numel():
            low = self.low + self.options.momentum * (low - self.low)
            high = self.high + self.options.momentum * (high - self.high)
        self.low, self.high = low, high


class Percentile(MinMax):
    """The range that leaves (100 - percentile) per cent of the values out at either end, from a histogram.

    The histogram spans -2**e to 2**e; when a value lies outside, e grows and neighbouring bins merge, which loses
    nothing: the counts are those that the final span would have given, so the result does not depend on how the
    data was split into batches. It is exact to one bin, at most 1/2048 of the largest magnitude.
    Source: Wu et al., Integer quantization for deep learning inference, 2020, arXiv:2004.09602.
    """

    def __init__(self, axis: int | None = None, options: ObserverOptions | None = None):
        super().__init__(axis, options)
        self.histograms: list[_Histogram] = []

    def _count(self, rows: torch.Tensor, magnitudes: list[float]) -> None:
        if not self.histograms:
            self.histograms = [_Histogram() for _ in rows]
        for histogram, row, magnitude in zip(self.histograms, rows, magnitudes, strict=True):
            histogram.add(row, magnitude)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        upper = self.options.percentile / 100
        low, high = (
            torch.tensor([h.quantile(level) for h in self.histograms], dtype=torch.float64).clamp(self.low, self.high)
            for level in (1 - upper, upper)
        )
        return low, high


class _Histogram:
    """Counts of values in BINS equal bins between -2**exponent and 2**exponent. Powers of two keep bins aligned."""

    def __init__(self) -> None:
        self.exponent = _SMALLEST_EXPONENT
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: torch.Tensor, magnitude: float) -> None:
        self._widen(magnitude)
        for chunk in values.split(_CHUNK):
            index = chunk.mul(BINS // 2 * 2.0**-self.exponent).floor_().to(torch.int32).add_(BINS // 2)
            self.counts += torch.bincount(index, minlength=BINS)

    def quantile(self, fraction: float) -> float:
        """The value below which this fraction lies, linear within a bin."""
        below = self.counts.cumsum(0)
        wanted = fraction * int(below[-1])
        at = min(int(torch.searchsorted(below.double(), wanted)), BINS - 1)
        count = int(self.counts[at])
        inside = (wanted - int(below[at]) + count) / count if count else 0.0
        return (at + inside - BINS // 2) * 2.0**self.exponent / (BINS // 2)

    def _widen(self, magnitude: float) -> None:
        """Let the span hold `magnitude`: merge bins in pairs around zero."""
        exponent = max(math.frexp(magnitude)[1], self.exponent)
        for _ in range(min(exponent - self.exponent, BINS.bit_length())):  # by then all is in the two bins at zero
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.exponent = exponent


OBSERVERS: dict[str, type[Observer]] = {"min-max": MinMax, "moving-average": MovingAverage, "percentile": Percentile}
