"""A graph beside the graph it was made of, run over the same data up to one call after the other."""

from collections.abc import Iterator

from torch import fx

from ...ir.graph import Graph
from ..base import Context
from .walk import Values, Walk, bytes_of

HELD_BYTES = 2**29  # of values in use at one place, over all batches of both graphs


class SideBySide:
    """Both graphs in eval form, run over all data up to one place after the other, in the order of the graph.

    The values in use at a place are held for the next one if those of all batches fit `HELD_BYTES`. If not, the next
    run begins at the last place where they did, or with the data. Weights may change between two places: behind the
    last place in `whole`, behind and at the last place in `graph`.

    whole, graph  each runs by itself on the same inputs
    where         who asks for the data, for messages
    """

    def __init__(self, whole: Graph, graph: Graph, ctx: Context, where: str):
        self.graph, self._ctx, self._where = graph, ctx, where
        self.before, self.after = Walk(whole), Walk(graph)
        self._held: list[tuple[Values, Values]] | None = None
        self._starts = (0, 0)

    def run_to(self, twin: fx.Node, node: fx.Node) -> Iterator[tuple[Values, Values]]:
        """For every batch the values of both graphs just before a call of `whole` and a call of `graph`."""
        reached: list[tuple[Values, Values]] | None = []
        taken = 0
        for before, after in self._held if self._held is not None else self._read():
            state = (
                self.before.advance(before, self._starts[0], twin),
                self.after.advance(after, self._starts[1], node),
            )
            yield state
            taken += sum(map(bytes_of, state))
            reached = [*reached, state] if reached is not None and taken <= HELD_BYTES else None
        if reached is not None:
            self._held = reached
            self._starts = (self.before.position(twin), self.after.position(node))

    def _read(self) -> Iterator[tuple[Values, Values]]:
        for inputs in self._ctx.batches(self.graph, self._where):
            yield self.before.start(inputs), self.after.start(inputs)
