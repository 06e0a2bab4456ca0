"""From int32 sums to 8-bit integers or floats, as the integer contract says (planish.ir.integers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import frexp, ldexp
from typing import Any

import numpy as np

from ..arithmetic import Integers, WholeSum
from ..arithmetic.rounding import ROUNDER, nearest, with_rounder, without_rounder
from ..arithmetic.tir import T
from .builder import Vector, View
from .epilogues import Dequantize, Requantize


@dataclass(frozen=True)
class StoredGrid:
    """A grid in terms of the bytes in memory: where zero is, and the ends that values are held between."""

    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Addition:
    """own * factor + (other - zero_other) * factor_other, rounded, on `grid`. Both factors are exact in float32."""

    factor: float
    factor_other: float
    zero_other: int
    grid: StoredGrid

    def whole(self) -> tuple[int, int, int] | None:
        """(factor, other factor, bits): whole numbers of int16, times 2**bits, with as many bits as they have room for.

        None where they are not whole: then they have more than fifteen bits. Sums of products with two integers of
        eight bits and a sign lie within 24 bits.
        """
        factors = self.factor, self.factor_other
        largest = max(map(abs, factors))
        if not largest:
            return None
        bits = WHOLE_BITS - frexp(largest)[1]
        own, other = (ldexp(factor, bits) for factor in factors)
        return (int(own), int(other), bits) if own.is_integer() and other.is_integer() else None


class Constant(IntEnum):
    """Places in a kernel's array of constants. Ends are counted from the zero point."""

    LOW = 0
    HIGH = 1
    ZERO_POINT = 2
    FACTOR = 3
    FACTOR_OTHER = 4
    ZERO_OTHER = 5
    LOW_OF_SUM = 6
    HIGH_OF_SUM = 7
    ZERO_OWN = 8
    SCALE = 9
    WHOLE = 10
    WHOLE_OTHER = 11
    ROUNDER_OF_SUM = 12


CONSTANTS = len(Constant)
WHOLE_BITS = 15  # of a factor as a whole number
MOST_BITS = 64  # behind its point


def constants(own: StoredGrid, addition: Addition | None = None, scale: float = 0.0, zero_own: int = 0) -> np.ndarray:
    """What a kernel of integers reads beside its weights: [CONSTANTS] float32.

    own: the grid of what is stored, or of what `addition` then adds to. scale: of a conversion from or to float, or the
    factor of a product. zero_own: the zero point of an elementwise kernel's first operand.
    """
    last = addition.grid if addition else own
    array = np.zeros(CONSTANTS, np.float32)
    array[Constant.LOW], array[Constant.HIGH] = own.low - own.zero_point, own.high - own.zero_point
    array[Constant.ZERO_POINT], array[Constant.ZERO_OWN], array[Constant.SCALE] = last.zero_point, zero_own, scale
    if addition:
        array[Constant.FACTOR], array[Constant.FACTOR_OTHER] = addition.factor, addition.factor_other
        array[Constant.ZERO_OTHER] = addition.zero_other
        array[Constant.LOW_OF_SUM] = last.low - last.zero_point
        array[Constant.HIGH_OF_SUM] = last.high - last.zero_point
        if (whole := addition.whole()) and whole[2] <= MOST_BITS:
            array[Constant.WHOLE], array[Constant.WHOLE_OTHER] = whole[:2]
            array[Constant.ROUNDER_OF_SUM] = ldexp(ROUNDER, whole[2])
    return array


@dataclass(frozen=True)
class Steps:
    """Values on a grid, as float32 counted from its zero point; `constant` is the kernel's array of constants."""

    lanes: int
    constant: View

    def number(self, which: Constant) -> Vector:
        return T.broadcast(self.constant.scalar(int(which)), self.lanes)

    def rounded(self, real: Vector) -> Vector:
        """Real numbers of steps, rounded half to even and held between the ends."""
        return self._held(real, Constant.LOW, Constant.HIGH)

    def plus(self, own: Vector, other: Vector) -> Vector:
        """The steps of a sum. own: steps; other: integers as they are stored."""
        return self._held(self.total(own, self.centered(other)), Constant.LOW_OF_SUM, Constant.HIGH_OF_SUM)

    def centered(self, other: Vector) -> Vector:
        """Integers as they are stored, from their zero point on."""
        return T.cast(other, f"float32x{self.lanes}") - self.number(Constant.ZERO_OTHER)

    def total(self, own: Vector, centered: Vector) -> Vector:
        """A sum in real numbers of steps."""
        return own * self.number(Constant.FACTOR) + centered * self.number(Constant.FACTOR_OTHER)

    def stored(self, steps: Vector) -> Vector:
        """Steps as the integers in memory, held in int32."""
        return T.cast(steps + self.number(Constant.ZERO_POINT), f"int32x{self.lanes}")

    def low_bytes(self, real: Vector, low: Constant, high: Constant) -> Vector:
        """Real numbers of steps as int32, of which the lowest byte is the integer in memory.

        Taken from the bits of a sum that rounds: cheaper than to round, add and convert.
        """
        bounded = T.min(T.max(real, self.number(low)), self.number(high))
        whole = T.reinterpret(with_rounder(bounded, self.lanes), dtype=f"int32x{self.lanes}")
        zero_point = T.cast(self.constant.scalar(int(Constant.ZERO_POINT)), "int32")
        return whole + T.broadcast(zero_point, self.lanes)

    def _held(self, value: Vector, low: Constant, high: Constant) -> Vector:
        return nearest(T.min(T.max(value, self.number(low)), self.number(high)), self.lanes)


