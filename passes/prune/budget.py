"""What a cut would leave of a model, counted from the surviving groups alone, without cutting."""

import numpy as np

from ...ir.cost import macs
from .groups import Groups


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
