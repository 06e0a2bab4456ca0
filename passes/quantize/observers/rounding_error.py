"""The squared error that quantization would make on the values of a histogram, for many ranges at once."""

import numpy as np

from ..scales import Levels
from .histogram import HALF, Histogram

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


class RoundingError:
    """Sums of squared errors over a histogram, its values taken as spread evenly within each bin.

    The values that one level stands for lie in one interval, so its error follows from their count, sum and sum of
    squares: three running sums answer for any range in as many steps as there are levels. The bin of zero is left out,
    for every range holds zero exactly.
    """

    def __init__(self, histogram: Histogram, levels: Levels):
        self.levels = levels
        self.width = histogram.width
        counts = histogram.counts.double().numpy()
        self.cells = np.concatenate([counts[1:HALF], [0.0, 0.0], counts[HALF + 1 :]])
        edges = np.arange(-HALF, HALF + 1) * self.width
        sums = _moments(self.cells, edges[:-1], edges[1:])
        self.running = tuple(np.concatenate([[0.0], np.cumsum(of_cells)]) for of_cells in sums)

    def of(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """[ranges] of the two ends [ranges], as scales and zero points of the levels would cover them."""
        scale, zero_point = self.levels.grids(low, high)
        scale, zero_point = scale[:, None], zero_point[:, None]
        first, last = (scale * (end - zero_point) for end in (self.levels.quant_min, self.levels.quant_max))
        if scale.min() < 2 * self.width:  # levels as dense as bins: rounding errors are uniform, apart from the clip
            edges = np.concatenate([first - scale / 2, last + scale / 2], 1)
            count, total, squares = self._between(edges)
            values = np.concatenate([first, last, last], 1)
            errors = squares - 2 * values * total + values**2 * count
            return errors[:, 0] + errors[:, 2] + (count[:, 1:2] * scale**2 / 12)[:, 0]
        values = scale * (np.arange(self.levels.quant_min, self.levels.quant_max + 1) - zero_point)
        count, total, squares = self._between(values[:, :-1] + scale / 2)
        return (squares - 2 * values * total + values**2 * count).sum(1)

    def _between(self, edges: np.ndarray) -> Moments:
        """Count, sum and sum of squares below the first edge, between neighbours, and above the last one."""
        below = self._below(edges)
        ends = [np.broadcast_to(running[-1], (len(edges), 1)) for running in self.running]
        zero = np.zeros((len(edges), 1))
        count, total, squares = (np.diff(np.concatenate([zero, b, e], 1)) for b, e in zip(below, ends, strict=True))
        return count, total, squares

    def _below(self, value: np.ndarray) -> Moments:
        place = np.clip(value / self.width + HALF, 0, 2 * HALF)
        cell = np.minimum(place.astype(np.int64), 2 * HALF - 1)
        start = (cell - HALF) * self.width
        parts = _moments(self.cells[cell] * (place - cell), start, start + (place - cell) * self.width)
        count, total, squares = (r[cell] + part for r, part in zip(self.running, parts, strict=True))
        return count, total, squares


def _moments(count: np.ndarray, start: np.ndarray, end: np.ndarray) -> Moments:
    """Count, sum and sum of squares of values spread evenly from start to end."""
    return count, count * (start + end) / 2, count * (start**2 + start * end + end**2) / 3
