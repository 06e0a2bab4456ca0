"""Winograd's transforms of inputs and products, as sums of vectors that stay in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Kernel, Vector
from .winograd_matrices import Matrices


@dataclass(frozen=True)
class Transforms:
    """The matrices of a tile, applied to vectors of channels."""

    kernel: Kernel
    arithmetic: Arithmetic
    matrices: Matrices

    def spread(self, values: list[list[Vector]]) -> list[list[Vector]]:
        """input @ values @ input^T. A line that lacks its last value lacks its place at infinity too."""
        return _both_ways(self._spread_line, values)

    def gather(self, values: list[list[Vector]]) -> list[list[Vector]]:
        """output @ values @ output^T."""
        return _both_ways(self._gather_line, values)

    def weight(self, values: list[list[Vector]]) -> list[list[Vector]]:
        """weight @ values @ weight^T."""
        return _both_ways(self._weight_line, values)

    def hold(self, value: Vector) -> Vector:
        """The value in a register, so that it is computed once."""
        (register,) = self.kernel.registers(1, self.arithmetic.lanes, self.arithmetic.activation)
        register.value = value
        return register.value

    def number(self, value: float) -> Vector:
        """A number in every lane."""
        return T.broadcast(T.cast(value, self.arithmetic.activation), self.arithmetic.lanes)

    def _spread_line(self, values: Sequence[Vector]) -> list[Vector]:
        """The input matrix times a line. Mirrored rows share the sums of their even and of their odd terms.

        They are mirrored where the points are: a single one makes the polynomials of all others uneven.
        """
        *finite, last = [row[: len(values)] for row in self.matrices.input]
        results = [self._sum(finite[0], values)]
        if len(finite) % 2 == 0:
            results += [self._sum(row, values) for row in finite[1:]]
        else:
            for row in finite[1::2]:
                even = self._sum(_every_second(row, 0), values)
                odd = self._sum(_every_second(row, 1), values)
                results += [self.hold(even + odd), self.hold(even - odd)]
        return [*results, self._sum(last, values)] if len(values) > len(finite) else results

    def _gather_line(self, values: Sequence[Vector]) -> list[Vector]:
        """The output matrix times a line. Mirrored columns are added for even rows, subtracted for odd ones."""
        first, *middle, last = values
        pairs = [(middle[i], middle[i + 1]) for i in range(0, len(middle) - 1, 2)]
        single = middle[2 * len(pairs) :]
        joined = [
            [self.hold(a + b) for a, b in pairs] + single,
            [self.hold(a - b) for a, b in pairs] + single,
        ]
        results = []
        for i, row in enumerate(self.matrices.output):
            factors = row[0], *row[1:-1:2], row[-1]
            results.append(self._sum(factors, [first, *joined[i % 2], last]))
        return results

    def _weight_line(self, values: Sequence[Vector]) -> list[Vector]:
        """The weight matrix times a line. Mirrored rows share the sums of their even and of their odd terms."""
        first, *middle, last = self.matrices.weight
        results = [self._sum(first, values)]
        for row in middle[::2]:
            even, odd = (self._sum(_every_second(row, start), values) for start in (0, 1))
            results += [self.hold(even + odd), self.hold(even - odd)]
        return [*results, self._sum(last, values)]

    def _sum(self, factors: Sequence[Fraction], values: Sequence[Vector]) -> Vector:
        """The sum of factor * value, in a register. A factor of 1 comes first where there is one: it is no product."""
        terms = sorted(((f, v) for f, v in zip(factors, values, strict=True) if f), key=lambda term: term[0] != 1)
        (factor, value), *rest = terms
        total = self._scaled(value, factor)
        for factor, value in rest:
            scaled = self._scaled(value, abs(factor))
            total = total + scaled if factor > 0 else total - scaled
        return self.hold(total)

    def _scaled(self, value: Vector, factor: Fraction) -> Vector:
        return value if factor == 1 else value * self.number(float(factor))


def _both_ways(transform: Callable[[Sequence[Vector]], list[Vector]], values: list[list[Vector]]) -> list[list[Vector]]:
    """matrix @ values @ matrix^T, row by row."""
    columns = [transform(column) for column in zip(*values, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _every_second(row: Sequence[Fraction], start: int) -> list[Fraction]:
    return [factor if i % 2 == start else Fraction(0) for i, factor in enumerate(row)]
