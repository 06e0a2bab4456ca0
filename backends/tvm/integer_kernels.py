"""Emitting integer calls as kernels on packed activations."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx
from tvm import relax

from ...ir.ops import arguments, is_op, op_name, tensors
from . import plain_integers
from .fuse_integers import IntegerPair, IntegerSum, is_depthwise, is_pointwise, window
from .kernels import (
    Addition,
    Dense,
    Depthwise,
    Dequantize,
    DirectConv,
    ExpandDepthwise,
    GlobalMean,
    IntegerAdd,
    IntegerMul,
    Lookup,
    Pointwise,
    Pool,
    Requantize,
    StoredGrid,
    ToFloat,
    ToIntegers,
    Window,
    constants,
)
from .storage import BYTES

if TYPE_CHECKING:
    from .relax import Emitter

# A kernel's grid where only a conversion's numbers count.
_NO_GRID = StoredGrid(0, 0, 0)


def emit_fused(emitter: Emitter, kernel: IntegerSum | IntegerPair) -> None:
    """Emit a fused kernel, or its calls one by one on plain values where there is none for this shape."""
    if emitter.integers is not None and _emitted(emitter, kernel):
        return
    for node in kernel.nodes():
        emitter.values[node] = plain_integers.emit(emitter, node)


def _emitted(emitter: Emitter, kernel: IntegerSum | IntegerPair) -> bool:
    if isinstance(kernel, IntegerPair):
        return _pair(emitter, kernel)
    rule = _SUMS.get(op_name(kernel.node))
    return rule is not None and rule(emitter, kernel)


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit a single integer call on packed values if there is a way."""
    rule = _RULES.get(op_name(node))
    if emitter.integers is None or rule is None or not _handles_bytes(node):
        return False
    return rule(emitter, node)


def _handles_bytes(node: fx.Node) -> bool:
    return any(tensor.dtype in BYTES for n in (node, *node.all_input_nodes) for tensor in tensors(n.meta.get("val")))


def _conv(emitter: Emitter, kernel: IntegerSum) -> bool:
    node, call = kernel.node, arguments(kernel.node)
    extents = emitter.packed_extents(kernel.source)
    if extents is None or len(call.stride) != 2:
        return False
    batch, height, width, channels = extents
    outputs = int(call.weight.meta["val"].shape[0])
    shape, finish, zero_point = window(node), _epilogue(kernel), _stored_zero(emitter, call.input, call.zero_point)
    bordered = bool(zero_point) and any(shape.padding)
    spec: Any
    if is_depthwise(node):
        spec = Depthwise(batch, height, width, channels, shape, finish, bordered)
    elif is_pointwise(node):
        spec = Pointwise(batch, height, width, channels, outputs, finish)
    else:
        spec = DirectConv(batch, height, width, channels, outputs, shape, call.groups, False, finish, bordered)
    inputs = [kernel.source] if kernel.residual is None else [kernel.source, kernel.residual]
    packed = [emitter.values.packed(value) for value in inputs]
    value = emitter.product_kernel(kernel.result, spec, packed, _arrays(emitter, kernel, zero_point), emitter.integers)
    emitter.values.set_packed(kernel.result, value)
    return True


def _pair(emitter: Emitter, pair: IntegerPair) -> bool:
    extents = emitter.packed_extents(pair.source)
    if extents is None:
        return False
    first, second = (arguments(kernel.node) for kernel in (pair.expand, pair.depthwise))
    channels, shape = int(first.weight.meta["val"].shape[0]), window(pair.depthwise.node)
    zeros = [_stored_zero(emitter, call.input, call.zero_point) for call in (first, second)]
    bordered = bool(zeros[1]) and any(shape.padding)
    spec = ExpandDepthwise(*extents, channels, shape, Requantize(), Requantize(), bordered)
    arrays = [*_arrays(emitter, pair.expand, zeros[0]), *_arrays(emitter, pair.depthwise, zeros[1])]
    source = emitter.values.packed(pair.source)
    emitter.values.set_packed(
        pair.result, emitter.product_kernel(pair.result, spec, [source], arrays, emitter.integers)
    )
    return True


def _linear(emitter: Emitter, kernel: IntegerSum) -> bool:
    """Rows are all leading dims in one."""
    call, result = arguments(kernel.node), kernel.result.meta["val"].shape
    outputs, inputs = map(int, call.weight.meta["val"].shape)
    first = emitter.values[kernel.source]
    if len(result) == 2:
        rows = emitter.batch(kernel.node)
    else:
        rows = math.prod(int(s) for s in result[:-1])
        first = emitter.builder.emit(relax.op.reshape(first, [rows, inputs]))
    zero_point = _stored_zero(emitter, call.input, call.zero_point)
    spec = Dense(rows, inputs, outputs, _epilogue(kernel))
    arrays = _arrays(emitter, kernel, zero_point)
    value = emitter.product_kernel(kernel.result, spec, [first], arrays, emitter.integers)
    if len(result) != 2:
        value = emitter.builder.emit(relax.op.reshape(value, [int(s) for s in result]))
    emitter.values[kernel.result] = value
    return True


