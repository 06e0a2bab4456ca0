"""Removing atoms from a graph: weights lose indices, shape arguments are recounted."""

import operator
from collections.abc import Callable
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import fx

from ...ir import rewrite
from ...ir.graph import set_call_argument
from ...ir.ops import arguments, tensors
from ...ir.shapes import memory_order, resized
from .index.index_graph import IndexGraph
from .index.relation import Dim, Dims
from .index.rules import find_refit
from .index.rules.shuffle import Shuffle
from .survivors import Survivors


class Cut:
    """One removal, as the refits of the rules see it.

    alive   for every atom whether it survives
    """

    def __init__(self, index: IndexGraph, alive: np.ndarray):
        self.index, self.graph, self.alive = index, index.graph, alive

    def dims(self, node: fx.Node) -> Dims:
        return self.index[node]

    def all_dims(self, node: fx.Node) -> list[Dims]:
        return self.index.values[node]

    def count(self, dim: Dim) -> int:
        return int(self.alive[dim].sum())

    def is_cut(self, dim: Dim) -> bool:
        return not self.index.is_fixed(dim) and self.count(dim) < len(dim)

    def blocks(self, dim: Dim, number: int) -> int:
        """Of `number` equal blocks of a dim, how many have a survivor."""
        return int(self.alive[dim].reshape(number, -1).any(axis=1).sum())

    def set(self, node: fx.Node, name: str, value: Any) -> None:
        set_call_argument(node, name, value)

    def resize(self, node: fx.Node, name: str, dims: Dims) -> None:
        """Write the surviving extents into a size argument; -1 and symbolic extents that do not shrink stay."""
        old = getattr(arguments(node), name)
        if any(self.is_cut(dim) for dim in dims):
            self.set(node, name, [self._extent(node, v, dim) for v, dim in zip(old, dims, strict=True)])

    def recast(self, node: fx.Node, target: Callable, args: tuple) -> None:
        """Make the node another call with the same results; its identity is kept for the proof."""
        node.target, node.args, node.kwargs = target, args, {}

    def select(self, node: fx.Node, source: fx.Node, at: int, positions: np.ndarray) -> None:
        """Make the node a choice of these positions (before the cut) of a dim of `source`, whatever it was."""
        dim = self.dims(source)[at]
        rank = np.cumsum(self.alive[dim]) - 1
        kept = torch.from_numpy(rank[positions[self.alive[dim[positions]]]])
        index = rewrite.add_weight(self.graph, f"{node.name}_index", kept, before=node)
        self.recast(node, torch.ops.aten.index_select.default, (source, at, index))

    def permute(self, node: fx.Node, shuffle: Shuffle) -> None:
        if self.is_cut(self.dims(shuffle.source)[shuffle.dim]):
            self.select(node, shuffle.source, shuffle.dim, shuffle.positions)

    def _extent(self, node: fx.Node, value: Any, dim: Dim) -> Any:
        if value == -1 or not self.is_cut(dim):
            return value
        if not isinstance(value, fx.Node):
            return self.count(dim)
        common = gcd(self.count(dim), len(dim))  # a symbolic product such as batch * channels is scaled
        scaled = self._arithmetic(operator.mul, value, self.count(dim) // common, node)
        return self._arithmetic(operator.floordiv, scaled, len(dim) // common, node)

    def _arithmetic(self, function: Callable, value: fx.Node, number: int, before: fx.Node) -> fx.Node:
        return value if number == 1 else rewrite.insert(self.graph, function, (value, number), before=before)


def cut(index: IndexGraph, alive: np.ndarray) -> Survivors:
    """Remove all atoms that are not `alive` from the graph that `index` was made of.

    Returns what is left of the weights, for tensors of their shapes elsewhere (momentum, averages).
    Weights keep their names, ties and `requires_grad`. The graph's types are inferred anew.
    Raises VerifyError where the remaining shapes do not fit together (a rule is wrong).
    """
    removal = Cut(index, alive)
    for node in [node for node in index.graph.nodes if node in index.values]:
        if shuffle := index.shuffles.get(node):
            removal.permute(node, shuffle)
        elif (refit := find_refit(node)) is not None:
            refit(removal, node, arguments(node))
    survivors = Survivors.of(index, alive)
    weights = {name: survivors.take(name, index.graph.weight(name)) for name in survivors}
    rewrite.set_weights(index.graph, weights)
    _retype(removal)
    rewrite.tidy(index.graph)
    return survivors


def _retype(removal: Cut) -> None:
    """Write the surviving extents into the nodes' types, which is much faster than to infer them.

    The proof runs every node and compares the shapes; the verifier infers them anew after the pass.
    """
    retyped = _Retyped(removal)
    for node, values in removal.index.values.items():
        if node.op == "call_function":
            recorded = node.meta["val"]
            new = [retyped(tensor, dims) for tensor, dims in zip(tensors(recorded), values, strict=True)]
            node.meta["val"] = new[0] if isinstance(recorded, torch.Tensor) else type(recorded)(new)


class _Retyped:
    """Types with the surviving extents. Equal ones are made once: most of a network's values come in a few shapes."""

    def __init__(self, removal: Cut):
        self.removal = removal
        self.known: dict[tuple, torch.Tensor] = {}

    def __call__(self, value: torch.Tensor, dims: Dims) -> torch.Tensor:
        is_cut = [self.removal.is_cut(dim) for dim in dims]
        if not any(is_cut):
            return value
        new = [self._extent(e, d) if cut else e for cut, d, e in zip(is_cut, dims, value.shape, strict=True)]
        order = memory_order(value)
        key = (value.dtype, order, *(e if isinstance(e, int) else e.node.expr for e in new))
        if key not in self.known:
            self.known[key] = resized(value, new, order)
        return self.known[key]

    def _extent(self, extent: int | torch.SymInt, dim: Dim) -> int | torch.SymInt:
        """A symbolic extent, such as batch times heads, shrinks in proportion."""
        left = self.removal.count(dim)
        if isinstance(extent, int):
            return left
        common = gcd(left, len(dim))
        return extent * (left // common) // (len(dim) // common)
