"""A graph's function in training form: it shares the graph's weights, and the graph itself stays in eval form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ...ir import shapes
from ...ir.graph import Graph, GraphModule, attribute, build_module


@dataclass(frozen=True)
class Values:
    """What one run of a model gave: its outputs, nested as the model nests them, and the values that were asked for."""

    outputs: Any
    inner: tuple[torch.Tensor, ...]


class TrainingForm:
    """Runs a graph's function with its own weights, in training or eval form, and shows inner values.

    module  takes one value per placeholder and returns (outputs..., inner values...), flat; its parameters and buffers
            are those of the graph, not copies
    """

    def __init__(self, graph: Graph, inner: Sequence[fx.Node] = (), *, training: bool = True):
        self._constants = [_constant(node) for node in graph.module.graph.find_nodes(op="placeholder")]
        self._outputs = graph.module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        self.module = _build(graph, inner)
        self.module.train(training)

    def __call__(self, tensors: Iterable[torch.Tensor]) -> Values:
        """tensors: the model's inputs, in the order of `Graph.inputs`."""
        remaining = iter(tensors)
        leaves = [next(remaining) if is_input else value for is_input, value in self._constants]
        flat = self.module(*leaves)
        count = self._outputs.num_leaves
        return Values(pytree.tree_unflatten(flat[:count], self._outputs), tuple(flat[count:]))


def unique_weights(graph: Graph) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that the graph reads, once: of tied names the first."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in graph.weights.items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def _constant(placeholder: fx.Node) -> tuple[bool, Any]:
    """(whether a tensor is to be given, the value that the model was captured with)."""
    is_constant = shapes.is_constant_input(placeholder)
    return not is_constant, placeholder.meta["val"] if is_constant else None


def _build(graph: Graph, inner: Sequence[fx.Node]) -> GraphModule:
    structure, twins = fx.Graph(), {}
    outputs = structure.graph_copy(graph.module.graph, twins)
    structure.output((*pytree.tree_leaves(outputs), *(twins[node] for node in inner)))
    names = dict.fromkeys(str(node.target) for node in graph.module.graph.find_nodes(op="get_attr"))
    return build_module({name: attribute(graph.module, name) for name in names}, structure)
