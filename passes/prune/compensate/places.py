"""Where a cut changed what surviving channels compute, and what can be adjusted there."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from ....ir import rewrite
from ....ir.graph import Graph
from ....ir.ops import TRANSPOSED_CONVS, WEIGHTED_PRODUCTS, arguments, is_op, only_user, op_name
from ...base import Skip
from ..groups import layer_name
from ..index.index_graph import IndexGraph


@dataclass(frozen=True)
class Place:
    """A call of the cut graph and the same call before the cut, with its weight (a batch norm: its running mean)."""

    node: fx.Node
    twin: fx.Node
    weight: str

    @property
    def layer(self) -> str:
        return layer_name(self.weight).removesuffix(".running_mean")

    @property
    def operand(self) -> fx.Node:
        return arguments(self.node).input

    @property
    def is_batch_norm(self) -> bool:
        return is_op(self.node, "batch_norm")


def find_places(
    whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, methods: tuple[str, ...]
) -> tuple[list[Place], list[Skip]]:
    """The products and batch norms that the methods can adjust, in the order of the graph.

    Products are those that sum over fewer inputs than before; batch norms those behind them.
    Returns also the calls where nothing can be adjusted, with the reason.
    """
    twins = {node.name: node for node in whole.nodes}
    places: list[Place] = []
    skipped: list[Skip] = []
    for node in _changed(whole, graph, index, alive, twins):
        is_norm = is_op(node, "batch_norm")
        if not set(methods) & ({"batch-norm"} if is_norm else {"bias", "reconstruct"}):
            continue
        if why := _why_not(graph, node):
            skipped.append(Skip.at(node, why))
        else:
            call = arguments(node)
            weight = call.running_mean if is_norm else call.weight
            places.append(Place(node, twins[node.name], str(weight.target)))
    return places, skipped


def shift(graph: Graph, node: fx.Node, amount: torch.Tensor) -> None:
    """Add a number to every output channel of a product: to its bias, else to what follows, else as a new bias.

    A batch norm in eval form that alone reads the product takes it into its running mean, so that the model keeps its
    parameters.
    """
    call, reader = arguments(node), only_user(node)
    weight = graph.weight(call.weight)
    amount = amount.to(weight)
    if call.bias is not None:
        name = str(call.bias.target)
        rewrite.set_weight(graph, name, graph.weight(name) + amount)
    elif reader is not None and is_op(reader, "batch_norm") and _why_not(graph, reader) is None:
        name = str(arguments(reader).running_mean.target)
        rewrite.set_weight(graph, name, graph.weight(name) - amount)
    else:
        name = f"{layer_name(str(call.weight.target))}.bias"
        bias = rewrite.add_weight(graph, name, torch.nn.Parameter(amount, weight.requires_grad), before=node)
        rewrite.set_argument(graph, node, "bias", bias)


def _changed(
    whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, twins: dict[str, fx.Node]
) -> Iterator[fx.Node]:
    """Calls that sum over fewer inputs than before, and batch norms behind them."""
    touched: set[fx.Node] = set()
    for node in graph.nodes:
        twin = twins.get(node.name)
        lost = twin is not None and _lost(whole, graph, index, alive, node, twin)
        if lost or any(source in touched for source in node.all_input_nodes):
            touched.add(node)
        if lost or (twin is not None and node in touched and is_op(node, "batch_norm")):
            yield node


def _lost(whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, node: fx.Node, twin: fx.Node) -> bool:
    """True where a surviving output summed over something that is gone.

    A depthwise conv sums over a dim that was cut, and yet each output that is left has all of its inputs.
    """
    if all(alive[index[operand][dim]].all() for operand, dim in index.contracted.get(node, ())):
        return False
    return not is_op(node, *WEIGHTED_PRODUCTS) or _summed(graph, node) < _summed(whole, twin)


def _summed(graph: Graph, node: fx.Node) -> int:
    """The input channels that one output of a product sums over."""
    call = arguments(node)
    extents = call.weight.meta["val"].shape
    if op_name(node) in TRANSPOSED_CONVS:
        return int(extents[0]) // call.groups
    return int(extents[-1] if op_name(node) == "linear" else extents[1])


def _why_not(graph: Graph, node: fx.Node) -> str | None:
    """Why nothing can be adjusted at a call, None if something can."""
    if is_op(node, "batch_norm"):
        call = arguments(node)
        if call.running_mean is None or call.training:
            return "it uses the statistics of its batch"
        owned = [call.running_mean, call.running_var]
    elif is_op(node, *WEIGHTED_PRODUCTS):
        call = arguments(node)
        if call.weight.meta["val"].ndim < 2:
            return "its weight is a vector"
        owned = [call.weight, *([call.bias] if call.bias is not None else [])]
    else:
        return "it multiplies two values: there is no weight to adjust"
    for weight in owned:
        if weight.op != "get_attr":
            return "its weight is computed"
        if len(graph.weight_readers(str(weight.target))) > 1:
            return f"its weight '{weight.target}' is shared"
    return None