def _mean(emitter: Emitter, kernel: IntegerSum) -> bool:
    """A mean over height and width."""
    call, extents = arguments(kernel.node), emitter.packed_extents(kernel.source)
    if extents is None or sorted(d % 4 for d in call.dim) != [2, 3]:
        return False
    spec = GlobalMean(*extents, epilogue=Requantize())
    value = _pooled(emitter, kernel, spec, extents[3])
    if call.keepdim:
        emitter.values.set_packed(kernel.result, value)
    else:
        emitter.values[kernel.result] = emitter.without_pixels(value, extents[3])
    return True


def _sum_pool(emitter: Emitter, kernel: IntegerSum) -> bool:
    call, extents = arguments(kernel.node), emitter.packed_extents(kernel.source)
    if extents is None:
        return False
    vertical, horizontal = call.padding
    padding = (vertical, vertical, horizontal, horizontal)
    if list(call.kernel_size) == list(extents[1:3]) and not any(padding):
        spec: Any = GlobalMean(*extents, epilogue=Requantize())
    else:
        shape = Window(tuple(call.kernel_size), tuple(call.stride), padding)
        bordered = any(padding) and bool(_stored_zero(emitter, call.q, call.zero_point))
        spec = Pool(*extents, shape, "mean", epilogue=Requantize(), bordered=bordered)
    emitter.values.set_packed(kernel.result, _pooled(emitter, kernel, spec, extents[3]))
    return True


def _pooled(emitter: Emitter, kernel: IntegerSum, spec: Any, channels: int) -> relax.Expr:
    call = arguments(kernel.node)
    factor = np.full(channels, emitter.number(arguments(kernel.finish).multiplier), np.float32)
    arrays = [factor, _constants(emitter, kernel), _stored_zero(emitter, call.q, call.zero_point)]
    return emitter.product_kernel(kernel.result, spec, [emitter.values.packed(kernel.source)], arrays, emitter.integers)


def _mul(emitter: Emitter, kernel: IntegerSum) -> bool:
    call = arguments(kernel.node)
    order, multiplier = _operands(emitter, kernel.node, call.left, call.right), arguments(kernel.finish).multiplier
    if order is None or multiplier.meta["val"].ndim:
        return False
    left, right, per_channel = order
    zeros = {call.left: call.zero_left, call.right: call.zero_right}
    grid, zero_right = _grid(emitter, kernel.finish), _stored_zero(emitter, right, zeros[right])
    no_sum = Addition(0.0, 0.0, zero_right, grid)
    numbers = constants(grid, no_sum, emitter.number(multiplier), _stored_zero(emitter, left, zeros[left]))
    batch, height, width, channels = _whole(emitter, left)
    _keep(emitter, kernel.result, IntegerMul(batch, height, width, channels, per_channel), [left, right], numbers)
    return True


