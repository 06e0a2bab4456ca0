"""What calibration keeps of one stream of values: a few numbers and at most one histogram, never the values."""

import math

import torch

from .histogram import Histogram


class Statistics:
    """Ends, their moving average and, where asked for, a histogram: all that any observer looks at.

    axis       None for one range of a whole tensor, else the axis whose every index has a range of its own
    histogram  whether to count a histogram too
    momentum   weight of a new batch in the moving average, over 0 up to 1

    `observe` takes any number of tensors of a batch, `end_batch` closes it. Then `low`, `high`, `average_low` and
    `average_high` are float64 [ranges], zero where nothing was seen, and `histograms` has one entry per range. Ends and
    histograms do not depend on how the data was split into batches; the moving average does.
    """

    def __init__(self, axis: int | None = None, histogram: bool = False, momentum: float = 0.1):
        self.axis = axis
        self.momentum = momentum
        self.values = 0
        self.low = self.high = self.average_low = self.average_high = torch.zeros(1, dtype=torch.float64)
        self.histograms: list[Histogram] = []
        self._counts_histogram = histogram
        self._batch: tuple[torch.Tensor, torch.Tensor] | None = None
        self._batches = 0

    def observe(self, values: torch.Tensor) -> tuple[float, float]:
        """Take in one tensor. Returns its smallest and largest value; if they are not finite it takes in nothing."""
        if not values.numel():
            return 0.0, 0.0
        rows = self._rows(values.detach())
        # Over a whole tensor torch is eight times as fast as over the one long row of [1, n].
        low, high = torch.aminmax(rows, dim=1) if self.axis is not None else torch.aminmax(rows)
        low, high = low.reshape(-1).double(), high.reshape(-1).double()
        ends = float(low.min()), float(high.max())
        if all(map(math.isfinite, ends)):
            self.values += values.numel()
            if self._counts_histogram:
                self._count(rows, torch.maximum(-low, high).tolist())
            if self._batch is not None:
                low, high = torch.minimum(self._batch[0], low), torch.maximum(self._batch[1], high)
            self._batch = low, high
        return ends

    def end_batch(self) -> None:
        if self._batch is None:
            return
        (low, high), self._batch = self._batch, None
        if not self._batches:
            self.low, self.high, self.average_low, self.average_high = low, high, low, high
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.average_low = self.average_low + self.momentum * (low - self.average_low)
        self.average_high = self.average_high + self.momentum * (high - self.average_high)
        self._batches += 1

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """[ranges, values of each]"""
        if self.axis is None:
            return values.reshape(1, -1)
        return values.movedim(self.axis, 0).reshape(values.shape[self.axis], -1)

    def _count(self, rows: torch.Tensor, magnitudes: list[float]) -> None:
        if not self.histograms:
            self.histograms = [Histogram() for _ in rows]
        for histogram, row, magnitude in zip(self.histograms, rows, magnitudes, strict=True):
            histogram.add(row, magnitude)
