"""A model without some of its channels, for as long as it takes to measure it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import WEIGHTED_PRODUCTS, arguments, is_op
from .cut import cut
from .groups import Groups
from .index.index_graph import IndexGraph
from .index.relation import Dim
from .score.slices import weight_slices


class Trials:
    """Graphs without some groups, made from copies: the graph that `groups` describes is never changed.

    Zeroing everything that a group owns gives what its removal gives, and costs nothing, as long as every sum over its
    channels is a product with those weights. Where an op mixes the channels (a layer norm counts the zeros too) or
    multiplies two activations along them, a copy is cut instead.
    """

    def __init__(self, groups: Groups):
        self.groups, self.index = groups, groups.index
        self.copy = groups.index.graph.copy()
        self.slices = weight_slices(groups)
        self.cut_only = self._groups_to_cut()

    @contextmanager
    def without(self, removed: np.ndarray) -> Iterator[Graph]:
        """The graph without the groups of these numbers. It is to be read, and only inside the `with`."""
        if self.cut_only[removed].any():
            yield self._cut(removed)
            return
        masked = self._mask(removed)
        try:
            yield self.copy
        finally:
            with torch.no_grad():
                for name in masked:
                    self.copy.weight(name).copy_(self.index.graph.weight(name))

    def _mask(self, removed: np.ndarray) -> list[str]:
        """Zero what the groups own. Returns the names of the weights that were touched."""
        lost = np.zeros(self.groups.count + 1, bool)  # the last one is for atoms without a group, number -1
        lost[removed] = True
        touched = []
        for name, slices in self.slices.items():
            masks = [torch.from_numpy(lost[part.spread()]) for part in slices if lost[part.number].any()]
            weight = self.copy.weight(name)
            with torch.no_grad():
                for mask in masks:
                    weight.view(slices[0].shape).masked_fill_(mask.to(weight.device), 0)
            touched += [name] * bool(masks)
        return touched

    def _cut(self, removed: np.ndarray) -> Graph:
        """A copy has the same atoms under the same numbers."""
        alive = np.ones(self.groups.count, bool)
        alive[removed] = False
        twin = self.index.graph.copy()
        cut(IndexGraph(twin), self.groups.alive_atoms(alive))
        return twin

    def _groups_to_cut(self) -> np.ndarray:
        """[groups]: whether masking it would differ from cutting it."""
        found = np.zeros(self.groups.count + 1, bool)
        for dims in self.index.mixed.values():
            for dim in dims:
                found[self.groups.number[dim]] = True
        for node, contracted in self.index.contracted.items():
            for operand, position in contracted:
                dim = self.index[operand][position]
                if not self._multiplies_weights(node, dim):
                    found[self.groups.number[dim]] = True
        return found[:-1]

    def _multiplies_weights(self, node: fx.Node, dim: Dim) -> bool:
        """One factor along the dim is a parameter, so that zeros in it leave nothing of the other."""
        if is_op(node, *WEIGHTED_PRODUCTS):
            return self._is_parameter(arguments(node).weight)
        label = self.index.components.label
        factors = [self.index[source] for source in node.all_input_nodes if self._is_parameter(source)]
        return any(np.array_equal(label[other], label[dim]) for dims in factors for other in dims)

    def _is_parameter(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and isinstance(self.index.graph.weight(node), torch.nn.Parameter)
