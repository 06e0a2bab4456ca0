"""Winograd's transforms in integers as vectors in registers, modulo 2**32 where they are products."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import modular
from ..arithmetic.tir import T
from .builder import Kernel, Vector
from .winograd_integer_points import Points


class Lanes:
    """A vector of int16 or int32 in a register; sums wrap around."""

    def __init__(self, kernel: Kernel, value: Vector, lanes: int, dtype: str):
        (register,) = kernel.registers(1, lanes, dtype)
        register.value = value
        self._kernel, self._lanes, self._dtype = kernel, lanes, dtype
        self.value = register.value

    def __add__(self, other: Lanes) -> Lanes:
        wide = self._dtype == "int32"
        return self._made(modular.added(self.value, other.value, self._lanes) if wide else self.value + other.value)

    def __sub__(self, other: Lanes) -> Lanes:
        wide = self._dtype == "int32"
        return self._made(
            modular.subtracted(self.value, other.value, self._lanes) if wide else self.value - other.value
        )

    def __lshift__(self, bits: int) -> Lanes:
        """Times 2**bits."""
        return self._made(T.shift_left(self.value, T.broadcast(T.cast(bits, self._dtype), self._lanes)))

    def _made(self, value: Any) -> Lanes:
        return Lanes(self._kernel, value, self._lanes, self._dtype)


def sums(value: Lanes, points: Points, shift: int, lanes: int) -> Vector:
    """A transformed product, points.odd**2 * 2**shift times its output, as 2**bits times it."""
    return modular.scaled(value.value, pow(points.odd**2, -1, 2**32) << (points.bits - shift), lanes)


def weights(weight: np.ndarray, stride: int, points: Points) -> np.ndarray:
    """[out, in, kernel, kernel] whole numbers -> [6, 6, out, phases, in] int64."""
    taps = -(-weight.shape[-1] // stride)
    whole = np.zeros((*weight.shape[:2], taps * stride, taps * stride), np.int64)
    whole[:, :, : weight.shape[2], : weight.shape[3]] = weight
    phases = [whole[:, :, a::stride, b::stride] for a, b in np.ndindex(stride, stride)]
    matrix = points.weight[taps]
    return np.einsum("ai,opcij,bj->abopc", matrix, np.stack(phases, 1), matrix, optimize=True)
