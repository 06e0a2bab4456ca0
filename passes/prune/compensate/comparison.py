"""The cut graph beside the graph it was made of, on the user's data."""

from collections.abc import Iterator

import numpy as np
import torch

from ....ir.graph import Graph
from ....ir.ops import arguments
from ...base import Context
from ..index.index_graph import IndexGraph
from ..survivors import thin
from .places import Place
from .walk import Values, Walk, bytes_of

WHERE = "compensate"
HELD_BYTES = 2**29  # of values in use at one place, over all batches of both graphs


class Comparison:
    """Both graphs in eval form, run over all data up to one place after the other, in the order of the graph.

    The values in use at a place are held for the next one if those of all batches fit `HELD_BYTES`. If not, the next
    run begins at the last place where they did, or with the data.

    whole  the graph before the cut; its nodes have the names of those that the cut left
    graph  the graph that `index` describes, now cut
    alive  for every atom whether it survived
    """

    def __init__(self, whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, ctx: Context):
        self.graph, self._index, self._alive, self._ctx = graph, index, alive, ctx
        self._before, self._after = Walk(whole), Walk(graph)
        self._held: list[tuple[Values, Values]] | None = None
        self._starts = (0, 0)

    def outputs(self, place: Place) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For every batch (input, output, wanted output) of a call of the cut graph as it is by now."""
        (dims,) = self._index.values[place.node]
        for before, after in self._run_to(place):
            wanted = thin(self._before.evaluate(before, place.twin), dims, self._alive)
            yield self._after.read(after, place.operand), self._after.evaluate(after, place.node), wanted

    def inputs(self, place: Place) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For every batch the input of a call of the cut graph as it is by now, and what is left of the whole one."""
        (dims,) = self._index.values[place.operand]
        for before, after in self._run_to(place):
            wanted = thin(self._before.read(before, arguments(place.twin).input), dims, self._alive)
            yield self._after.read(after, place.operand), wanted

    def _run_to(self, place: Place) -> Iterator[tuple[Values, Values]]:
        """For every batch the values of both graphs just before the place."""
        reached: list[tuple[Values, Values]] | None = []
        taken = 0
        for before, after in self._held if self._held is not None else self._read():
            state = (
                self._before.advance(before, self._starts[0], place.twin),
                self._after.advance(after, self._starts[1], place.node),
            )
            yield state
            taken += sum(map(bytes_of, state))
            reached = [*reached, state] if reached is not None and taken <= HELD_BYTES else None
        if reached is not None:
            self._held = reached
            self._starts = (self._before.position(place.twin), self._after.position(place.node))

    def _read(self) -> Iterator[tuple[Values, Values]]:
        for inputs in self._ctx.batches(self.graph, WHERE):
            yield self._before.start(inputs), self._after.start(inputs)
