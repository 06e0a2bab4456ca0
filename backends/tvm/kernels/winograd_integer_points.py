"""Winograd's F(4, 3) and F(3, 3), F(3, 4) and F(2, 4) in whole numbers, for two sets of interpolation points.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks". A tile has six inputs a side, or five, which
lack the fifth point. Denominators of the method that weights and inputs do not take are in the results: a line of them
is its outputs times an odd number and a power of two, and modulo 2**32 the odd one has an inverse. The power of two is
what sums need room for: points 2 and -2 need the fewest operations, and sums below 2**25; 2 and -1/2 leave 2**29.

What a tile's input comes to, with bytes as they lie in memory (-128 to 127), is at most 128 * 14 * 14 = 25,088, and
weights at most 128 * 15 * 15 = 28,800: both are int16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Inputs of a tile, per side -> the number of each of its places among the six points.
PLACES = {6: (0, 1, 2, 3, 4, 5), 5: (0, 1, 2, 3, 5)}
ONE = 1  # the place of the point 1
INFINITY = 5  # that of the highest tap

Values = Sequence[Any]  # whole numbers, or vectors of them, with +, - and <<


@dataclass(frozen=True)
class Points:
    """A set of points.

    weight: by taps, [place][tap]: powers of the points, in whole numbers; odd: of the scale of a line of outputs;
    shifts: by inputs, the power of two of each; bits: that of a whole tile at most; of_bias: by taps, what a bias
    becomes as a product at the place of the point 1 on both sides, which reaches every output alike; spread: inputs at
    the places of a tile; gather: products at those places and taps -> outputs, scaled.
    """

    weight: dict[int, np.ndarray]
    odd: int
    shifts: dict[int, tuple[int, ...]]
    bits: int
    of_bias: dict[int, int]
    spread: Callable[[Values], list[Any]]
    gather: Callable[[Values, int], list[Any]]

    @property
    def largest_sum(self) -> int:
        """Beside the power of two in int32."""
        return 2 ** (31 - self.bits) - 1


def _spread_shared(d: Values, odd: Any) -> list[Any]:
    """Five inputs at 0, 1 and -1, which are alike for both sets of points."""
    one, rise = d[1] + d[2] - odd, d[2] - d[1]
    return [((d[0] - d[2]) << 1) + odd, one + (one << 1), rise + (rise << 1) - odd]


def _spread_two(d: Values) -> list[Any]:
    """Those at 1 and -1 have the other sign."""
    odd = d[3] - d[1]
    if len(d) == 5:
        return [*_spread_shared(d, odd), odd, d[4] - d[2] - (odd << 1)]
    even, twice = d[4] - d[2], odd << 1
    even_one, odd_one = (d[2] << 2) - d[4], (d[1] << 2) - d[3]
    return [
        ((d[0] - d[2]) << 2) + even,
        even_one + odd_one,
        even_one - odd_one,
        even + twice,
        even - twice,
        d[5] - d[3] - (twice << 1),
    ]


def _gather_two(m: Values, taps: int) -> list[Any]:
    """Times 3 and 8, 4, 2, 2, or with five places 4, 2, 2."""
    even, odd, two = m[1] + m[2], m[1] - m[2], m[3]
    if len(m) == 5:
        return _with_last([m[0] + ((even + two) << 1), odd + (two << 1), even + (two << 2)], m, taps)
    sum_, rest = two + m[4], two - m[4]
    return _with_last([m[0] + (even << 2) + sum_, (odd << 1) + rest, even + sum_, odd + (rest << 1)], m, taps)


def _spread_half(d: Values) -> list[Any]:
    odd = d[3] - d[1]
    if len(d) == 5:
        return [*_spread_shared(d, odd), odd + (odd << 2), (d[4] - d[2] - (odd << 1)) << 1]
    even, twice = d[4] - d[2], odd << 1
    low, high = d[2] - ((odd - d[2]) << 1), d[3] - ((even - d[3]) << 1)
    return [
        ((even - d[2] + d[0]) << 1) - twice - odd,
        low + high,
        low - high,
        (even << 1) + odd,
        even - twice,
        ((d[5] - d[3] - odd - even) << 1) - even,
    ]


def _gather_half(m: Values, taps: int) -> list[Any]:
    """Times 30."""
    even, odd, two = m[1] + m[2], m[1] - m[2], m[3]
    if taps == 4:  # five times these would not fit into the weights
        even, odd = even + (even << 2), odd + (odd << 2)
    if len(m) == 5:
        return _with_last([m[0] + even + two, odd + (two << 1), even + (two << 2)], m, taps)
    half = m[4]
    if taps == 4:
        return _with_last([m[0] + even + two - (half << 2), odd + ((two + half) << 1), even + (two << 2) - half], m, 4)
    lines = [
        m[0] + even + two - (half << 3),
        odd + ((two + (half << 1)) << 1),
        even + (((two << 1) - half) << 1),
        odd + (two << 3) + half,
    ]
    return _with_last(lines, m, taps)


def _with_last(lines: list[Any], m: Values, taps: int) -> list[Any]:
    """As many outputs as there are; the place at infinity belongs to the last one."""
    last = len(m) - taps
    return [*lines[:last], lines[last] + m[-1]]


TWO = Points(
    weight={
        3: np.array([(6, 0, 0), (1, 1, 1), (1, -1, 1), (1, 2, 4), (1, -2, 4), (0, 0, 6)]),
        4: np.array([(6, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (1, -2, 4, -8), (0, 0, 0, 6)]),
    },
    odd=3,
    shifts={6: (3, 2, 1, 1), 5: (2, 1, 1)},
    bits=6,
    of_bias={3: 36, 4: 36},
    spread=_spread_two,
    gather=_gather_two,
)
HALF = Points(
    weight={
        3: np.array([(15, 0, 0), (5, 5, 5), (5, -5, 5), (1, 2, 4), (4, -2, 1), (0, 0, 15)]),
        4: np.array([(15, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (8, -4, 2, -1), (0, 0, 0, 15)]),
    },
    odd=15,
    shifts={6: (1, 1, 1, 1), 5: (1, 1, 1)},
    bits=2,
    of_bias={3: 900, 4: 36},
    spread=_spread_half,
    gather=_gather_half,
)


def points_of(*, wide: bool) -> Points:
    """Those of a layer. wide: for sums that may exceed what 2 and -2 leave room for."""
    return HALF if wide else TWO
