"""mean-squared-error: the range whose levels are nearest to the values."""

import numpy as np

from .base import HistogramReader
from .histogram import Histogram
from .rounding_error import RoundingError

_STEPS = 128  # candidates for one end
_ROUNDS = 4  # of moving one end, then the other


class MeanSquaredError(HistogramReader):
    """The range that minimises the squared error of quantization with these levels over all values seen.

    Symmetric: one search over 128 magnitudes. Affine: each end in turn, the other being held, until neither moves.
    Source: Nagel et al., A white paper on neural network quantization, section 3.1, 2021, arXiv:2106.08295.
    """

    def choose(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        error = RoundingError(histogram, self.levels)
        low, high = min(low, 0.0), max(high, 0.0)
        shares = np.arange(1, _STEPS + 1) / _STEPS
        if self.levels.symmetric:
            magnitudes = max(-low, high) * shares
            lows, highs = np.maximum(-magnitudes, low), np.minimum(magnitudes, high)
            best = np.argmin(error.of(lows, highs))
            return lows[best], highs[best]
        lows, highs = low * shares, high * shares
        for _ in range(_ROUNDS):
            before = low, high
            if highs[-1]:
                high = highs[np.argmin(error.of(np.full(_STEPS, low), highs))]
            if lows[-1]:
                low = lows[np.argmin(error.of(lows, np.full(_STEPS, high)))]
            if (low, high) == before:
                break
        return low, high
