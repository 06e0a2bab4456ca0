"""entropy: the range whose quantized distribution tells most of the original one."""

import math

import numpy as np

from .base import HistogramReader
from .histogram import HALF, Histogram

_CANDIDATES = 128


class Entropy(HistogramReader):
    """The threshold on magnitudes that minimises the Kullback-Leibler divergence of the quantized distribution.

    Values beyond a threshold count at the last bin inside; the quantized distribution spreads the count of each level
    over those of its bins that hold anything. The bin of zero gets its neighbours' counts: zero is exact at any
    threshold, and the zeros of a relu would outweigh all else. Affine levels cover what was seen within the threshold
    on each side, symmetric ones both sides alike. Nothing is cut where there are fewer bins than levels (16 bits).
    Source: Migacz, 8-bit inference with TensorRT, GPU Technology Conference 2017.
    """

    def choose(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        counts = histogram.counts.double().numpy()
        cells = np.concatenate([counts[1:HALF], counts[[HALF - 1, HALF + 1]], counts[HALF + 1 :]])
        left, right = (max(math.ceil(end / histogram.width), 0) for end in (-low, high))
        if self.levels.symmetric:
            left = right = max(left, right)
        levels = self.levels.quant_max - self.levels.quant_min + 1
        fewest = next((k for k in range(1, max(left, right) + 1) if min(k, left) + min(k, right) >= levels), None)
        if fewest is None:
            return low, high
        thresholds = np.unique(np.linspace(fewest, max(left, right), _CANDIDATES).astype(np.int64))
        thresholds = thresholds[::-1]  # of equals the first counts: nothing is cut for nothing
        losses = [_divergence(cells, HALF - min(k, left), HALF + min(k, right), levels) for k in thresholds]
        best = float(thresholds[int(np.argmin(losses))]) * histogram.width
        return max(low, -best), min(high, best)


def _divergence(cells: np.ndarray, start: int, end: int, levels: int) -> float:
    """Of the distribution with its outliers at the ends from that of `levels` levels over cells start..end."""
    inside = cells[start:end]
    reference = inside.copy()
    reference[0] += cells[:start].sum()
    reference[-1] += cells[end:].sum()
    level = np.arange(len(inside)) * levels // len(inside)
    held = reference > 0
    occupied = np.bincount(level, held, levels)
    spread = np.bincount(level, inside, levels) / np.maximum(occupied, 1)
    p, q = reference[held], spread[level][held]
    if not q.all():
        return math.inf  # an end that only outliers hold
    return float(np.sum(p * np.log(p / q)) / p.sum() - math.log(p.sum() / q.sum()))
