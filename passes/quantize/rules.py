"""Per-op traits: what each op means to a quantizer. A new op is a new row."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import arguments, is_getitem, is_op, only_user, op_name


class Role(Enum):
    """How an op stands to the scales of the values around it."""

    PRODUCT = "multiplies by a stored weight: input and weight are quantized, the sum is int32"
    MATMUL = "multiplies two activations, both from integers: each has its own scale, the sum is int32"
    ARITHMETIC = "combines activations in integers: each input has its own scale, the output another"
    UNARY = "maps one activation to another range in integers (a table, a mean): input and output have own scales"
    JOIN = "puts activations side by side unchanged: all inputs and the output share one scale"
    PASS = "moves values without changing them: the output shares the input's scale, no second quantizer"
    FLOAT = "has no integer form: it stays in float"


# The axis of the weight that counts output channels (within a group, for a transposed conv).
WEIGHT_AXIS = {
    **dict.fromkeys(("conv1d", "conv2d", "linear"), 0),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), 1),
}

# Monotone clips, which an integer kernel does as it stores: the quantizer sits behind them, on the clipped range.
CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})

# Functions of each element alone, with a value for every real number: a table of 256 entries.
ELEMENTWISE = CLIPS | {
    "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "tanh", "leaky_relu", "elu", "mish", "softplus", "selu",
    "celu", "log_sigmoid", "hardshrink", "softshrink", "threshold", "abs", "neg", "square", "erf", "exp", "sin", "cos",
    "atan", "div", "pow",
}  # fmt: skip

_ROLES = {
    **dict.fromkeys(WEIGHT_AXIS, Role.PRODUCT),
    **dict.fromkeys(("matmul", "mm", "bmm"), Role.MATMUL),
    **dict.fromkeys(("add", "sub", "mul"), Role.ARITHMETIC),
    **dict.fromkeys(ELEMENTWISE, Role.UNARY),
    **dict.fromkeys(
        (
            "batch_norm", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean",
            "upsample_bilinear2d",
        ),
        Role.UNARY,
    ),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), Role.JOIN),
    **dict.fromkeys(
        (
            "max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "amin", "view",
            "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims",
            "movedim", "moveaxis", "mT", "t", "squeeze", "unsqueeze", "expand", "broadcast_to", "tile", "repeat",
            "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "index_select", "flip",
            "roll", "contiguous", "clone", "alias", "dropout", "feature_dropout", "pad", "constant_pad_nd",
            "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest2d",
            "fake_quantize_per_tensor_affine",
        ),
        Role.PASS,
    ),
}  # fmt: skip

_FILLS = {"pad": "value", "constant_pad_nd": "value"}
# Functions of one value where this argument is such a number.
_NUMBERS = {"div": ("other", lambda n: n != 0), "pow": ("exponent", lambda n: n > 0 and n == int(n))}


class Roles:
    """The role of every call of a graph, and why those in FLOAT are there. `kept` are there, each for its reason."""

    def __init__(self, graph: Graph, kept: Mapping[fx.Node, str] | None = None):
        self._kept = kept or {}
        self._roles: dict[fx.Node, Role] = {}
        self._why: dict[fx.Node, str] = {}
        self._constants: set[fx.Node] = set()
        for node in graph.nodes:
            self._add(node)

    def __getitem__(self, node: fx.Node) -> Role:
        return self._roles.get(node, Role.FLOAT)

    def why_float(self, node: fx.Node) -> str:
        return self._why.get(node, "")

    def fused_head(self, node: fx.Node) -> fx.Node | None:
        """The op whose epilogue this clip or batch norm is: the node is its only reader. None for other nodes.

        conv -> batch_norm -> relu: the head of both is the conv, and only the relu's value is ever stored.
        """
        if not is_op(node, "batch_norm", *CLIPS):
            return None
        (source,) = data_inputs(node)
        if only_user(source) is not node or source.op != "call_function":
            return None
        if is_op(node, "batch_norm"):
            return source if is_op(source, *WEIGHT_AXIS) else None
        if self[source] in (Role.PASS, Role.JOIN) or is_op(source, *CLIPS):
            return None
        return self.fused_head(source) or source

    def sources(self, value: fx.Node) -> list[fx.Node]:
        """The values whose numbers this one holds, looking back through ops that only move numbers."""
        if self[value] not in (Role.PASS, Role.JOIN):
            return [value]
        found = [origin for read in data_inputs(value) for origin in self.sources(read)]
        return list(dict.fromkeys(found))

    def _add(self, node: fx.Node) -> None:
        reads = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and all(r in self._constants for r in reads)):
            self._constants.add(node)
        if node.op != "call_function":
            return
        if is_getitem(node) and isinstance(node.args[0], fx.Node):
            self._roles[node] = self[node.args[0]]
        elif why := self._kept.get(node) or _why_float(node) or self._why_constant(node):
            self._why[node] = why
        else:
            self._roles[node] = _ROLES[op_name(node)]

    def _why_constant(self, node: fx.Node) -> str:
        constants = [value for value in data_inputs(node) if value in self._constants]
        return "it reads a constant as an activation" if constants else ""


def only_moves(node: fx.Node) -> bool:
    """True for a call that changes no number, of float or integer values."""
    return is_getitem(node) or _ROLES.get(op_name(node)) in (Role.PASS, Role.JOIN)


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The activations that a call reads, without weights and sizes."""
    if _ROLES.get(op_name(node)) in (Role.ARITHMETIC, Role.MATMUL):
        return node.all_input_nodes
    first: Any = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    values = first if isinstance(first, (list, tuple)) else [first]
    return [value for value in values if isinstance(value, fx.Node)]


