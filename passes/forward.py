"""One run of a graph with other tensors in place of its weights, and an eye on its values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..ir.graph import Graph
from ..ir.ops import writes
from ..ir.shapes import input_nodes, is_constant_input

Watch = Callable[[fx.Node, Any], None]


def forward(
    graph: Graph,
    inputs: tuple[torch.Tensor, ...],
    weights: Mapping[int, torch.Tensor] | None = None,
    watch: Watch | None = None,
) -> Any:
    """The graph's outputs, nested as the model gives them.

    weights  id of a weight -> what to read in its place
    watch    is shown every node with its value
    """
    leaves = _Forward(graph, weights or {}, watch).run(
        initial_env=bind_inputs(graph, inputs), enable_io_processing=False
    )
    return graph.module.graph.process_outputs(leaves)


def bind_inputs(graph: Graph, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """Values of all placeholders, for an interpreter: the tensors given, and the constants that capture fixed."""
    structure = graph.module.graph
    constants = {n: n.meta["val"] for n in structure.find_nodes(op="placeholder") if is_constant_input(n)}
    return {**constants, **dict(zip(input_nodes(structure), inputs, strict=True))}


class _Forward(fx.Interpreter):
    def __init__(self, graph: Graph, weights: Mapping[int, torch.Tensor], watch: Watch | None):
        super().__init__(graph.module)
        self.owner, self.weights, self.watch = graph, weights, watch

    def run_node(self, n: fx.Node) -> Any:
        value = self._weight(n) if n.op == "get_attr" else super().run_node(n)
        if self.watch is not None:
            self.watch(n, value)
        return value

    def _weight(self, node: fx.Node) -> Any:
        value = self.owner.weight(node)
        value = self.weights.get(id(value), value)
        if isinstance(value, torch.Tensor) and any(map(writes, node.users)):
            return value.clone()  # a graph that counts its calls counts none of these
        return value
