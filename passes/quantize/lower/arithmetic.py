"""Sums, products and means of integer values."""

import math
from typing import Any

import torch
from torch import fx

from ....ir.ops import arguments, op_name
from ....ir.shapes import shape
from .emitter import Emitter
from .quantized import Grid, Quantized

# Sums of scaled integers stay below this, so that float32 holds each exactly, with bits to spare for an export that
# multiplies the factors by the output's scale.
_LARGEST_SUM = 2**22
_FINEST = 20  # bits behind the point that factors have at most
_LARGEST = 2**31 - 1


def emit(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    """The integer form of a call that combines activations, with its result on `grid`, or why it has none."""
    rule = _RULES.get(op_name(node))
    return rule(emitter, node, inputs, grid) if rule else "it has no integer form"


def _add(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    left, right = inputs
    sign = -1.0 if op_name(node) == "sub" else 1.0
    ratios = left.grid.scale / grid.scale, sign * float(arguments(node).alpha) * right.grid.scale / grid.scale
    reach = sum(abs(ratio) for ratio in ratios) * 255
    shift = min(_FINEST, math.floor(math.log2(_LARGEST_SUM / reach)))
    if shift < 0:
        return f"its inputs' scales are {max(map(abs, ratios)):.2g} times its own"
    factors = [round(ratio * 2**shift) for ratio in ratios]
    zeros = left.grid.zero_point, right.grid.zero_point
    return emitter.store("add_int8", node, grid, left.node, right.node, *zeros, *factors, shift)


def _mul(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node:
    return _product("mul_int32", emitter, node, inputs, grid)


def _matmul(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    depth = shape(node.all_input_nodes[0])[-1]
    if depth * inputs[0].grid.widest * inputs[1].grid.widest > _LARGEST:
        return f"its sums of {depth} products can leave int32"
    return _product("matmul_int32", emitter, node, inputs, grid)


def _product(op: str, emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node:
    left, right = inputs
    acc = emitter.sums(op, node, left.node, right.node, left.grid.zero_point, right.grid.zero_point)
    return emitter.requantize(node, acc, _factor(left.grid.scale * right.grid.scale / grid.scale), 0, grid)


def _mean(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    (source,) = inputs
    call, extents = arguments(node), node.all_input_nodes[0].meta["val"].shape
    dims = sorted(d % len(extents) for d in (call.dim if call.dim is not None else range(len(extents))))
    if any(isinstance(extents[d], torch.SymInt) for d in dims):
        return "it is a mean over a dim of unknown extent"
    acc = emitter.sums("sum_int32", node, source.node, dims, bool(call.keepdim), source.grid.zero_point)
    return _mean_of(emitter, node, acc, math.prod(int(extents[d]) for d in dims), source, grid)


def _avg_pool(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    call = arguments(node)
    kernel, padding = _pair(call.kernel_size), _pair(call.padding)
    if call.ceil_mode or call.divisor_override is not None or (any(padding) and not call.count_include_pad):
        return "its windows have divisors of their own (ceil_mode, divisor_override or uncounted padding)"
    stride = _pair(call.stride) if call.stride else kernel
    return _sum_pool(emitter, node, (kernel, stride, padding), inputs[0], grid)


def _adaptive(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    extents, wanted = node.all_input_nodes[0].meta["val"].shape[-2:], _pair(arguments(node).output_size)
    if any(isinstance(extent, torch.SymInt) for extent in extents):
        return "its input's height or width is not known"
    if any(have % want for have, want in zip(extents, wanted, strict=True)):
        return f"its windows are not all of one size ({list(map(int, extents))} to {wanted})"
    window = [int(have) // want for have, want in zip(extents, wanted, strict=True)]
    return _sum_pool(emitter, node, (window, window, [0, 0]), inputs[0], grid)


def _sum_pool(emitter: Emitter, node: fx.Node, window: tuple, source: Quantized, grid: Grid) -> fx.Node:
    """window: kernel, stride and padding, each [vertical, horizontal]."""
    acc = emitter.sums("sum_pool2d_int32", node, source.node, *window, source.grid.zero_point)
    return _mean_of(emitter, node, acc, math.prod(window[0]), source, grid)


def _mean_of(emitter: Emitter, node: fx.Node, acc: fx.Node, count: int, source: Quantized, grid: Grid) -> fx.Node:
    return emitter.requantize(node, acc, _factor(source.grid.scale / (count * grid.scale)), 0, grid)


def _factor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(values[0]), int(values[-1])]


_RULES = {
    **dict.fromkeys(("add", "sub"), _add),
    "mul": _mul,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "mean": _mean,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
}
