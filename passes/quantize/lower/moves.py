"""Ops that only move numbers: the same ATen call on integers, or one that ATen has for integers."""

from typing import Any

from torch import fx

from ....ir import rewrite
from ....ir.ops import arguments, is_getitem, is_op, op_name
from ..rules import data_inputs
from . import pooling, resizing
from .emitter import Emitter
from .quantized import Quantized

_IDENTITIES = frozenset({"dropout", "feature_dropout", "alias"})  # not contiguous: a view behind it needs its strides
_FILLED = frozenset({"pad", "constant_pad_nd"})
# ATen has no kernel of these for int8.
_OTHER_FORMS = {
    "max_pool1d": pooling.maximum,
    "adaptive_max_pool1d": pooling.maximum,
    "adaptive_max_pool2d": pooling.maximum,
    "upsample_nearest2d": resizing.nearest,
}
_WITH_INDICES = ("adaptive_max_pool1d", "adaptive_max_pool2d")


def emit(emitter: Emitter, node: fx.Node, inputs: list[Quantized]) -> Quantized | str:
    """The integer form of a call that moves numbers of one grid (or puts several side by side), or why it has none."""
    first = inputs[0]
    if op_name(node) in _IDENTITIES:
        return first
    if is_getitem(node) and is_op(node.args[0], *_WITH_INDICES):  # whose integer form yields the maxima alone
        return first
    form = _OTHER_FORMS.get(op_name(node))
    moved = form(emitter, node, first) if form else _same_call(emitter, node, inputs)
    return moved if isinstance(moved, str) else Quantized(moved, first.grid)


def _same_call(emitter: Emitter, node: fx.Node, inputs: list[Quantized]) -> fx.Node:
    integers: dict[fx.Node, Any] = dict(zip(data_inputs(node), (value.node for value in inputs), strict=True))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: integers.get(n, n))
    moved = emitter.move(node.target, node, *args, **kwargs)
    if op_name(node) in _FILLED and getattr(arguments(node), "mode", "constant") == "constant":
        rewrite.set_argument(emitter.graph, moved, "value", inputs[0].grid.zero_point)
    return moved
