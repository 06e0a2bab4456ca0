"""Sums, products and means of integer values."""

import math
from collections.abc import Callable

import torch
from torch import fx

from ....ir.ops import arguments, op_name
from . import pooling, resizing
from .emitter import Emitter
from .quantized import INT32_MAX, Grid, Quantized

# Sums of scaled integers stay below this, so that float32 holds each exactly, with bits to spare for an export that
# multiplies the factors by the output's scale.
_LARGEST_SUM = 2**22
_FINEST = 20  # bits behind the point that factors have at most


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


def _mul(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    return _product("mul_int32", emitter, node, inputs, grid)


def _matmul(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    left, right = inputs if len(inputs) == 2 else inputs * 2  # x @ x reads one value
    depth = left.node.meta["val"].shape[-1]
    if isinstance(depth, torch.SymInt):
        return "it sums over a dim of unknown extent"
    if depth * left.grid.widest * right.grid.widest > INT32_MAX:
        return f"its sums of {depth} products can leave int32"
    return _product("matmul_int32", emitter, node, [left, right], grid)


def _product(op: str, emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    left, right = inputs
    factor = _factor(left.grid.scale * right.grid.scale / grid.scale)
    if not math.isfinite(factor):
        return f"its inputs' scales ({left.grid.scale:.2g}, {right.grid.scale:.2g}) are too far from its own"
    acc = emitter.sums(op, node, left.node, right.node, left.grid.zero_point, right.grid.zero_point)
    return emitter.requantize(node, acc, factor, 0, grid)


def _mean(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    (source,) = inputs
    call, extents = arguments(node), source.node.meta["val"].shape
    dims = sorted(d % len(extents) for d in (getattr(call, "dim", None) or range(len(extents))))
    if any(isinstance(extents[d], torch.SymInt) for d in dims):
        return "it is a mean over a dim of unknown extent"
    count = math.prod(int(extents[d]) for d in dims)
    if count * source.grid.widest > INT32_MAX:
        return f"its sums of {count} values can leave int32"
    keepdim = bool(getattr(call, "keepdim", False))
    acc = emitter.sums("sum_int32", node, source.node, dims, keepdim, source.grid.zero_point)
    return emitter.requantize(node, acc, _factor(source.grid.scale / (count * grid.scale)), 0, grid)


def _factor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


_RULES: dict[str, Callable[[Emitter, fx.Node, list[Quantized], Grid], fx.Node | str]] = {
    **dict.fromkeys(("add", "sub"), _add),
    "mul": _mul,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "mean": _mean,
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), pooling.average),
    "upsample_bilinear2d": resizing.bilinear,
}