def weight_quantizer(product: fx.Node) -> fx.Node | None:
    """The fake-quant node behind a product's weight; where groups have scales, seen through the view behind it."""
    weight: Any = arguments(product).weight
    if is_op(weight, "view"):
        weight = weight.args[0]
    return weight if is_op(weight, "fake_quantize_per_channel_affine") else None


def quantized_product(quantizer: fx.Node) -> fx.Node:
    """The product whose weight a fake-quant node quantizes."""
    (user,) = quantizer.users
    return next(iter(user.users)) if is_op(user, "view") else user


def stored_weight(product: fx.Node) -> fx.Node | None:
    """The get_attr node behind a product's weight, seen through what rounds it; None for a computed weight."""
    weight: Any = arguments(product).weight
    if (quantizer := weight_quantizer(product)) is not None:
        weight = arguments(quantizer).self
        weight = weight.args[0] if is_op(weight, "view") else weight
    elif _is_cast(weight):
        weight = weight.args[0].args[0]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def is_rounded(product: fx.Node) -> bool:
    """True where a product's weight is fake-quantized or cast to a smaller float and back."""
    return weight_quantizer(product) is not None or _is_cast(arguments(product).weight)


def _is_cast(weight: Any) -> bool:
    return is_op(weight, "to") and is_op(weight.args[0], "to")


def _why_float(node: fx.Node) -> str:
    """Why an op has no integer form with these arguments; empty when it has one."""
    name = op_name(node)
    if name not in _ROLES:
        return "it has no integer form"
    if name in _FILLS and (fill := getattr(arguments(node), _FILLS[name])):
        return f"it pads with {fill:g}, only zero is exact in integers"
    if name in _NUMBERS and (why := _why_no_number(node, *_NUMBERS[name])):
        return why
    if not all(_is_float(value) for value in data_inputs(node)):
        return "it reads values that are not float32"
    if name not in WEIGHT_AXIS:
        return ""
    if stored_weight(node) is None:
        return "its weight is computed, not stored"
    bias = arguments(node).bias
    return "its bias is computed, not stored" if bias is not None and bias.op != "get_attr" else ""


def _why_no_number(node: fx.Node, argument: str, is_fit: Callable[[float], bool]) -> str:
    value = getattr(arguments(node), argument, None)
    if not isinstance(value, (int, float)):
        return f"its '{argument}' is computed"
    whole = getattr(arguments(node), "rounding_mode", None) is None
    return "" if is_fit(value) and whole else f"its '{argument}' {value:g} gives no value for some numbers"


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(v, torch.Tensor) and v.dtype == torch.float32 for v in values)
