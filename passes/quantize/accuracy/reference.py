"""The quantized layers of a graph, each beside itself in the float graph."""

from dataclasses import dataclass

import torch
from torch import fx

from ....ir import rewrite
from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, only_user
from ...prune.groups import layer_name
from ..placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from ..rules import WEIGHT_AXIS, Roles, stored_weight


@dataclass(frozen=True)
class Layer:
    """A product with a quantized weight, the same call of the float graph, and what follows before the quantizer.

    epilogue  the batch norm and the clip that alone read the product, in order; of the quantized graph
    """

    product: fx.Node
    twin: fx.Node
    epilogue: tuple[fx.Node, ...]

    @property
    def quantizer(self) -> fx.Node:
        """The weight's quantizer."""
        return arguments(self.product).weight

    @property
    def weight(self) -> str:
        return str(arguments(self.quantizer).self.target)

    @property
    def name(self) -> str:
        return layer_name(self.weight)


def float_form(graph: Graph) -> Graph:
    """A copy without quantizers; its other nodes have the same names. The graph itself stays as it is."""
    twin = graph.copy()
    for quantizer in twin.calls(ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER):
        source = quantizer.args[0]
        assert isinstance(source, fx.Node)
        rewrite.replace(twin, quantizer, source)
    rewrite.tidy(twin)
    twin.properties -= {"fake-quant", "calibrated"}
    return twin


def quantized_layers(graph: Graph, whole: Graph) -> list[Layer]:
    """All products with a quantized weight, in the order of the graph. `whole` is its `float_form`."""
    roles, twins = Roles(graph), {node.name: node for node in whole.nodes}
    products = [n for n in graph.calls(*WEIGHT_AXIS) if is_op(arguments(n).weight, WEIGHT_QUANTIZER)]
    return [Layer(node, twins[node.name], _epilogue(roles, node)) for node in products]


def why_not_own(graph: Graph, product: fx.Node) -> str | None:
    """Why the weight and bias of a product cannot be changed for it alone; None if they can."""
    weight, bias = stored_weight(product), arguments(product).bias
    for held in (weight, bias):
        if held is None and held is bias:
            continue
        if held is None or held.op != "get_attr":
            return "its weight is computed"
        others = {p for reader in graph.weight_readers(str(held.target)) for p in _products_behind(reader)} - {product}
        if others:
            return f"its weight '{held.target}' is shared with '{min(p.name for p in others)}'"
    return None


def channel_dim(product: fx.Node, rank: int) -> int:
    """The dim that holds the channels, of an input or output of this rank: the last of a linear layer, of a conv the
    one before its spatial dims."""
    spatial = 0 if is_op(product, "linear") else arguments(product).weight.meta["val"].ndim - 2
    return rank - 1 - spatial


def shift_bias(graph: Graph, product: fx.Node, amount: torch.Tensor) -> None:
    """Add a number [channels] to every output channel of a product, with a new bias where it has none."""
    call, weight = arguments(product), stored_weight(product)
    assert weight is not None
    held = graph.weight(weight)
    amount = amount.to(held)
    if call.bias is not None:
        rewrite.set_weight(graph, str(call.bias.target), graph.weight(call.bias) + amount)
        return
    parameter = torch.nn.Parameter(amount, held.requires_grad)
    name = f"{layer_name(str(weight.target))}.bias"
    rewrite.set_argument(graph, product, "bias", rewrite.add_weight(graph, name, parameter, before=product))


def _products_behind(reader: fx.Node) -> list[fx.Node]:
    return list(reader.users) if is_op(reader, WEIGHT_QUANTIZER) else [reader]


def _epilogue(roles: Roles, product: fx.Node) -> tuple[fx.Node, ...]:
    found: list[fx.Node] = []
    reader = only_user(product)
    while reader is not None and roles.fused_head(reader) is product:
        found.append(reader)
        reader = only_user(reader)
    return tuple(found)
