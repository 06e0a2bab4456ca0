"""Integer calls in Relax ops on plain tensors: for shapes that have no kernel, exact all the same.

8-bit values are as they lie in memory (`storage`); sums are int32.
"""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from ....ir.integers.dynamic import LINEAR_DYNAMIC, LSTM_DYNAMIC
from ....ir.integers.resizing import ONE
from ....ir.ops import arguments, op_name
from . import dynamic_linear, dynamic_lstm
from .storage import BYTES

if TYPE_CHECKING:
    from ..relax import Emitter


def computes(node: fx.Node) -> bool:
    """True for calls of integers, and for padding of bytes: its number is one of the graph, not of memory."""
    value = node.meta.get("val")
    if op_name(node) not in PADS:
        return op_name(node) in RULES
    is_bytes = isinstance(value, torch.Tensor) and value.dtype in BYTES
    return is_bytes and getattr(arguments(node), "mode", "constant") == "constant"


def emit(emitter: Emitter, node: fx.Node) -> relax.Expr:
    """The call on plain values."""
    value = emitter.builder.normalize(RULES[op_name(node)](emitter, node))
    return emitter.builder.emit(value, node.name)


def _quantize(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    x = emitter.values[call.x]
    sound = relax.op.where(relax.op.isnan(x), _float(0.0), x)
    return _stored(emitter, node, relax.op.round(relax.op.divide(sound, _float(call.scale))))


def _dequantize(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    return relax.op.multiply(_centered(emitter, call.q, call.zero_point, "float32"), _float(call.scale))


def _requantize(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    return _stored(emitter, node, relax.op.round(_scaled(emitter, node, call.multiplier)))


def _dequantize_int32(emitter: Emitter, node: fx.Node) -> relax.Expr:
    return _scaled(emitter, node, arguments(node).scale)


def _add(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    unit = 2.0**-call.shift
    sides = (
        relax.op.multiply(_centered(emitter, value, zero, "float32"), _float(factor * unit))
        for value, zero, factor in (
            (call.left, call.zero_left, call.factor_left),
            (call.right, call.zero_right, call.factor_right),
        )
    )
    return _stored(emitter, node, relax.op.round(relax.op.add(*sides)))


def _mul(emitter: Emitter, node: fx.Node) -> relax.Expr:
    return relax.op.multiply(*_both(emitter, node))


def _matmul(emitter: Emitter, node: fx.Node) -> relax.Expr:
    return relax.op.matmul(*_both(emitter, node), out_dtype="int32")


def _lookup(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    smallest = emitter.storage.smallest(call.q.meta["val"].dtype)
    place = relax.op.subtract(relax.op.astype(emitter.values[call.q], "int32"), relax.const(smallest, "int32"))
    return relax.op.take(
        emitter.constant(emitter.storage.table(emitter.graph.weight(call.table))), place, axis=0, mode="clip"
    )


def _sum(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    return relax.op.sum(_centered(emitter, call.q, call.zero_point), axis=list(call.dim), keepdims=call.keepdim)


def _sum_pool(emitter: Emitter, node: fx.Node) -> relax.Expr:
    """The mean in float32 is off by far less than half a unit, times the count."""
    call = arguments(node)
    value = _centered(emitter, call.q, call.zero_point, "float32")
    options: dict[str, Any] = {"pool_size": call.kernel_size, "strides": call.stride, "padding": call.padding}
    mean = relax.op.nn.avg_pool2d(value, **options, count_include_pad=True)
    total = relax.op.multiply(mean, _float(float(math.prod(call.kernel_size))))
    return relax.op.astype(relax.op.round(total), "int32")


def _conv(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    convs = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d}
    options: dict[str, Any] = {"strides": call.stride, "padding": call.padding, "dilation": call.dilation}
    weight = emitter.constant(emitter.array(call.weight).astype(np.int32))
    data = _centered(emitter, call.input, call.zero_point)
    total = convs[len(call.stride)](data, weight, **options, groups=call.groups, out_dtype="int32")
    return relax.op.add(total, _per_channel(emitter, call.bias, 1, 2 + len(call.stride)))


def _conv_transpose(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    convs = {1: relax.op.nn.conv1d_transpose, 2: relax.op.nn.conv2d_transpose}
    options: dict[str, Any] = {"strides": call.stride, "padding": call.padding, "dilation": call.dilation}
    weight = emitter.constant(emitter.array(call.weight).astype(np.int32))
    data = _centered(emitter, call.input, call.zero_point)
    total = convs[len(call.stride)](
        data, weight, **options, output_padding=call.output_padding, groups=call.groups, out_dtype="int32"
    )
    return relax.op.add(total, _per_channel(emitter, call.bias, 1, 2 + len(call.stride)))


def _linear(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    weight = emitter.constant(np.ascontiguousarray(emitter.array(call.weight).astype(np.int32).T))
    product = relax.op.matmul(_centered(emitter, call.input, call.zero_point), weight, out_dtype="int32")
    return relax.op.add(product, emitter.constant(emitter.array(call.bias)))


def _nearest(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    return _taken(emitter, _taken(emitter, emitter.values[call.q], call.rows, 2), call.columns, 3)


def _bilinear(emitter: Emitter, node: fx.Node) -> relax.Expr:
    call = arguments(node)
    height, width = (int(extent) for extent in call.q.meta["val"].shape[2:])
    lines = _mixed(emitter, _centered(emitter, call.q, call.zero_point), (call.rows, call.row_weights), 2, height)
    return _mixed(emitter, lines, (call.columns, call.column_weights), 3, width)


def _mixed(emitter: Emitter, values: relax.Expr, tables: tuple[fx.Node, fx.Node], axis: int, extent: int) -> relax.Expr:
    """Neighbours along an axis, each times its weight."""
    positions, weights = (emitter.array(table) for table in tables)
    shape = [-1 if dim == axis else 1 for dim in range(4)]
    sides = (positions, ONE - weights), (np.minimum(positions + 1, extent - 1), weights)
    taken = (
        relax.op.multiply(
            relax.op.take(values, emitter.constant(place.astype(np.int32)), axis, mode="clip"),
            emitter.constant(weight.astype(np.int32).reshape(shape)),
        )
        for place, weight in sides
    )
    return relax.op.add(*taken)


def _taken(emitter: Emitter, value: relax.Expr, positions: fx.Node, axis: int) -> relax.Expr:
    return relax.op.take(value, emitter.constant(emitter.array(positions)), axis, mode="clip")


def _pad(emitter: Emitter, node: fx.Node) -> relax.Expr:
    """Padding with a number, which is an integer of the graph."""
    call = arguments(node)
    rank = node.meta["val"].ndim
    padded = [side for i in range(len(call.pad) - 2, -1, -2) for side in call.pad[i : i + 2]]  # last dim first
    sides = [0] * (2 * rank - len(padded)) + padded
    dtype = call.self.meta["val"].dtype
    value = float(int(call.value or 0) + emitter.storage.shift(dtype))
    return relax.op.nn.pad(emitter.values[call.self], sides, pad_value=value)


def _both(emitter: Emitter, node: fx.Node) -> list[relax.Expr]:
    call = arguments(node)
    sides = (call.left, call.zero_left), (call.right, call.zero_right)
    return [_centered(emitter, value, zero) for value, zero in sides]


def _centered(emitter: Emitter, value: fx.Node, zero_point: int, dtype: str = "int32") -> relax.Expr:
    stored = zero_point + emitter.storage.shift(value.meta["val"].dtype)
    return relax.op.subtract(relax.op.astype(emitter.values[value], dtype), relax.const(stored, dtype))


def _scaled(emitter: Emitter, node: fx.Node, factors: fx.Node) -> relax.Expr:
    call = arguments(node)
    rank = node.meta["val"].ndim
    acc = relax.op.astype(emitter.values[call.acc], "float32")
    if not factors.meta["val"].ndim:
        return relax.op.multiply(acc, _float(emitter.number(factors)))
    return relax.op.multiply(acc, _per_channel(emitter, factors, call.axis % rank, rank))


def _per_channel(emitter: Emitter, numbers: fx.Node, axis: int, rank: int) -> relax.Expr:
    return emitter.constant(emitter.array(numbers).reshape([-1 if dim == axis else 1 for dim in range(rank)]))


def _stored(emitter: Emitter, node: fx.Node, steps: relax.Expr) -> relax.Expr:
    """Whole steps from the zero point, held between the ends of the node's grid, as bytes."""
    call = arguments(node)
    low, high = float(call.low - call.zero_point), float(call.high - call.zero_point)
    shifted = relax.op.add(relax.op.clip(steps, low, high), _float(call.zero_point + emitter.storage.shift(call.dtype)))
    return relax.op.astype(relax.op.astype(shifted, "int32"), emitter.storage.of(call.dtype))


def _float(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


PADS = frozenset({"pad", "constant_pad_nd"})

RULES: dict[str, Callable[[Emitter, fx.Node], relax.Expr]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "requantize": _requantize,
    "dequantize_int32": _dequantize_int32,
    "add_int8": _add,
    "mul_int32": _mul,
    "matmul_int32": _matmul,
    "lookup_int8": _lookup,
    "sum_int32": _sum,
    "sum_pool2d_int32": _sum_pool,
    "conv_int32": _conv,
    "conv_transpose_int32": _conv_transpose,
    "linear_int32": _linear,
    "upsample_nearest2d_int8": _nearest,
    "upsample_bilinear2d_int32": _bilinear,
    LINEAR_DYNAMIC: dynamic_linear.emit,
    LSTM_DYNAMIC: dynamic_lstm.emit,
    **dict.fromkeys(PADS, _pad),
}
# Integer ops of the graph, that nobody else could take.
OPS = frozenset(RULES) - PADS
