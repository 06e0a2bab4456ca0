"""Converters for ops that TVM's torch importer does not know, in Relax ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import fx
from tvm import relax

from ...ir.ops import arguments

if TYPE_CHECKING:
    from .relax import Emitter

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


CONVERTERS: dict[str, Callable[[Emitter, fx.Node, Read], relax.Expr]] = {
    "fake_quantize_per_tensor_affine": fake_quantize_per_tensor,
}
