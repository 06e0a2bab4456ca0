"""One run of a graph with other tensors in place of its weights, and an eye on its values."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import writes
from ...quantize.collect import bind_inputs

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
