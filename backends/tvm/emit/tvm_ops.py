"""Converters for ops that TVM's torch importer does not know or gets wrong, in Relax ops."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import fx
from tvm import relax

from ....ir.ops import arguments

if TYPE_CHECKING:
    from ..relax import Emitter

Read = Callable[[fx.Node], relax.Expr]


def fake_quantize_per_tensor(emitter: Emitter, node: fx.Node, read: Read) -> relax.Expr:
    """Round to the grid of an integer type and back, in float, as ATen's CPU kernel does."""
    call = arguments(node)
    scale = emitter.graph.weight(call.scale).detach().numpy().reshape(())
    zero_point = emitter.graph.weight(call.zero_point).detach().numpy().reshape(())

    def constant(value: float) -> relax.Expr:
        return relax.const(np.float32(value))

    steps = relax.op.multiply(read(call.self), constant(np.float32(1) / np.float32(scale)))
    grid = relax.op.add(relax.op.round(steps), constant(float(zero_point)))
    clipped = relax.op.clip(grid, float(call.quant_min), float(call.quant_max))
    real = relax.op.multiply(relax.op.subtract(clipped, constant(float(zero_point))), constant(float(scale)))
    return emitter.builder.emit(emitter.builder.normalize(real), node.name)


def batch_norm(emitter: Emitter, node: fx.Node, read: Read) -> relax.Expr:
    """A batch norm that no conv could take: a factor and a shift per channel, in either layout."""
    call = arguments(node)
    mean, variance = (emitter.graph.weight(n).detach().double() for n in (call.running_mean, call.running_var))
    scale = (variance + call.eps).rsqrt()
    scale = scale * emitter.graph.weight(call.weight).detach().double() if call.weight else scale
    shift = -mean * scale
    shift = shift + emitter.graph.weight(call.bias).detach().double() if call.bias else shift
    value = read(call.input)
    factors = [_per_channel(emitter, node, value, t.float().numpy()) for t in (scale, shift)]
    real = relax.op.add(relax.op.multiply(value, factors[0]), factors[1])
    return emitter.builder.emit(emitter.builder.normalize(real), node.name)


def embedding(emitter: Emitter, node: fx.Node, read: Read) -> relax.Expr:
    """Rows of a table. An index out of range, which is an error in PyTorch, gives NaN and reads nothing."""
    call = arguments(node)
    rows = relax.op.take(read(call.weight), read(call.indices), axis=0, mode="nan")
    return emitter.builder.emit(emitter.builder.normalize(rows), node.name)


def _per_channel(emitter: Emitter, node: fx.Node, value: relax.Expr, numbers: np.ndarray) -> relax.Expr:
    """Numbers per channel, broadcastable against `value`: packed values hold channels last, with padding lanes."""
    rank = node.meta["val"].ndim
    if value is emitter.values.packed_or_none(arguments(node).input):
        lanes = emitter.target.lanes
        return emitter.constant(np.pad(numbers, (0, -len(numbers) % lanes)))
    return emitter.constant(numbers.reshape(1, -1, *[1] * (rank - 2)))


Converter = Callable[["Emitter", fx.Node, Read], relax.Expr]
# Those that look at each element alone, in any layout.
ELEMENTWISE: dict[str, Converter] = {
    "fake_quantize_per_tensor_affine": fake_quantize_per_tensor,
    "batch_norm": batch_norm,
}
CONVERTERS: dict[str, Converter] = {**ELEMENTWISE, "embedding": embedding}
