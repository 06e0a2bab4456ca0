"""histogram: ends move inwards while the error of quantization falls."""

import numpy as np

from .base import HistogramReader
from .histogram import Histogram
from .rounding_error import RoundingError

_STEP = 1e-5  # of all values: how much of the distribution one move may leave out


class HistogramSearch(HistogramReader):
    """Starts from all values and leaves out outliers for as long as the squared error falls.

    In each move either end may pass the next 1e-5 of the values; the end that would pass more bins is moved, for its
    values are sparser. The first move that does not help ends the search, so that a long tail is cut and a dense
    distribution is left whole.
    Source: norm minimisation in the FBGEMM quantizer of Caffe2, as torch.ao.quantization.HistogramObserver has it;
    here the error is that of the real levels, with the zero point rounded.
    """

    def choose(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        error = RoundingError(histogram, self.levels)
        below = np.cumsum(histogram.counts.numpy()) / max(int(histogram.counts.sum()), 1)
        edges = np.clip(histogram.edges(), low, high)
        occupied = np.flatnonzero(histogram.counts.numpy())
        start, end = int(occupied[0]), int(occupied[-1])
        least, cut_low, cut_high = self._error(error, edges, start, end), 0.0, 0.0
        while start < end:
            left = int(np.searchsorted(below, cut_low + _STEP))
            right = int(np.searchsorted(below, 1 - cut_high - _STEP))
            if left - start > end - right:
                next_start, next_end, cut_low = left, end, cut_low + _STEP
            else:
                next_start, next_end, cut_high = start, right, cut_high + _STEP
            if cut_low + cut_high >= 1 or next_start >= next_end:
                break
            if (next_start, next_end) == (start, end):  # both ends are bins with more values than a step: skip steps
                cut_low, cut_high = max(cut_low, below[start] - _STEP), max(cut_high, 1 - below[end - 1] - _STEP)
                continue
            found = self._error(error, edges, next_start, next_end)
            if found > least:
                break
            start, end, least = next_start, next_end, found
        return float(edges[start]), float(edges[end + 1])

    @staticmethod
    def _error(error: RoundingError, edges: np.ndarray, start: int, end: int) -> float:
        return float(error.of(edges[[start]], edges[[end + 1]])[0])
