"""Making scores of different weights and layers comparable: one line per normaliser."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy.special import ndtr


class Spread:
    """Scores, and for each of them the statistics of the family that it belongs to.

    Sums run over scores in ascending order, so that the order of groups changes no bit.
    """

    def __init__(self, value: np.ndarray, family: np.ndarray):
        self.value = value
        if len(family) and (family == family[0]).all():  # as in most weights, and sorted much faster
            self._family, self._ascending = np.zeros(len(family), int), np.sort(value)
        else:
            _, self._family = np.unique(family, return_inverse=True)
            self._ascending = value[np.lexsort((value, self._family))]
        self._size = np.bincount(self._family)

    def _by_size(self, of_family: np.ndarray) -> np.ndarray:
        """What belongs to each family, once for each of its scores in ascending order."""
        return np.repeat(of_family, self._size)

    def _sum(self, ascending: np.ndarray) -> np.ndarray:
        return np.bincount(self._by_size(np.arange(len(self._size))), ascending)

    @cached_property
    def _sums(self) -> np.ndarray:
        return self._sum(self._ascending)

    @cached_property
    def sum(self) -> np.ndarray:
        return self._sums[self._family]

    @cached_property
    def mean(self) -> np.ndarray:
        return (self._sums / self._size)[self._family]

    @cached_property
    def max(self) -> np.ndarray:
        last = np.cumsum(self._size) - 1
        return self._ascending[last][self._family]

    @cached_property
    def deviation(self) -> np.ndarray:
        """The standard deviation; 0 where all scores are equal, whatever the rounding of their mean."""
        first = np.cumsum(self._size) - self._size
        lowest = self._ascending[first][self._family]
        squares = np.square(self._ascending - self._by_size(self._sums / self._size))
        return np.where(self.max > lowest, np.sqrt((self._sum(squares) / self._size)[self._family]), 0.0)

    @cached_property
    def standard(self) -> np.ndarray:
        return share(self.value - self.mean, self.deviation)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


# Within each family, that is, among the channels of one layer:
NORMALIZERS: dict[str, Callable[[Spread], np.ndarray]] = {
    # 1 on average: what a layer's channels are worth differs, that of layers does not
    "mean": lambda s: share(s.value, s.mean),
    # the best is 1
    "max": lambda s: share(s.value, s.max),
    # together 1: channels of wide layers count less
    "sum": lambda s: share(s.value, s.sum),
    # z-scores: mean 0, standard deviation 1
    "standard": lambda s: s.standard,
    # the probability of a lower score under the normal distribution of the same mean and deviation, in (0, 1)
    "gaussian": lambda s: ndtr(s.standard),
    # as they are: for criteria in units of the loss, and for layers that share a scale
    "none": lambda s: s.value,
}
