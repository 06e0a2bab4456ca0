"""The cut graph beside the graph it was made of, on the user's data."""

from collections.abc import Iterator

import numpy as np
import torch

from ....ir.graph import Graph
from ....ir.ops import arguments
from ...base import Context
from ...layers.side_by_side import SideBySide
from ..index.index_graph import IndexGraph
from ..survivors import thin
from .places import Place

WHERE = "compensate"


class Comparison:
    """Both graphs in eval form, run over all data up to one place after the other, in the order of the graph.

    whole  the graph before the cut; its nodes have the names of those that the cut left
    graph  the graph that `index` describes, now cut
    alive  for every atom whether it survived
    """

    def __init__(self, whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, ctx: Context):
        self.graph, self._index, self._alive = graph, index, alive
        self._both = SideBySide(whole, graph, ctx, WHERE)

    def outputs(self, place: Place) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For every batch (input, output, wanted output) of a call of the cut graph as it is by now."""
        (dims,) = self._index.values[place.node]
        whole, cut = self._both.before, self._both.after
        for before, after in self._both.run_to(place.twin, place.node):
            wanted = thin(whole.evaluate(before, place.twin), dims, self._alive)
            yield cut.read(after, place.operand), cut.evaluate(after, place.node), wanted

    def inputs(self, place: Place) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For every batch the input of a call of the cut graph as it is by now, and what is left of the whole one."""
        (dims,) = self._index.values[place.operand]
        whole, cut = self._both.before, self._both.after
        for before, after in self._both.run_to(place.twin, place.node):
            wanted = thin(whole.read(before, arguments(place.twin).input), dims, self._alive)
            yield cut.read(after, place.operand), wanted
