"""The numbers that integer kernels read, in terms of the bytes in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from ....ir.ops import arguments, is_op
from ..kernels import Addition, StoredGrid, constants
from .fuse_integers import IntegerSum

if TYPE_CHECKING:
    from ..relax import Emitter

# A kernel's grid where only a conversion's numbers count.
NO_GRID = StoredGrid(0, 0, 0)


def grid_of(emitter: Emitter, node: fx.Node) -> StoredGrid:
    """Where the values of a call that stores bytes lie."""
    call = arguments(node)
    return emitter.storage.grid(call.zero_point, call.low, call.high, call.dtype)


def stored_zero(emitter: Emitter, value: fx.Node, zero_point: int) -> int:
    """The zero point of a value as it lies in memory."""
    return zero_point + emitter.storage.shift(value.meta["val"].dtype)


def addition_of(emitter: Emitter, add: fx.Node, factors: tuple[int, int], other: fx.Node, zero: int) -> Addition:
    """What an add_int8 does to its own (first factor) and to another operand."""
    unit = 2.0 ** -arguments(add).shift
    zero_other = stored_zero(emitter, other, zero)
    return Addition(factors[0] * unit, factors[1] * unit, zero_other, grid_of(emitter, add))


def constants_of(emitter: Emitter, kernel: IntegerSum) -> np.ndarray:
    """Of what makes integers of a kernel's sums."""
    grid = grid_of(emitter, kernel.finish)
    if kernel.add is None or kernel.residual is None:
        return constants(grid)
    call = arguments(kernel.add)
    own, other = (call.factor_left, call.zero_left), (call.factor_right, call.zero_right)
    if call.left is not kernel.finish:
        own, other = other, own
    return constants(grid, addition_of(emitter, kernel.add, (own[0], other[0]), kernel.residual, other[1]))


def arrays_of(emitter: Emitter, kernel: IntegerSum, zero_point: int) -> list[Any]:
    """What `pack` takes for a product of integers."""
    call, finish = arguments(kernel.node), arguments(kernel.finish)
    factors = emitter.array(finish.scale if is_op(kernel.finish, "dequantize_int32") else finish.multiplier)
    numbers = constants_of(emitter, kernel) if is_op(kernel.finish, "requantize") else None
    return [emitter.array(call.weight), emitter.array(call.bias), factors, numbers, zero_point]
