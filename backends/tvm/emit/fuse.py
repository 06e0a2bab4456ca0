"""Which calls become one kernel: a conv or linear with the activation and residual add behind it, and
an expanding 1x1 conv with the depthwise conv that alone reads it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.integers.packed_weights import WEIGHT_ONLY
from ....ir.ops import arguments, is_op, only_user, op_name
from ..kernels import ACTIVATIONS, Epilogue, Window
from . import transposed
from .fuse_integers import IntegerPair, IntegerSum, integer_kernels
from .pair import Pair


@dataclass(frozen=True)
class Product:
    """A convolution or linear call and what is fused behind it. `result` is the node whose value the kernel yields."""

    node: fx.Node
    result: fx.Node
    epilogue: Epilogue
    residual: fx.Node | None = None

    @property
    def source(self) -> fx.Node:
        """What the kernel reads: the call's input, or what a zero-padding before it reads."""
        pad = zero_pad(self.node)
        return arguments(pad).self if pad else arguments(self.node).input


class ProductPair(Pair[Product]):
    """A pair in float."""


@dataclass(frozen=True)
class Plan:
    """kernels: result node -> what computes it; absorbed: nodes that no longer have a value of their own."""

    kernels: dict[fx.Node, Product | ProductPair | IntegerSum | IntegerPair]
    absorbed: frozenset[fx.Node]


def plan(graph: Graph, floats: Collection[torch.dtype] = (torch.float32,)) -> Plan:
    """Choose the fused kernels of a frozen graph. floats: dtypes that the target has an arithmetic for."""
    products: dict[fx.Node, Product] = {}
    claimed: set[fx.Node] = set()
    for node in graph.calls("conv2d", "conv_transpose2d", "linear", WEIGHT_ONLY):
        if has_kernel(node, floats):
            product = _with_epilogue(node, claimed)
            claimed |= set(_chain(product))
            products[product.result] = product
    pairs = {pair.result: pair for pair in _pairs(products)}
    pads = {pad for product in products.values() if (pad := zero_pad(product.node))}
    absorbed = claimed - set(products) | {pair.expand.result for pair in pairs.values()} | pads
    alone = {result: p for result, p in products.items() if result not in absorbed}
    integers = integer_kernels(graph)
    inner = {node for kernel in integers.values() for node in kernel.nodes()} - set(integers)
    return Plan({**alone, **pairs, **integers}, frozenset(absorbed | inner))


def has_kernel(node: fx.Node, floats: Collection[torch.dtype] = (torch.float32,)) -> bool:
    """A conv2d with numeric padding, conv_transpose2d or linear, whose weight and bias are the graph's own,
    in one of the dtypes `floats`.

    Those of packed weights always are: lower-weights makes no others.
    """
    if is_op(node, WEIGHT_ONLY):
        return True
    if node.target not in _PRODUCTS:
        return False
    call = arguments(node)
    is_weight = call.weight.op == "get_attr" and (call.bias is None or call.bias.op == "get_attr")
    if not is_weight or node.meta["val"].dtype not in floats:
        return False
    return _PRODUCTS[node.target](node)


def window(node: fx.Node) -> Window:
    """Kernel, stride, padding (top, bottom, left, right) and dilation of a conv2d, with a zero-padding before it."""
    call = arguments(node)
    vertical, horizontal = pair(call.padding)
    pad = zero_pad(node)
    left, right, top, bottom = arguments(pad).pad if pad else (0, 0, 0, 0)
    return Window(
        kernel=tuple(call.weight.meta["val"].shape[2:]),
        stride=pair(call.stride),
        padding=(vertical + top, vertical + bottom, horizontal + left, horizontal + right),
        dilation=pair(call.dilation),
    )


def zero_pad(node: fx.Node) -> fx.Node | None:
    """The call that pads a conv's input with zeros in height and width, for this conv alone."""
    if op_name(node) != "conv2d":
        return None
    pad = arguments(node).input
    if not is_op(pad, "pad", "constant_pad_nd") or only_user(pad) is not node:
        return None
    call = arguments(pad)
    is_zero = getattr(call, "mode", "constant") == "constant" and not call.value
    return pad if is_zero and len(call.pad) == 4 and all(isinstance(p, int) and p >= 0 for p in call.pad) else None


