"""Kernels of int32 sums and of what makes integers or floats of them: products, means, products of activations."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from ....ir.ops import arguments, is_op
from ..arithmetic import Integers
from ..kernels import (
    Addition,
    Dense,
    Depthwise,
    Dequantize,
    DirectConv,
    ExpandDepthwise,
    GlobalMean,
    IntegerMul,
    IntegerWinograd,
    Pointwise,
    Pool,
    Requantize,
    Window,
    constants,
    winograd_integer_choice,
)
from . import concatenation, transposed
from .batched_products import emit_integers
from .fuse_integers import IntegerPair, IntegerSum, is_depthwise, is_pointwise, window
from .integer_bounds import are_bounded, has_whole_sum, residual_fits, sum_ends, with_small_sums
from .integer_calls import keep, operands, whole_extents
from .integer_numbers import arrays_of, constants_of, grid_of, stored_zero
from .rows import Rows

if TYPE_CHECKING:
    from ..relax import Emitter


def _conv(emitter: Emitter, kernel: IntegerSum) -> bool:
    node, call = kernel.node, arguments(kernel.node)
    extents = emitter.packed_extents(kernel.source)
    if extents is None or len(call.stride) != 2:
        return False
    batch, height, width, channels = extents
    outputs = int(call.weight.meta["val"].shape[0])
    shape, zero_point = window(node), stored_zero(emitter, call.input, call.zero_point)
    finish, arrays = _finished(emitter, kernel, zero_point)
    bordered = bool(zero_point) and any(shape.padding)
    spec: Any
    if is_depthwise(node):
        spec = Depthwise(batch, height, width, channels, shape, finish, bordered)
    elif is_pointwise(node):
        spec = Pointwise(batch, height, width, channels, outputs, finish)
    else:
        spec = DirectConv(batch, height, width, channels, outputs, shape, call.groups, False, finish, bordered)
        spec = _filtered(emitter, spec, arrays) or spec
    assert emitter.integers is not None
    spec, inputs = concatenation.read(emitter, kernel.source, spec, emitter.integers)
    if kernel.residual is not None:
        inputs.append(emitter.values.packed(kernel.residual))
    value = emitter.product_kernel(kernel.result, spec, inputs, arrays, emitter.integers)
    emitter.values.set_packed(kernel.result, value)
    return True


def _filtered(emitter: Emitter, conv: DirectConv, arrays: list[Any]) -> IntegerWinograd | None:
    """The Winograd kernel of a convolution where there is one that is exact and should be faster."""
    weight, bias, factors, _, zero_point = arrays
    assert emitter.integers is not None
    ends = sum_ends(weight, bias, zero_point, emitter.integers.activation)
    return winograd_integer_choice.instead_of(conv, emitter.integers, ends, factors)


def _conv_transpose(emitter: Emitter, kernel: IntegerSum) -> bool:
    call, extents = arguments(kernel.node), emitter.packed_extents(kernel.source)
    if extents is None:
        return False
    zero_point = stored_zero(emitter, call.input, call.zero_point)
    spec = transposed.spec_of(kernel.node, extents[0], _epilogue(kernel), bordered=bool(zero_point))
    if spec is None:
        return False
    inputs, arrays = [emitter.values.packed(kernel.source)], arrays_of(emitter, kernel, zero_point)
    value = emitter.product_kernel(kernel.result, spec, inputs, arrays, emitter.integers)
    emitter.values.set_packed(kernel.result, value)
    return True


def emit_pair(emitter: Emitter, pair: IntegerPair) -> bool:
    extents = emitter.packed_extents(pair.source)
    if extents is None:
        return False
    first, second = (arguments(kernel.node) for kernel in (pair.expand, pair.depthwise))
    channels, shape = int(first.weight.meta["val"].shape[0]), window(pair.depthwise.node)
    zeros = [stored_zero(emitter, call.input, call.zero_point) for call in (first, second)]
    bordered = bool(zeros[1]) and any(shape.padding)
    expand, arrays = _finished(emitter, pair.expand, zeros[0])
    epilogue, more = _finished(emitter, pair.depthwise, zeros[1])
    spec = ExpandDepthwise(*extents, channels, shape, expand, epilogue, bordered)
    source = emitter.values.packed(pair.source)
    emitter.values.set_packed(
        pair.result, emitter.product_kernel(pair.result, spec, [source], arrays + more, emitter.integers)
    )
    return True


def _linear(emitter: Emitter, kernel: IntegerSum) -> bool:
    """Rows are all leading dims in one."""
    call = arguments(kernel.node)
    outputs, inputs = map(int, call.weight.meta["val"].shape)
    rows = Rows.of(kernel.result, emitter.values[kernel.source])
    first = rows.flat(emitter, emitter.values[kernel.source], inputs)
    finish, arrays = _finished(emitter, kernel, stored_zero(emitter, call.input, call.zero_point))
    spec = Dense(rows.count, inputs, outputs, finish)
    value = emitter.product_kernel(kernel.result, spec, [first], arrays, emitter.integers)
    emitter.values[kernel.result] = rows.unflat(emitter, value, outputs)
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
        bordered = any(padding) and bool(stored_zero(emitter, call.q, call.zero_point))
        spec = Pool(*extents, shape, "mean", epilogue=Requantize(), bordered=bordered)
    emitter.values.set_packed(kernel.result, _pooled(emitter, kernel, spec, extents[3]))
    return True


def _pooled(emitter: Emitter, kernel: IntegerSum, spec: Any, channels: int) -> relax.Expr:
    call = arguments(kernel.node)
    factor = np.full(channels, emitter.number(arguments(kernel.finish).multiplier), np.float32)
    arrays = [factor, constants_of(emitter, kernel), stored_zero(emitter, call.q, call.zero_point)]
    return emitter.product_kernel(kernel.result, spec, [emitter.values.packed(kernel.source)], arrays, emitter.integers)


def _mul(emitter: Emitter, kernel: IntegerSum) -> bool:
    call = arguments(kernel.node)
    order, multiplier = operands(emitter, kernel.finish, call.left, call.right), arguments(kernel.finish).multiplier
    if order is None or multiplier.meta["val"].ndim:
        return False
    left, right, per_channel = order
    zeros = {call.left: call.zero_left, call.right: call.zero_right}
    grid, zero_right = grid_of(emitter, kernel.finish), stored_zero(emitter, right, zeros[right])
    no_sum = Addition(0.0, 0.0, zero_right, grid)
    numbers = constants(grid, no_sum, emitter.number(multiplier), stored_zero(emitter, left, zeros[left]))
    batch, height, width, channels = whole_extents(emitter, left)
    keep(emitter, kernel.result, IntegerMul(batch, height, width, channels, per_channel), [left, right], numbers)
    return True


def _epilogue(kernel: IntegerSum) -> Requantize | Dequantize:
    if is_op(kernel.finish, "dequantize_int32"):
        return Dequantize()
    return Requantize("after" if kernel.residual is not None else None)


def _finished(emitter: Emitter, kernel: IntegerSum, zero_point: int) -> tuple[Requantize | Dequantize, list[Any]]:
    """The epilogue of a product and what it packs. Sums are small where it helps and the weights allow it."""
    epilogue, arrays, arithmetic = _epilogue(kernel), arrays_of(emitter, kernel, zero_point), emitter.integers
    if not isinstance(epilogue, Requantize) or not isinstance(arithmetic, Integers):
        return epilogue, arrays
    grid, ends = grid_of(emitter, kernel.add or kernel.finish), np.iinfo(arithmetic.activation)
    if arithmetic.saturates:
        epilogue = replace(epilogue, saturates=(grid.low, grid.high) == (ends.min, ends.max))
    if arithmetic.adds_whole and kernel.residual is not None:
        epilogue = replace(epilogue, whole=has_whole_sum(arrays[3], arithmetic.activation))
    if arithmetic.reads_bounds:
        epilogue = replace(epilogue, bounded=are_bounded(arrays))
    if not arithmetic.reads_small_sums or not residual_fits(arrays[3], arithmetic.activation):
        return epilogue, arrays
    small = with_small_sums(arrays, arithmetic.activation)
    if small is None:
        return epilogue, arrays
    return replace(epilogue, small=True, even=grid.zero_point % 2 == 0), small


RULES: dict[str, Callable[[Emitter, IntegerSum], bool]] = {
    "conv_int32": _conv,
    "conv_transpose_int32": _conv_transpose,
    "linear_int32": _linear,
    "sum_int32": _mean,
    "sum_pool2d_int32": _sum_pool,
    "mul_int32": _mul,
    "matmul_int32": emit_integers,
}
