"""The quantized layers of a graph, each beside itself in the float graph."""

from dataclasses import dataclass

import torch
from torch import fx

from ....ir import rewrite
from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, only_user
from ...prune.groups import layer_name
from ..placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from ..rules import WEIGHT_AXIS, Role, Roles, data_inputs, stored_weight


@dataclass(frozen=True)
class Layer:
    """A product with a quantized weight, the same call of the float graph, and what follows before the quantizer.

    epilogue    the batch norm and the clip that alone read the product, in order; of the quantized graph
    quantizers  the names of what quantizes its weight and its input, seen through calls that move values
    """

    product: fx.Node
    twin: fx.Node
    epilogue: tuple[fx.Node, ...]
    quantizers: tuple[str, ...]

    @property
    def quantizer(self) -> fx.Node | None:
        """The weight's quantizer; None where it has a scale per group of inputs, or is cast."""
        weight = arguments(self.product).weight
        return weight if is_op(weight, WEIGHT_QUANTIZER) else None

    @property
    def weight(self) -> str:
        weight = stored_weight(self.product)
        assert weight is not None
        return str(weight.target)

    @property
    def name(self) -> str:
        return layer_name(self.weight)


def float_form(graph: Graph, but: frozenset[str] = frozenset()) -> Graph:
    """A copy without quantizers, but for those of these names; its other nodes have the same names.

    The graph itself stays as it is.
    """
    twin = graph.copy()
    for quantizer in twin.calls(ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER):
        if quantizer.name not in but:
            bypass(twin, quantizer)
    rewrite.tidy(twin)
    if not but:
        twin.properties -= {"fake-quant", "calibrated"}
    return twin


def bypass(graph: Graph, quantizer: fx.Node) -> None:
    """Let the readers of a quantizer read what it quantized."""
    source = quantizer.args[0]
    assert isinstance(source, fx.Node)
    rewrite.replace(graph, quantizer, source)


def quantized_layers(graph: Graph, whole: Graph) -> list[Layer]:
    """All products with a stored weight that is rounded, in the order of the graph. `whole` is its `float_form`."""
    roles, twins = Roles(graph), {node.name: node for node in whole.nodes}
    products = [n for n in graph.calls(*WEIGHT_AXIS) if arguments(n).weight.op != "get_attr" and stored_weight(n)]
    return [Layer(n, twins[n.name], _epilogue(roles, n), _quantizers(roles, n)) for n in products]


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
    """The products that read a weight, directly or rounded; other readers stand for themselves."""
    if is_op(reader, WEIGHT_QUANTIZER, "view", "to"):
        return [product for user in reader.users for product in _products_behind(user)]
    return [reader]


def _epilogue(roles: Roles, product: fx.Node) -> tuple[fx.Node, ...]:
    found: list[fx.Node] = []
    reader = only_user(product)
    while reader is not None and roles.fused_head(reader) is product:
        found.append(reader)
        reader = only_user(reader)
    return tuple(found)


def _quantizers(roles: Roles, product: fx.Node) -> tuple[str, ...]:
    weight, found = arguments(product).weight, []
    while weight.op != "get_attr" and not is_op(weight, WEIGHT_QUANTIZER):
        weight = weight.args[0]
    if is_op(weight, WEIGHT_QUANTIZER):
        found.append(weight.name)
    values = [arguments(product).input]
    for value in values:  # grows while it is walked
        if is_op(value, ACTIVATION_QUANTIZER):
            found.append(value.name)
        elif roles[value] in (Role.PASS, Role.JOIN):
            values.extend(data_inputs(value))
    return tuple(found)
