"""Arithmetics of ARM that run on this processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planish.backends.tvm.arithmetic import Sdot, Smull, Vmull
from planish.backends.tvm.arithmetic.tir import T


@dataclass(frozen=True)
class PortableSmull(Smull):
    """Smull, with the storing of 32-bit ARM, which needs no intrinsics of ARM. Its own products do."""

    held, steps, between = Vmull.held, Vmull.steps, Vmull.between

    def multiply_zipped(
        self, totals: Sequence[Any], values: Sequence[tuple[Any, Any]], weights: Sequence[Sequence[Any]]
    ) -> None:
        """Lane by lane; the weights of both rows alternate."""
        for half, total in enumerate(totals):
            lanes = list(range(half * self.lanes, (half + 1) * self.lanes))
            for rows, read in zip(values, weights, strict=True):
                for which, row in enumerate(rows):
                    weight = T.Shuffle([read[half]], list(range(which, 2 * self.lanes, 2)))
                    total.value = self.multiply_lanes(total.value, T.Shuffle([row], lanes), weight)


@dataclass(frozen=True)
class PortableSdot(Sdot):
    """Sdot, with products of single bytes. Small sums are not stored as ARM stores them."""

    between = Vmull.between

    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        for byte in range(4):
            places = list(range(byte, 16, 4))
            total = self.multiply_lanes(total, T.Shuffle([four], places), T.Shuffle([weight], places))
        return total