def _add(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    order = _operands(emitter, node, call.left, call.right)
    if order is None:
        return False
    left, right, per_channel = order
    sides = {call.left: (call.zero_left, call.factor_left), call.right: (call.zero_right, call.factor_right)}
    addition = _addition(emitter, node, (sides[left][1], sides[right][1]), right, sides[right][0])
    numbers = constants(_NO_GRID, addition, zero_own=_stored_zero(emitter, left, sides[left][0]))
    batch, height, width, channels = _whole(emitter, left)
    _keep(emitter, node, IntegerAdd(batch, height, width, channels, per_channel), [left, right], numbers)
    return True


def _lookup(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    extents = emitter.packed_extents(call.q)
    if extents is None or not emitter.values.is_packed(call.q):
        return False
    _keep(emitter, node, Lookup(*extents), [call.q], emitter.storage.table(emitter.graph.weight(call.table)))
    return True


def _quantize(emitter: Emitter, node: fx.Node) -> bool:
    """From plain floats; those that are packed are quantized as plain values, and packed again."""
    extents = emitter.packed_extents(node)
    if extents is None:
        return False
    numbers = constants(_grid(emitter, node), scale=arguments(node).scale)
    inputs = [emitter.values[arguments(node).x]]
    emitter.values.set_packed(node, emitter.kernel(node, ToIntegers(*extents), inputs, [numbers], emitter.integers))
    return True


def _dequantize(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    extents = emitter.packed_extents(call.q)
    if extents is None or not emitter.values.is_packed(call.q):
        return False
    numbers = constants(_NO_GRID, scale=call.scale, zero_own=_stored_zero(emitter, call.q, call.zero_point))
    _keep(emitter, node, ToFloat(*extents), [call.q], numbers)
    return True


def _max_pool(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    extents = emitter.packed_extents(call.self)
    if extents is None or call.ceil_mode:
        return False
    pairs = (list(v) * 2 if len(v) == 1 else list(v) for v in (call.kernel_size, call.stride or call.kernel_size,
                                                               call.padding, call.dilation))  # fmt: skip
    kernel, stride, (vertical, horizontal), dilation = pairs
    shape = Window(tuple(kernel), tuple(stride), (vertical, vertical, horizontal, horizontal), tuple(dilation))
    value = emitter.kernel(node, Pool(*extents, shape, "max"), [emitter.values.packed(call.self)], [], emitter.integers)
    emitter.values.set_packed(node, value)
    return True


def _operands(emitter: Emitter, node: fx.Node, left: fx.Node, right: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """(whole operand, the other, whether that one is [N, C, 1, 1]) of a packed elementwise call."""
    whole, extents = emitter.packed_extents(node), {n: emitter.packed_extents(n) for n in (left, right)}
    if whole is None or None in extents.values() or "get_attr" in (left.op, right.op):
        return None
    if not (emitter.values.is_packed(left) or emitter.values.is_packed(right)):
        return None
    if extents[left] != whole:
        left, right = right, left
    per_channel = extents[right] != whole
    if extents[left] != whole or (per_channel and extents[right] != (whole[0], 1, 1, whole[3])):
        return None
    return left, right, per_channel


def _whole(emitter: Emitter, node: fx.Node) -> tuple[int | None, int, int, int]:
    extents = emitter.packed_extents(node)
    assert extents is not None
    return extents


def _keep(emitter: Emitter, node: fx.Node, spec: Any, sources: list[fx.Node], numbers: np.ndarray) -> None:
    inputs = [emitter.values.packed(source) for source in sources]
    emitter.values.set_packed(node, emitter.kernel(node, spec, inputs, [numbers], emitter.integers))


def _epilogue(kernel: IntegerSum) -> Requantize | Dequantize:
    if is_op(kernel.finish, "dequantize_int32"):
        return Dequantize()
    return Requantize("after" if kernel.residual is not None else None)


def _arrays(emitter: Emitter, kernel: IntegerSum, zero_point: int) -> list[Any]:
    """What `pack` takes for a product of integers."""
    call, finish = arguments(kernel.node), arguments(kernel.finish)
    factors = emitter.array(finish.scale if is_op(kernel.finish, "dequantize_int32") else finish.multiplier)
    numbers = _constants(emitter, kernel) if is_op(kernel.finish, "requantize") else None
    return [emitter.array(call.weight), emitter.array(call.bias), factors, numbers, zero_point]


def _constants(emitter: Emitter, kernel: IntegerSum) -> np.ndarray:
    grid = _grid(emitter, kernel.finish)
    if kernel.add is None:
        return constants(grid)
    call = arguments(kernel.add)
    own, other = (call.factor_left, call.zero_left), (call.factor_right, call.zero_right)
    if call.left is not kernel.finish:
        own, other = other, own
    return constants(grid, _addition(emitter, kernel.add, (own[0], other[0]), kernel.residual, other[1]))


def _addition(emitter: Emitter, add: fx.Node, factors: tuple[int, int], other: fx.Node, zero: int) -> Addition:
    unit = 2.0 ** -arguments(add).shift
    zero_other = _stored_zero(emitter, other, zero)
    return Addition(factors[0] * unit, factors[1] * unit, zero_other, _grid(emitter, add))


def _grid(emitter: Emitter, node: fx.Node) -> StoredGrid:
    call = arguments(node)
    return emitter.storage.grid(call.zero_point, call.low, call.high, call.dtype)


def _stored_zero(emitter: Emitter, value: fx.Node, zero_point: int) -> int:
    return zero_point + emitter.storage.shift(value.meta["val"].dtype)


_SUMS: dict[str, Callable[[Emitter, IntegerSum], bool]] = {
    "conv_int32": _conv,
    "linear_int32": _linear,
    "sum_int32": _mean,
    "sum_pool2d_int32": _sum_pool,
    "mul_int32": _mul,
}

_RULES: dict[str, Callable[[Emitter, fx.Node], bool]] = {
    "add_int8": _add,
    "lookup_int8": _lookup,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "max_pool2d": _max_pool,
}
