"""The prunable groups of an index graph, and the families that they form."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from scipy.sparse import coo_array, csc_array, csr_array

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

    rows       (parameter, position, dim) of every dim of a parameter that has an atom of a group; tied parameters once
    families   in the order of their first group
    family     group -> the position of its family
    number     atom -> its group, or -1; given for groups that are matched anew and for the pieces of groups
    """

    def __init__(self, index: IndexGraph, number: np.ndarray | None = None):
        self.index = index
        self.number = _number_components(index) if number is None else number
        self.count = int(self.number.max(initial=-1)) + 1
        self.rows = [row for row in parameter_rows(index) if (self.number[row[2]] >= 0).any()]
        self.families, self.family = self._find_families()

    def _find_families(self) -> tuple[tuple[Family, ...], np.ndarray]:
        """Groups are alike when they have as many indices in the same rows."""
        table = self.incidence([dim for _, _, dim in self.rows]).tocsc()
        family = alike(table)
        families = []
        for groups in members(family):
            entries = slice(table.indptr[groups[0]], table.indptr[groups[0] + 1])
            rows = [self.rows[i] for i in np.sort(table.indices[entries])]
            indices = tuple(sorted({int(count) for count in table.data[entries]}))
            families.append(Family(self._layer(int(groups[0]), rows), groups, indices))
        return tuple(families), family

    def _layer(self, group: int, rows: list[tuple[str, int, Dim]]) -> str:
        """The layer that makes these channels, else the first one that holds them."""
        channels = self.index.channels
        makers = [name for name, _, _ in rows if name in channels and (self.number[channels[name]] == group).any()]
        found = makers or [name for name, _, _ in rows] or ["(no weight)"]  # a piece may be a position and no weight
        return layer_name(found[0])

    def incidence(self, dims: Sequence[Dim]) -> csr_array:
        """[dims, groups]: how many atoms of each dim belong to each group."""
        # A dim whose indices are all one atom can never be pruned.
        owners = [self.number[dim[:1] if dim.strides == (0,) else dim] for dim in dims]
        rows = np.repeat(np.arange(len(dims), dtype=np.int32), [len(owner) for owner in owners])
        columns = np.concatenate([np.zeros(0, np.int32), *owners])
        inside = columns >= 0
        rows, columns, entries = rows[inside], columns[inside], np.ones(np.count_nonzero(inside), np.int32)
        return csr_array(coo_array((entries, (rows, columns)), shape=(len(dims), self.count)), dtype=np.int64)

    def alive_atoms(self, alive: np.ndarray) -> np.ndarray:
        """For every atom whether it survives when `alive` says which groups do."""
        return np.append(alive, True)[self.number]


def parameter_rows(index: IndexGraph) -> list[tuple[str, int, Dim]]:
    """(parameter, position, dim) of every dim of every parameter, without dims that stand for others by blocks."""
    return [
        (name, position, dim)
        for name in index.graph.parameters
        for position, dim in enumerate(index.weights[name])
        if position != 1 or name not in index.blocked
    ]


def _number_components(index: IndexGraph) -> np.ndarray:
    """Atom -> the number of its component among the free ones that hold a parameter, or -1."""
    components = index.components
    held = np.zeros(len(components.reason), bool)
    for _, _, dim in parameter_rows(index):
        held[components.label[dim]] = True
    held &= components.is_free
    return np.where(held, np.cumsum(held) - 1, -1).astype(np.int32)[components.label]


def alike(table: csc_array) -> np.ndarray:
    """Column -> the number of its kind, in the order of first columns: equal columns are of one kind.

    Columns are compared by a 64-bit checksum of (row, count) pairs with fixed random coefficients.
    """
    rows = int(table.indices.max(initial=-1)) + 1
    coefficients = np.random.default_rng(0).integers(1 << 63, size=(rows, 2), dtype=np.uint64)
    terms = coefficients[table.indices, 0] + coefficients[table.indices, 1] * table.data.astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])  # modulo 2^64
    checksum = sums[table.indptr[1:]] - sums[table.indptr[:-1]]
    _, first, kind = np.unique(checksum, return_index=True, return_inverse=True)
    order = np.empty(len(first), int)
    order[np.argsort(first, kind="stable")] = np.arange(len(first))
    return order[kind]


def members(kind: np.ndarray) -> list[np.ndarray]:
    """The positions of each kind, ascending."""
    order = np.argsort(kind, kind="stable")
    return np.split(order, np.cumsum(np.bincount(kind))[:-1]) if len(kind) else []


def layer_name(weight: str) -> str:
    """`layer1.0.conv1` for `layer1.0.conv1.weight`."""
    return weight.removesuffix(".weight")
