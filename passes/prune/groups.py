"""The prunable groups of an index graph, and the families that they form."""

from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from scipy.sparse import csr_matrix

from ...ir.cost import macs
from .channels import IndexGraph
from .importance import Criterion, mass_by_index
from .relation import Dim


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

    families   in the order of their first group
    family     group -> the position of its family
    number     atom -> its group, or -1
    """

    def __init__(self, index: IndexGraph):
        self.index = index
        components = index.components
        rows = self._rows(components.is_free)
        held = np.zeros(len(components.reason), bool)
        for _, _, row in rows:
            held[components.label[row]] = True
        held &= components.is_free
        numbers = np.where(held, np.cumsum(held) - 1, -1)
        self.count = int(held.sum())
        self.number = numbers[components.label]
        self._rows_of_parameters = rows
        self.families = self._find_families()
        self.family = np.zeros(self.count, int)
        for position, family in enumerate(self.families):
            self.family[family.groups] = position

    def _rows(self, is_free: np.ndarray) -> list[tuple[str, int, Dim]]:
        """(parameter, position, dim) of every dim of a parameter that has a free atom; tied parameters once."""
        label = self.index.components.label
        return [
            (name, position, dim)
            for name in self.index.graph.parameters
            for position, dim in enumerate(self.index.weights[name])
            if is_free[label[dim]].any()
        ]

    def _find_families(self) -> tuple[Family, ...]:
        """Groups are alike when they have as many indices in the same rows."""
        table = self.incidence([dim for _, _, dim in self._rows_of_parameters]).tocsc()
        table.sort_indices()
        members: dict[bytes, list[int]] = {}
        for group in range(self.count):
            entries = slice(table.indptr[group], table.indptr[group + 1])
            key = table.indices[entries].astype(np.int64).tobytes() + table.data[entries].tobytes()
            members.setdefault(key, []).append(group)
        families = []
        for groups in members.values():
            entries = slice(table.indptr[groups[0]], table.indptr[groups[0] + 1])
            rows = [self._rows_of_parameters[i] for i in table.indices[entries]]
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

    def scores(self, criterion: Criterion) -> np.ndarray:
        """The importance of every group, 1 on average within its family.

        Each weight that a group lives in counts alike: the group's score there over the mean score of its family there.
        Vectors (biases, norms) speak only for groups that no matrix or filter holds.
        """
        matrices = self._relative_scores(criterion, [row for row in self._rows_of_parameters if self._rank(row) > 1])
        vectors = self._relative_scores(criterion, [row for row in self._rows_of_parameters if self._rank(row) == 1])
        return np.where(np.isnan(matrices), vectors, matrices)

    def _rank(self, row: tuple[str, int, Dim]) -> int:
        return self.index.graph.weight(row[0]).ndim

    def _relative_scores(self, criterion: Criterion, rows: list[tuple[str, int, Dim]]) -> np.ndarray:
        """Mean over the rows that hold a group; NaN where none does."""
        total, held = np.zeros(self.count), np.zeros(self.count)
        for name, position, dim in rows:
            weight = self.index.graph.weight(name)
            number, mass = self.number[dim], mass_by_index(criterion, weight, position)
            inside = number >= 0
            members = np.bincount(number[inside], minlength=self.count)
            present = np.flatnonzero(members)
            entries = members[present] * (weight.numel() // len(dim))
            score = criterion.finish(np.bincount(number[inside], mass[inside], self.count)[present] / entries)
            family = self.family[present]
            mean = np.bincount(family, score) / np.maximum(np.bincount(family), 1)
            total[present] += np.divide(score, mean[family], out=np.zeros_like(score), where=mean[family] > 0)
            held[present] += 1
        return np.divide(total, held, out=np.full(self.count, np.nan), where=held > 0)

    def alive_atoms(self, alive: np.ndarray) -> np.ndarray:
        """For every atom whether it survives when `alive` says which groups do."""
        return np.append(alive, True)[self.number]


class MacCounter:
    """Multiply-accumulates of the cut graph from the surviving groups alone, without cutting.

    Agrees exactly with `ir.cost` on the cut graph: each product counts in proportion to its surviving extents.
    """

    def __init__(self, groups: Groups, batch: int = 1):
        index = groups.index
        products = [(node, dims) for node, dims in index.products if macs(node, batch)]
        dims = list({id(d): d for _, product in products for d in product}.values())
        row = {id(d): i for i, d in enumerate(dims)}
        self._rows = [[row[id(d)] for d in product] for _, product in products]
        self._full = np.array([len(d) for d in dims], dtype=np.int64)
        self._incidence = groups.incidence(dims)
        self._weights = self._per_unit(products, batch)
        counted = {node for node, _ in products}
        self._constant = sum(
            macs(node, batch) for node in index.graph.nodes if node.op == "call_function" and node not in counted
        )
        self.full = self.count(np.ones(groups.count, bool))

    def count(self, alive: np.ndarray) -> int:
        """MACs at the batch size of the counter."""
        extents = (self._full - self._incidence @ (~alive).astype(np.int64)).tolist()
        total = self._constant
        for rows, (numerator, denominator) in zip(self._rows, self._weights, strict=True):
            product = numerator
            for row in rows:
                product *= extents[row]
            total += product // denominator
        return total

    def savings(self, groups: Groups) -> np.ndarray:
        """By family, the share of all MACs that its first removed group saves."""
        saved = []
        for family in groups.families:
            alive = np.ones(groups.count, bool)
            alive[family.groups[0]] = False
            saved.append((self.full - self.count(alive)) / max(self.full, 1))
        return np.array(saved)

    def _per_unit(self, products: list, batch: int) -> list[tuple[int, int]]:
        """For each product (MACs of its node, product of the node's full extents): symbolic extents cancel out."""
        full: dict = {}
        for node, dims in products:
            full[node] = full.get(node, 0) + int(np.prod([len(d) for d in dims], dtype=object))
        return [(macs(node, batch), full[node]) for node, _ in products]


def layer_name(weight: str) -> str:
    """`layer1.0.conv1` for `layer1.0.conv1.weight`."""
    return weight.removesuffix(".weight")
