"""What follows a product before its result is stored, as a function on rows."""

from collections.abc import Callable

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import CONVS, arguments, op_name
from .reference import Layer


def epilogue_of(graph: Graph, layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's batch norm and clip on [groups, n, outputs of a group], in the weights that they have now."""
    if not layer.epilogue:
        return lambda rows: rows
    spatial = arguments(layer.product).weight.meta["val"].ndim - 2 if op_name(layer.product) in CONVS else 0

    def apply(rows: torch.Tensor) -> torch.Tensor:
        value = rows.movedim(1, 0).flatten(1)  # [n, channels], and every spatial dim 1
        result = value[(..., *[None] * spatial)]
        source = layer.product
        for node in layer.epilogue:
            result = _call(graph, node, source, result)
            source = node
        return result.reshape(value.shape).unflatten(1, (rows.shape[0], -1)).movedim(0, 1)

    return apply


def _call(graph: Graph, node: fx.Node, source: fx.Node, value: torch.Tensor) -> torch.Tensor:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: value if n is source else graph.weight(n).detach())
    return node.target(*args, **kwargs)  # type: ignore[operator]
