"""What a cut would leave of a model, counted from the survivors of each family, without cutting.

Everything that `ir.cost` counts is a sum of products of extents: a weight's elements, a product's
multiply-accumulates, a value's bytes. Each product is kept as what it is in the whole model over the extents that can
shrink, an exact fraction; so the counts agree with `ir.cost` on the cut graph to the last unit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import fx

from ....ir.cost import macs
from ....ir.liveness import Liveness
from ....ir.ops import tensors
from ....ir.shapes import concrete
from ..index.index_graph import IndexGraph
from ..index.relation import Dims
from .extents import Extents
from .ranking import Ranking

# Moments at which as much as this share of the peak is missing count as worst moments too.
NEAR_WORST = 0.02


@dataclass(frozen=True)
class Term:
    """`amount` units in the whole model, in proportion to each of the extents `dims`."""

    amount: int | Fraction
    dims: Dims


class Terms:
    """Terms, evaluated all at once. Survivors are [..., families]: several candidates are one call."""

    def __init__(self, ranking: Ranking, terms: list[Term]):
        dims = list({id(d): d for term in terms for d in term.dims}.values())
        extents = Extents(ranking, dims)
        row = {id(d): i for i, d in enumerate(dims) if extents.varies[i]}
        places = [[row[id(d)] for d in term.dims if id(d) in row] for term in terms]
        # The extent behind the last one is 1: what pads the products of fewer extents.
        width = max(map(len, places), default=0)
        self._places = np.array([p + [len(dims)] * (width - len(p)) for p in places], int).reshape(len(terms), width)
        whole = extents.full.tolist()
        unit = [Fraction(term.amount) / prod(whole[i] for i in p) for term, p in zip(terms, places, strict=True)]
        self._numerator = np.array([u.numerator for u in unit], np.int64)
        self._denominator = np.array([u.denominator for u in unit], np.int64)
        self._extents, self._count = extents, len(dims)

    def __call__(self, survivors: np.ndarray) -> np.ndarray:
        """[..., terms]: exact integers."""
        return self._values(self._padded(survivors))

    def savings(self, survivors: np.ndarray, times: np.ndarray | int = 1) -> np.ndarray:
        """[families]: what one more removed group saves of the terms, each taken so many times, to first order."""
        extents = self._padded(survivors)
        values = self._values(extents) * times
        slope = values[:, None] / extents[self._places]
        by_dim = np.bincount(self._places.ravel(), slope.ravel(), self._count + 1)[: self._count]
        return self._extents.by_family(by_dim)

    def _padded(self, survivors: np.ndarray) -> np.ndarray:
        extents = self._extents(survivors)
        return np.concatenate([extents, np.ones((*extents.shape[:-1], 1), np.int64)], axis=-1)

    def _values(self, extents: np.ndarray) -> np.ndarray:
        products = np.broadcast_to(self._numerator, (*extents.shape[:-1], len(self._numerator))).copy()
        for places in self._places.T:
            products *= extents[..., places]
        return products // self._denominator


class Total:
    """A sum of terms: parameters, bytes or multiply-accumulates."""

    def __init__(self, ranking: Ranking, terms: list[Term]):
        self._terms = Terms(ranking, terms)
        self.full = int(self(ranking.sizes))

    def __call__(self, survivors: np.ndarray) -> np.ndarray:
        """[...] from [..., families]."""
        return self._terms(survivors).sum(-1)

    def savings(self, survivors: np.ndarray) -> np.ndarray:
        """[families]: what the next removed group of each family saves, to first order, as a share of the whole."""
        return self._terms.savings(survivors) / max(self.full, 1)


class PeakMemory:
    """The bytes of activations that are in use at the worst moment, as in `ir.cost`."""

    def __init__(self, ranking: Ranking, terms: list[list[Term]], live: Liveness):
        """terms: for each owner in `live` those of its tensors."""
        self._terms = Terms(ranking, [term for of_owner in terms for term in of_owner])
        owner = np.repeat(np.arange(len(terms)), [len(of_owner) for of_owner in terms])
        self._start, self._end, self._moments = live.start[owner], live.end[owner], live.moments
        self.full = int(self(ranking.sizes))

    @cached_property
    def _changes(self) -> csr_array:
        """[moments + 1, terms]: 1 where a value is made, -1 after its last use."""
        terms = np.arange(len(self._start))
        places = np.concatenate([self._start, self._end + 1]), np.concatenate([terms, terms])
        signs = np.repeat(np.array([1, -1], np.int64), len(terms))
        return coo_array((signs, places), shape=(self._moments + 1, len(terms))).tocsr()

    def profile(self, survivors: np.ndarray) -> np.ndarray:
        """[..., moments]: what is in use at each moment."""
        sizes = self._terms(survivors)
        changes = (self._changes @ sizes.reshape(int(np.prod(sizes.shape[:-1])), sizes.shape[-1]).T).T
        return np.cumsum(changes, axis=-1)[..., :-1].reshape(*sizes.shape[:-1], self._moments)

    def __call__(self, survivors: np.ndarray) -> np.ndarray:
        return self.profile(survivors).max(-1, initial=0)

    def savings(self, survivors: np.ndarray) -> np.ndarray:
        """[families]: what the next removed group of each family saves, as a share, summed over the worst moments.

        Those are all that come near the very worst one: blocks that repeat are thinned together.
        """
        profile = self.profile(survivors)
        near = np.append(0, np.cumsum(profile >= (1 - NEAR_WORST) * profile.max(initial=0)))
        times = near[self._end + 1] - near[self._start]
        return self._terms.savings(survivors, times) / max(self.full, 1)


Quantity = Total | PeakMemory


def count_macs(ranking: Ranking, batch: int = 1) -> Total:
    """Multiply-accumulates. A node with several products shares its count among them by their sizes."""
    index = ranking.groups.index
    by_node: dict[fx.Node, list[Dims]] = {}
    for node, dims in index.products:
        by_node.setdefault(node, []).append(dims)
    terms = []
    for node in (n for n in index.graph.nodes if n.op == "call_function"):
        amount, products = macs(node, batch), by_node.get(node, [])
        sizes = [prod(map(len, dims)) for dims in products]
        terms += [Term(Fraction(amount * size, sum(sizes)), dims) for size, dims in zip(sizes, products, strict=True)]
        if amount and not products:
            terms.append(Term(amount, []))
    return Total(ranking, [term for term in terms if term.amount])


def count_params(ranking: Ranking, batch: int = 1) -> Total:
    """Parameters, tied ones once."""
    index = ranking.groups.index
    return Total(ranking, [Term(p.numel(), index.weights[name]) for name, p in index.graph.parameters.items()])


def count_bytes(ranking: Ranking, batch: int = 1) -> Total:
    """Bytes of all weights and buffers, tied ones once."""
    index = ranking.groups.index
    unique = {id(tensor): (name, tensor) for name, tensor in index.graph.weights.items()}.values()
    return Total(ranking, [Term(_bytes(tensor, batch), index.weights[name]) for name, tensor in unique])


def count_peak_memory(ranking: Ranking, batch: int = 1) -> PeakMemory:
    """Bytes of activations at the worst moment."""
    index = ranking.groups.index
    live = Liveness.of(index.graph)
    return PeakMemory(ranking, [list(_value_terms(index, node, batch)) for node in live.owners], live)


def _value_terms(index: IndexGraph, node: fx.Node, batch: int) -> Iterable[Term]:
    values = tensors(node.meta.get("val"))
    dims = index.values.get(node) or [[] for _ in values]
    return [Term(_bytes(tensor, batch), d) for tensor, d in zip(values, dims, strict=True)]


def _bytes(tensor: torch.Tensor, batch: int) -> int:
    return prod(concrete(extent, batch) for extent in tensor.shape) * tensor.dtype.itemsize


# The targets by the names of their options.
QUANTITIES: dict[str, Callable[[Ranking], Quantity]] = {
    "macs": count_macs,
    "params": count_params,
    "bytes": count_bytes,
    "peak_memory": count_peak_memory,
}
