"""The matrices of Winograd's minimal filtering F(m x m, r x r), from their interpolation points (exact fractions).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"; built as by Toom and Cook: a 1-d filter is the
product of two polynomials, evaluated at m + r - 2 points and at infinity, and interpolated. Points come as 0 and pairs
+-p (the last one may be single), so that rows and columns of the matrices come in mirrored pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

# Inputs of a tile, per side -> where the polynomials are evaluated, besides infinity.
POINTS = {4: (0, 1, -1), 5: (0, 1, -1, 2), 6: (0, 1, -1, 2, -2)}
# For float16, with half the error: the powers of the points stay nearer 1 (Barabasz et al. 2020, "Error Analysis and
# Improving the Accuracy of Winograd Convolution for Deep Neural Networks"), and factors of the transforms are exact.
_HALF = Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)
HALF_POINTS = {4: (0, 1, -1), 5: (0, *_HALF[:3]), 6: (0, *_HALF)}

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Matrices:
    """output @ ((weight @ g) * (input @ d)): [m, n], [n, r] and [n, n], with n = m + r - 1."""

    output: Matrix
    weight: Matrix
    input: Matrix


@cache
def matrices(outputs: int, taps: int = 3, dtype: str = "float32", *, powers: bool = False) -> Matrices:
    """Those of F(outputs, taps) for sums in a dtype.

    powers: the weight's factors are powers of the points, and the input's take their denominators: for weights that are
    transformed while the kernel runs, in half of the operations.
    """
    size = outputs + taps - 1
    points = [Fraction(p) for p in (HALF_POINTS if dtype == "float16" else POINTS)[size]]
    by_output = [[p**i for p in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    distances = [_distance(p, points) for p in points]
    by_weight = [[p**j / (1 if powers else d) for j in range(taps)] for p, d in zip(points, distances, strict=True)]
    by_weight.append([Fraction(j == taps - 1) for j in range(taps)])
    by_input = [
        [c / (d if powers else 1) for c in _polynomial([q for q in points if q != p], size)]
        for p, d in zip(points, distances, strict=True)
    ]
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
