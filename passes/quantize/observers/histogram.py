"""One histogram of a stream of values, whose span grows by powers of two."""

import math

import numpy as np
import torch

BINS = 8192  # over the positive and negative side together; 32 bins or more for each of 256 quantization steps
HALF = BINS // 2
_CHUNK = 1 << 16  # values that are counted at a time: temporaries stay in cache
_SMALLEST_EXPONENT = -100  # float32 neither overflows nor underflows in the bin index
# Neighbours are counted in different tables: many equal values in a row would wait for one another's additions.
_LANES = 2
_OFFSETS = (torch.arange(_CHUNK) % _LANES * BINS + HALF).to(torch.int16)


class Histogram:
    """Counts of values in equal bins between -2**exponent and 2**exponent.

    Bin i (at `counts[HALF + i]`) holds the values that are i when divided by `width` and rounded towards zero: bin 0
    is twice as wide and holds the zeros that a relu makes. When a value lies outside, the span doubles and bins merge
    in pairs, which loses nothing: rounding towards zero twice is rounding once. So the counts are those that the final
    span would have given, whatever the order of the values.
    """

    def __init__(self) -> None:
        self.exponent = _SMALLEST_EXPONENT
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    @property
    def width(self) -> float:
        return 2.0**self.exponent / HALF

    def add(self, values: torch.Tensor, magnitude: float) -> None:
        """Count float32 values [n], none of them above `magnitude`."""
        self._widen(magnitude)
        lanes = torch.zeros(_LANES * BINS, dtype=torch.int64)
        for chunk in values.split(_CHUNK):
            slot = chunk.mul(HALF * 2.0**-self.exponent).to(torch.int16).add_(_OFFSETS[: len(chunk)])
            lanes += torch.bincount(slot, minlength=_LANES * BINS)
        self.counts += lanes.view(_LANES, BINS).sum(0)

    def quantile(self, fraction: float) -> float:
        """The value below which this fraction lies, linear within a bin."""
        below = self.counts.cumsum(0)
        wanted = fraction * int(below[-1])
        at = min(int(torch.searchsorted(below.double(), wanted)), BINS - 1)
        count = int(self.counts[at])
        inside = (wanted - int(below[at]) + count) / count if count else 0.0
        start, end = self.edges()[at : at + 2].tolist()
        return start + inside * (end - start)

    def edges(self) -> np.ndarray:
        """The lower ends of all bins and the upper end of the last one [BINS + 1]; the first bin is always empty."""
        index = np.arange(-HALF, HALF + 1, dtype=np.float64)
        return (index - (index <= 0)) * self.width

    def _widen(self, magnitude: float) -> None:
        """Let the span hold `magnitude`."""
        exponent = max(math.frexp(magnitude)[1], self.exponent)
        if exponent > self.exponent:
            halvings = min(exponent - self.exponent, BINS.bit_length())  # by then all is in the bin of zero
            index = torch.arange(-HALF, HALF).div(1 << halvings, rounding_mode="trunc")
            self.counts = torch.zeros_like(self.counts).index_add_(0, index + HALF, self.counts)
            self.exponent = exponent
