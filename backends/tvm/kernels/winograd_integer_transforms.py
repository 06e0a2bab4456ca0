"""The transforms of Winograd's F(4, 3) and F(3, 3), F(3, 4) and F(2, 4) in whole numbers, so that sums come out exact.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"; points 0, 1, -1, 2, -1/2 and infinity: tiles
of five inputs lack -1/2. Denominators of the method that weights and inputs do not take are in the results: a line of
them is its outputs times 30, a tile 900 times. All is computed modulo 2**32, where 225 has an inverse: what is left are
the outputs times 4. With the usual points, 2 and -2, it would be 64, and sums above 2**25 would be lost.

What a tile's input comes to, with bytes as they lie in memory (-128 to 127), is at most 128 * 14 * 14 = 25,088, and the
weights at most 128 * 15 * 15 = 28,800: both are int16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arithmetic import modular
from ..arithmetic.tir import T
from .builder import Kernel, Vector

# Inputs of a tile, per side -> the number of each of its places among the six points.
PLACES = {6: (0, 1, 2, 3, 4, 5), 5: (0, 1, 2, 3, 5)}
ONE = 1  # the place of the point 1
# By taps, [place][tap]: the powers of a point, in whole numbers
WEIGHT = {
    3: np.array([(15, 0, 0), (5, 5, 5), (5, -5, 5), (1, 2, 4), (4, -2, 1), (0, 0, 15)]),
    4: np.array([(15, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (8, -4, 2, -1), (0, 0, 0, 15)]),
}
SCALE = 30 * 30  # a tile of transformed products is its outputs times this
BITS = 2  # what is left of it: its power of two
# By taps: what a bias becomes as a product at the place of the point 1 on both sides, which reaches every output alike.
OF_BIAS = {3: SCALE, 4: SCALE // 25}
LARGEST_SUM = 2 ** (31 - BITS) - 1


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


def spread_line(d: Sequence[Lanes]) -> list[Lanes]:
    """Six or five inputs at the places of a tile of four or three outputs."""
    odd = d[3] - d[1]
    if len(d) == 5:
        one, rise = d[1] + d[2] - odd, d[2] - d[1]
        return [
            ((d[0] - d[2]) << 1) + odd,
            one + (one << 1),
            rise + (rise << 1) - odd,
            odd + (odd << 2),
            (d[4] - d[2] - (odd << 1)) << 1,
        ]
    even, twice = d[4] - d[2], odd << 1
    low, high = d[2] - (odd - d[2] << 1), d[3] - (even - d[3] << 1)
    return [
        ((even - d[2] + d[0]) << 1) - twice - odd,
        low + high,
        low - high,
        (even << 1) + odd,
        even - twice,
        ((d[5] - d[3] - odd - even) << 1) - even,
    ]


def gather_line(m: Sequence[Lanes], taps: int) -> list[Lanes]:
    """Products at the places of a tile -> its outputs, each times 30."""
    even, odd, two = m[1] + m[2], m[1] - m[2], m[3]
    if taps == 4:  # five times these would not fit into the weights
        even, odd = even + (even << 2), odd + (odd << 2)
    if len(m) == 5:
        lines = [m[0] + even + two, odd + (two << 1), even + (two << 2)]
    elif taps == 3:
        half = m[4]
        lines = [
            m[0] + even + two - (half << 3),
            odd + (two + (half << 1) << 1),
            even + ((two << 1) - half << 1),
            odd + (two << 3) + half,
        ]
    else:
        half = m[4]
        lines = [m[0] + even + two - (half << 2), odd + (two + half << 1), even + (two << 2) - half]
    outputs = len(m) - taps + 1
    return [*lines[: outputs - 1], lines[outputs - 1] + m[-1]]


def sums(value: Lanes, lanes: int) -> Vector:
    """A transformed product, `SCALE` times its output, as 2**BITS times it."""
    return modular.scaled(value.value, pow(SCALE >> BITS, -1, 2**32), lanes)


def weights(weight: np.ndarray, stride: int) -> np.ndarray:
    """[out, in, kernel, kernel] whole numbers -> [6, 6, out, phases * in] int64."""
    taps = -(-weight.shape[-1] // stride)
    whole = np.zeros((*weight.shape[:2], taps * stride, taps * stride), np.int64)
    whole[:, :, : weight.shape[2], : weight.shape[3]] = weight
    phases = [whole[:, :, a::stride, b::stride] for a, b in np.ndindex(stride, stride)]
    matrix = WEIGHT[taps]
    return np.einsum("ai,ocij,bj->aboc", matrix, np.concatenate(phases, 1), matrix, optimize=True)
