"""Surviving extents of dims, from the number of survivors of each family, without a look at single atoms."""

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from ..groups import alike
from ..index.relation import Dim
from .ranking import Ranking


class Extents:
    """How long each of some dims is when families have lost groups.

    Groups of one family take equally many indices of every parameter, but may differ in values between them (one half
    of the channels is read by one op only). *Cells* are the groups of a family that take the same of every dim.

    full    the extents of the whole model
    varies  which of the dims have a group at all
    """

    def __init__(self, ranking: Ranking, dims: list[Dim]):
        groups = ranking.groups
        self._ranking = ranking
        self.full = np.array([len(dim) for dim in dims], np.int64)
        table = groups.incidence(dims)
        self.varies = np.diff(table.indptr) > 0
        refined = vstack([csr_array(groups.family[None] + 1), table])
        kind = alike(csc_array(refined)) if groups.count else np.zeros(0, int)
        _, first = np.unique(kind, return_index=True)
        self.cell_family = groups.family[first]
        self.taken = table[:, first].tocsr()
        self.share = np.bincount(kind) / ranking.sizes[self.cell_family] if groups.count else np.zeros(0)
        self._is_plain = len(first) == len(ranking.sizes)
        span = int(ranking.sizes.max(initial=0)) + 1
        self._keys = np.sort(kind * span + ranking.rank)
        self._base = np.arange(len(first)) * span
        self._start = np.searchsorted(self._keys, self._base)

    def __call__(self, survivors: np.ndarray) -> np.ndarray:
        """[..., dims] from [..., families]."""
        removed = (self._ranking.sizes - survivors)[..., self.cell_family]
        if not self._is_plain:
            removed = np.searchsorted(self._keys, self._base + removed) - self._start
        flat = removed.reshape(int(np.prod(removed.shape[:-1])), len(self.cell_family))
        return (self.full - (self.taken @ flat.T).T).reshape(*removed.shape[:-1], len(self.full))

    def by_family(self, slope: np.ndarray) -> np.ndarray:
        """[families]: what one more group takes of a quantity, on average, from its slope in each extent."""
        cells = (self.taken.T @ slope) * self.share
        return np.bincount(self.cell_family, cells, len(self._ranking.sizes))
