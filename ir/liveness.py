"""When each value of a graph is in memory, and the most memory that is in use at once."""

from dataclasses import dataclass

import numpy as np
from torch import fx

from .graph import Graph
from .ops import is_view, writes


@dataclass(frozen=True)
class Liveness:
    """Values that own memory, run in graph order; views and in-place results share the memory of their first input.

    owners   the nodes whose values own memory
    start    for each of them the moment it is made
    end      the last moment it, or a view of it, is read
    moments  their number
    """

    owners: tuple[fx.Node, ...]
    start: np.ndarray
    end: np.ndarray
    moments: int

    @staticmethod
    def of(graph: Graph) -> "Liveness":
        order = [n for n in graph.nodes if n.op in ("placeholder", "call_function", "output")]
        owner: dict[fx.Node, fx.Node] = {}
        first: dict[fx.Node, int] = {}
        last: dict[fx.Node, int] = {}
        for at, node in enumerate(order):
            inputs = node.all_input_nodes
            viewed = node.op == "call_function" and (is_view(node) or writes(node)) and inputs[0] in owner
            owner[node] = owner[inputs[0]] if viewed else node
            first.setdefault(owner[node], at)
            for read in (node, *inputs):
                if read in owner:
                    last[owner[read]] = at
        owners = tuple(node for node in first if node.op != "output")
        start, end = (np.array([when[node] for node in owners], np.int64) for when in (first, last))
        return Liveness(owners, start, end, len(order))

    def profile(self, sizes: np.ndarray) -> np.ndarray:
        """[moments]: what is in use at each moment, from the size of each owner's value (exact integers)."""
        change = np.zeros(self.moments + 1, np.int64)
        np.add.at(change, self.start, sizes)
        np.subtract.at(change, self.end + 1, sizes)
        return np.cumsum(change[:-1])
