"""percentile: all but a fixed share of the values at either end."""

from .base import HistogramReader
from .histogram import Histogram


class Percentile(HistogramReader):
    """The range that leaves (100 - percentile) per cent of the values out at either end.

    It is exact to one bin of the histogram, at most 1/2048 of the largest magnitude.
    Source: Wu et al., Integer quantization for deep learning inference, 2020, arXiv:2004.09602.
    """

    def choose(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        share = self.options.percentile / 100
        return histogram.quantile(1 - share), histogram.quantile(share)
