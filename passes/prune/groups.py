"""The prunable groups of an index graph, and the families that they form."""

from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from scipy.sparse import csr_matrix

from .index.index_graph import IndexGraph
from .index.relation import Dim


@dataclass(frozen=True)
class Family:
    """Groups that live in the same dims of the same weights, as the output channels of one layer do.

    layer     the first layer whose channels they are (a weight's name without `.weight`)
    groups    their numbers
    indices   in each of those dims, how many indices one group takes
    """

    layer: str
    groups: np.ndarray
    indices: tuple[int, ...]

    def step(self, lanes: int) -> int:
        """The smallest number of groups whose channels fill whole lanes in every dim."""
        return lcm(*(lanes // gcd(lanes, count) for count in self.indices))


class Groups:
    """All free components that hold at least one parameter, numbered 0, 1, ...

    rows       (parameter, position, dim) of every dim of a parameter that has a free atom; tied parameters once
    families   in the order of their first group
    family     group -> the position of its family
    number     atom -> its group, or -1
    """

    def __init__(self, index: IndexGraph):
        self.index = index
        components = index.components
        self.rows = self._find_rows(components.is_free)
        held = np.zeros(len(components.reason), bool)
        for _, _, row in self.rows:
            held[components.label[row]] = True
        held &= components.is_free
        numbers = np.where(held, np.cumsum(held) - 1, -1)
        self.count = int(held.sum())
        self.number = numbers[components.label]
        self.families = self._find_families()
        self.family = np.zeros(self.count, int)
        for position, family in enumerate(self.families):
            self.family[family.groups] = position

    def _find_rows(self, is_free: np.ndarray) -> list[tuple[str, int, Dim]]:
        label = self.index.components.label
        return [
            (name, position, dim)
            for name in self.index.graph.parameters
            for position, dim in enumerate(self.index.weights[name])
            if is_free[label[dim]].any()
        ]

    def _find_families(self) -> tuple[Family, ...]:
        """Groups are alike when they have as many indices in the same rows."""
        table = self.incidence([dim for _, _, dim in self.rows]).tocsc()
        table.sort_indices()
        members: dict[bytes, list[int]] = {}
        for group in range(self.count):
            entries = slice(table.indptr[group], table.indptr[group + 1])
            key = table.indices[entries].astype(np.int64).tobytes() + table.data[entries].tobytes()
            members.setdefault(key, []).append(group)
        families = []
        for groups in members.values():
            entries = slice(table.indptr[groups[0]], table.indptr[groups[0] + 1])
            rows = [self.rows[i] for i in table.indices[entries]]
            indices = tuple(sorted({int(count) for count in table.data[entries]}))
            families.append(Family(self._layer(groups[0], rows), np.array(groups), indices))
        return tuple(families)

    def _layer(self, group: int, rows: list[tuple[str, int, Dim]]) -> str:
        """The layer that makes these channels, else the first one that holds them."""
        channels = self.index.channels
        makers = [name for name, _, _ in rows if name in channels and (self.number[channels[name]] == group).any()]
        return layer_name((makers or [rows[0][0]])[0])

    def incidence(self, dims: list[Dim]) -> csr_matrix:
        """[dims, groups]: how many atoms of each dim belong to each group."""
        found = [np.unique(self.number[dim][self.number[dim] >= 0], return_counts=True) for dim in dims]
        rows = np.repeat(np.arange(len(dims)), [len(groups) for groups, _ in found])
        columns = np.concatenate([groups for groups, _ in found] or [np.zeros(0, int)])
        counts = np.concatenate([counts for _, counts in found] or [np.zeros(0, int)])
        return csr_matrix((counts.astype(np.int64), (rows, columns)), shape=(len(dims), self.count))

    def alive_atoms(self, alive: np.ndarray) -> np.ndarray:
        """For every atom whether it survives when `alive` says which groups do."""
        return np.append(alive, True)[self.number]


def layer_name(weight: str) -> str:
    """`layer1.0.conv1` for `layer1.0.conv1.weight`."""
    return weight.removesuffix(".weight")