def start(epilogue: Any) -> int:
    """What every sum begins with beside its bias.

    Small sums begin with the bits of `ROUNDER`: the bits that they end with are those of the float `ROUNDER` + sum, so
    that one subtraction makes a float32 of a sum. On the Cortex-A76 a conversion takes as long as four of them. What is
    read of a sum beyond 22 bits grows with it, if not by the same: it lies beyond the end of the grid all the same.
    """
    small = isinstance(epilogue, Requantize) and epilogue.small
    return int(np.float32(ROUNDER).view(np.int32)) if small else 0


def _floats(epilogue: Requantize | Dequantize, sums: Vector, lanes: int) -> Vector:
    """Sums as float32, rounded half to even where they are not small."""
    kind = f"float32x{lanes}"
    return without_rounder(T.reinterpret(sums, dtype=kind), lanes) if start(epilogue) else T.cast(sums, kind)


def finish(
    epilogue: Requantize | Dequantize,
    sums: Vector,
    lanes: int,
    multiplier: Vector,
    constant: View | None,
    residual: Vector | None,
) -> Vector:
    """A vector of int32 sums as the bytes (the lowest of int32) or the floats that are stored."""
    real = _floats(epilogue, sums, lanes) * multiplier
    if isinstance(epilogue, Dequantize):
        return real
    assert constant is not None
    grid = Steps(lanes, constant)
    if residual is None:
        return grid.low_bytes(real, Constant.LOW, Constant.HIGH)
    total = grid.total(grid.rounded(real), grid.centered(residual))
    return grid.low_bytes(total, Constant.LOW_OF_SUM, Constant.HIGH_OF_SUM)


def finish_together(
    epilogue: Requantize,
    arithmetic: Integers,
    sums: Sequence[Vector],
    multipliers: Sequence[Vector],
    constant: View,
    residuals: Sequence[Vector],
) -> Vector:
    """Vectors of int32 sums as one vector of the bytes that are stored.

    residuals: bytes of one vector each, or of as many as the arithmetic reads at a time; or none at all.
    """
    grid, low, high = Steps(arithmetic.lanes, constant), Constant.LOW, Constant.HIGH
    reals = [_floats(epilogue, s, arithmetic.lanes) * m for s, m in zip(sums, multipliers, strict=True)]
    if residuals and epilogue.whole:
        numbers = WholeSum(*(constant.scalar(int(which)) for which in _OF_WHOLE_SUM))
        return arithmetic.stored_sum(reals, residuals, numbers, saturates=epilogue.saturates)
    if residuals:
        ends = constant.scalar(int(low)), constant.scalar(int(high))
        steps = [arithmetic.steps(real, *ends) for real in reals]
        zero = constant.scalar(int(Constant.ZERO_OTHER))
        length = len(reals) // len(residuals)
        centered = [value for other in residuals for value in arithmetic.centered(other, zero, length)]
        reals = [grid.total(own, other) for own, other in zip(steps, centered, strict=True)]
        low, high = Constant.LOW_OF_SUM, Constant.HIGH_OF_SUM
    bounds = [constant.scalar(int(each)) for each in (low, high, Constant.ZERO_POINT)]
    if arithmetic.reads_bounds and (residuals or epilogue.bounded):
        return arithmetic.stored_bounded(reals, *bounds, saturates=epilogue.saturates)
    if epilogue.small:
        return arithmetic.stored_small(reals, *bounds, saturates=epilogue.saturates, even=epilogue.even)
    if epilogue.saturates and not residuals:
        return arithmetic.stored_saturated(reals, *bounds)
    return arithmetic.stored_bytes(reals, *bounds)


# In the order of `WholeSum`.
_OF_WHOLE_SUM = (
    Constant.LOW, Constant.HIGH, Constant.ZERO_OTHER, Constant.WHOLE, Constant.WHOLE_OTHER, Constant.ROUNDER_OF_SUM,
    Constant.LOW_OF_SUM, Constant.HIGH_OF_SUM, Constant.ZERO_POINT,
)  # fmt: skip


def result_dtype(epilogue: Any, activation: str) -> str:
    """dtype of what a kernel stores."""
    return activation if isinstance(epilogue, Requantize) else "float32"