def pair(value: Any) -> tuple[int, int]:
    """A stride or the like as (vertical, horizontal); ATen allows one number for both."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(values[0]), int(values[-1])


def activation(node: fx.Node) -> Epilogue | None:
    """The epilogue that computes this call, None when it is no activation that kernels know."""
    rule = _ACTIVATION_RULES.get(op_name(node))
    found = rule(node) if rule else None
    return found if found is not None and found.activation in ACTIVATIONS else None


def is_pointwise(node: fx.Node) -> bool:
    """A 1x1 conv over all channels, without padding."""
    call = arguments(node)
    shape = window(node)
    return op_name(node) == "conv2d" and shape.kernel == (1, 1) and not any(shape.padding) and call.groups == 1


def is_depthwise(node: fx.Node) -> bool:
    """A conv with one input channel for each output channel."""
    if op_name(node) != "conv2d":
        return False
    out_channels, per_group = arguments(node).weight.meta["val"].shape[:2]
    return per_group == 1 and arguments(node).groups == out_channels > 1


def _is_batched(node: fx.Node) -> bool:
    return node.meta["val"].ndim == 4


def _with_epilogue(node: fx.Node, claimed: set[fx.Node]) -> Product:
    """Follow single users: [add] [activation], or [activation] [add]."""
    product = Product(node, node, Epilogue())
    while True:
        user = only_user(product.result)
        grown = _absorb(product, user) if user is not None and user not in claimed else None
        if grown is None:
            return product
        product = grown


def _absorb(product: Product, user: fx.Node) -> Product | None:
    """The product with `user` fused behind it, None where that does not fit."""
    epilogue = product.epilogue
    is_open = epilogue.residual != "after"
    found = activation(user)
    if found is not None and epilogue.activation is None:
        fused = replace(epilogue, activation=found.activation, bounds=found.bounds)
        return replace(product, result=user, epilogue=fused)
    if user.target is torch.ops.aten.add.Tensor and epilogue.residual is None and is_open:
        other = _other_operand(product.result, user)
        if other is not None:
            place = "after" if epilogue.activation else "before"
            return replace(product, result=user, epilogue=replace(epilogue, residual=place), residual=other)
    return None


def _other_operand(value: fx.Node, add: fx.Node) -> fx.Node | None:
    """What is added to `value`, where it is another tensor of the same shape."""
    left, right = add.args[:2]
    other = right if left is value else left
    if not isinstance(other, fx.Node) or other is value or arguments(add).alpha != 1:
        return None
    recorded = other.meta.get("val")
    dtype = value.meta["val"].dtype
    if not isinstance(recorded, torch.Tensor) or recorded.dtype != dtype or other.op == "get_attr":
        return None
    same = [str(s) for s in recorded.shape] == [str(s) for s in value.meta["val"].shape]
    return other if same else None


def _chain(product: Product) -> list[fx.Node]:
    nodes, node = [product.node], product.node
    while node is not product.result:
        user = only_user(node)
        assert user is not None
        nodes.append(node := user)
    return nodes


def _pairs(products: dict[fx.Node, Product]) -> list[ProductPair]:
    found = []
    for depthwise in products.values():
        expand = products.get(depthwise.source)
        if (
            is_depthwise(depthwise.node)
            and expand is not None
            and is_pointwise(expand.node)
            and window(expand.node).stride == (1, 1)
            and expand.epilogue.residual is None
            and depthwise.epilogue.residual is None
            and only_user(expand.result) in (depthwise.node, zero_pad(depthwise.node))
        ):
            found.append(ProductPair(expand, depthwise))
    return found


def _clip(node: fx.Node) -> Epilogue | None:
    call = arguments(node)
    low, high = (call.min_val, call.max_val) if hasattr(call, "min_val") else (call.min, call.max)
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return Epilogue(activation="relu6") if (low, high) == (0, 6) else Epilogue("clip", (float(low), float(high)))


def _gelu(node: fx.Node) -> Epilogue | None:
    return Epilogue(activation="gelu") if arguments(node).approximate == "none" else None


def _plain(name: str) -> Callable[[fx.Node], Epilogue]:
    return lambda node: Epilogue(activation=name)


_aten = torch.ops.aten
# The calls that kernels compute, and what must hold for one besides.
_PRODUCTS: dict[Any, Callable[[fx.Node], bool]] = {
    _aten.linear.default: lambda node: True,
    _aten.conv2d.default: _is_batched,
    _aten.conv_transpose2d.input: lambda node: _is_batched(node) and transposed.has_kernel(node),
}

_ACTIVATION_RULES: dict[str, Callable[[fx.Node], Epilogue | None]] = {
    **{name: _plain(name) for name in ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh")},
    "gelu": _gelu,
    "hardtanh": _clip,
    "clamp": _clip,
}
