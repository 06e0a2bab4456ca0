"""A graph run call by call, so that a run can stop at a call and go on from there later."""

from typing import Any

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import tensors
from ...ir.shapes import input_nodes, is_constant_input

Values = dict[fx.Node, Any]


class Walk:
    """The calls of a graph in order.

    Weights, and what is computed from weights alone (a quantized one), are read when they are used: they may change
    between two runs.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._of_weights: set[fx.Node] = set()
        for node in graph.nodes:
            reads = node.all_input_nodes
            if node.op == "call_function" and reads and all(n.op == "get_attr" or n in self._of_weights for n in reads):
                self._of_weights.add(node)
        calls = (node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output"))
        self._calls = [node for node in calls if node not in self._of_weights]
        self._position = {node: position for position, node in enumerate(self._calls)}
        last: dict[fx.Node, int] = {}
        for position, call in enumerate(self._calls):
            last.update(dict.fromkeys(call.all_input_nodes, position))
        self._dropped: dict[int, list[fx.Node]] = {}
        for value, position in last.items():
            self._dropped.setdefault(position, []).append(value)

    def start(self, inputs: tuple[torch.Tensor, ...]) -> Values:
        """The values before the first call. `inputs` are in the order of `graph.inputs`."""
        values: Values = dict(zip(input_nodes(self.graph.module.graph), inputs, strict=True))
        for node in self.graph.module.graph.find_nodes(op="placeholder"):
            if is_constant_input(node):
                values[node] = node.meta["val"]
        return values

    def advance(self, values: Values, start: int, node: fx.Node) -> Values:
        """The values that are in use just before a call, from those before call number `start`."""
        values = dict(values)
        for position in range(start, self._position[node]):
            call = self._calls[position]
            values[call] = self.evaluate(values, call)
            for used in self._dropped.get(position, ()):
                values.pop(used, None)
        return values

    def evaluate(self, values: Values, call: fx.Node) -> Any:
        args, kwargs = fx.map_arg((call.args, call.kwargs), lambda n: self.read(values, n))
        return call.target(*args, **kwargs)  # type: ignore[operator]

    def read(self, values: Values, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self.graph.weight(node)
        return self.evaluate(values, node) if node in self._of_weights else values[node]

    def position(self, node: fx.Node) -> int:
        return self._position[node]


def bytes_of(values: Values) -> int:
    """What the tensors among values take; views of one storage count once."""
    storages = {s.data_ptr(): s.nbytes() for v in values.values() for t in tensors(v) if (s := t.untyped_storage())}
    return sum(storages.values())
