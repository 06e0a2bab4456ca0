"""Connected components of atoms, merged as edges arrive, each free or frozen with the first reason given."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from .relation import Dim

FREE = np.iinfo(np.int32).max


def connect(a: np.ndarray, b: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """The number of components of `count` vertices with the edges a[i] - b[i], and the component of each vertex."""
    graph = csr_matrix((np.ones(len(a)), (a, b)), shape=(count, count))  # in the form that it is searched in
    return connected_components(graph, directed=False)


class Components:
    """Which atoms live and die together.

    label    atom -> component
    reason   component -> the number of the reason that freezes it, or FREE
    changed  component -> whether the last `merge` made it of several, or `freeze` froze it since then
    """

    def __init__(self, count: int):
        self.label = np.arange(count, dtype=np.int32)  # there are millions of atoms, and the merges copy them often
        self.reason = np.full(count, FREE, np.int32)
        self.changed = np.zeros(count, bool)

    @property
    def is_free(self) -> np.ndarray:
        return self.reason == FREE

    def merge(self, edges: Sequence[tuple[Dim, Dim]]) -> None:
        """Join the components that an edge connects. Labels are merged, never computed from scratch."""
        if not edges:
            self.changed = np.zeros(len(self.reason), bool)
            return
        a, b = (self.label[np.concatenate([edge[end] for edge in edges])] for end in (0, 1))
        count, component = connect(a, b, len(self.reason))
        reason = np.full(count, FREE, np.int32)
        np.minimum.at(reason, component, self.reason)
        self.changed = np.bincount(component, minlength=count) > 1
        self.label, self.reason = component[self.label], reason

    def freeze(self, dims: Sequence[tuple[Dim, int]]) -> None:
        """Freeze the components of (dim, reason) pairs; of several reasons the smallest number stays."""
        if not dims:
            return
        atoms = np.concatenate([dim for dim, _ in dims])
        reasons = np.repeat(np.array([reason for _, reason in dims], np.int32), [len(dim) for dim, _ in dims])
        labels = self.label[atoms]
        self.changed[labels[self.reason[labels] == FREE]] = True
        np.minimum.at(self.reason, labels, reasons)

    def changed_in(self, atoms: np.ndarray) -> bool:
        """One of these atoms is in a component that changed."""
        return bool(self.changed[self.label[atoms]].any())

    def covers(self, dim: Dim) -> bool:
        """The whole dim is one component: to remove it would leave an empty tensor."""
        return len(dim) > 0 and bool((self.label[dim] == self.label[dim[0]]).all())
