"""Kernels of single integer calls on packed values: sums, tables, conversions, the largest of a window."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from ....ir.ops import arguments
from ..kernels import IntegerAdd, Lookup, Pool, ToFloat, ToIntegers, Window, constants
from .flat_integers import is_read_plain
from .integer_numbers import NO_GRID, addition_of, grid_of, stored_zero

if TYPE_CHECKING:
    from ..relax import Emitter


def _add(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    order = operands(emitter, node, call.left, call.right)
    if order is None:
        return False
    left, right, per_channel = order
    sides = {call.left: (call.zero_left, call.factor_left), call.right: (call.zero_right, call.factor_right)}
    addition = addition_of(emitter, node, (sides[left][1], sides[right][1]), right, sides[right][0])
    numbers = constants(NO_GRID, addition, zero_own=stored_zero(emitter, left, sides[left][0]))
    batch, height, width, channels = whole_extents(emitter, left)
    keep(emitter, node, IntegerAdd(batch, height, width, channels, per_channel), [left, right], numbers)
    return True


def _lookup(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    extents = emitter.packed_extents(call.q)
    if extents is None or not emitter.values.is_packed(call.q):
        return False
    keep(emitter, node, Lookup(*extents), [call.q], emitter.storage.table(emitter.graph.weight(call.table)))
    return True


def _quantize(emitter: Emitter, node: fx.Node) -> bool:
    """From plain floats; those that are packed are quantized as plain values, and packed again."""
    extents = emitter.packed_extents(node)
    if extents is None or is_read_plain(node):
        return False
    numbers = constants(grid_of(emitter, node), scale=arguments(node).scale)
    inputs = [emitter.values[arguments(node).x]]
    emitter.values.set_packed(node, emitter.kernel(node, ToIntegers(*extents), inputs, [numbers], emitter.integers))
    return True


def _dequantize(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    extents = emitter.packed_extents(call.q)
    if extents is None or not emitter.values.is_packed(call.q):
        return False
    numbers = constants(NO_GRID, scale=call.scale, zero_own=stored_zero(emitter, call.q, call.zero_point))
    keep(emitter, node, ToFloat(*extents), [call.q], numbers)
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


def operands(emitter: Emitter, node: fx.Node, left: fx.Node, right: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
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


def whole_extents(emitter: Emitter, node: fx.Node) -> tuple[int | None, int, int, int]:
    extents = emitter.packed_extents(node)
    assert extents is not None
    return extents


def keep(emitter: Emitter, node: fx.Node, spec: Any, sources: list[fx.Node], numbers: np.ndarray) -> None:
    inputs = [emitter.values.packed(source) for source in sources]
    emitter.values.set_packed(node, emitter.kernel(node, spec, inputs, [numbers], emitter.integers))


RULES: dict[str, Callable[[Emitter, fx.Node], bool]] = {
    "add_int8": _add,
    "lookup_int8": _lookup,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "max_pool2d": _max_pool,
}
