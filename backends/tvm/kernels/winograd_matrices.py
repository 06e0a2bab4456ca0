"""The matrices of Winograd's minimal filtering F(m x m, 3 x 3), from their interpolation points (exact fractions).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"; built as by Toom and Cook: a 1-d filter is the
product of two polynomials, evaluated at m + 1 points and at infinity, and interpolated. Points come as 0 and pairs
+-p, so that rows and columns of the matrices come in mirrored pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

TAPS = 3
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2)}  # outputs of a tile -> where the polynomials are evaluated
# For float16, with half the error: the powers of the points stay nearer 1 (Barabasz et al. 2020, "Error Analysis and
# Improving the Accuracy of Winograd Convolution for Deep Neural Networks"), and factors of the transforms are exact.
HALF_POINTS = {2: (0, 1, -1), 4: (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Matrices:
    """output @ ((weight @ g) * (input @ d)): [m, n], [n, 3] and [n, n], with n = m + 2."""

    output: Matrix
    weight: Matrix
    input: Matrix


@cache
def matrices(outputs: int, dtype: str = "float32") -> Matrices:
    """Those of F(outputs, 3) for sums in a dtype."""
    points = [Fraction(p) for p in (HALF_POINTS if dtype == "float16" else POINTS)[outputs]]
    size = outputs + TAPS - 1
    by_output = [[p**i for p in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    by_weight = [[p**j / _distance(p, points) for j in range(TAPS)] for p in points]
    by_weight.append([Fraction(j == TAPS - 1) for j in range(TAPS)])
    by_input = [_polynomial([q for q in points if q != p], size) for p in points]
    by_input.append(_polynomial(points, size))
    return Matrices(*(tuple(map(tuple, rows)) for rows in (by_output, by_weight, by_input)))


def _distance(point: Fraction, points: list[Fraction]) -> Fraction:
    product = Fraction(1)
    for other in points:
        if other != point:
            product *= point - other
    return product


def _polynomial(roots: list[Fraction], size: int) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [-root * c for c in coefficients]
        coefficients = [a + b for a, b in zip(shifted, [*scaled, Fraction(0)], strict=True)]
    return coefficients + [Fraction(0)] * (size - len(coefficients))
