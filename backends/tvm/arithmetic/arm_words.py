"""16-bit integers on NEON, summed modulo 2**32: the products of Winograd's filtering in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from . import modular
from .base import Arithmetic, Integers
from .tir import T


@dataclass(frozen=True)
class Smlal(Arithmetic):
    """smlal and smlal2 by element: four products of int16 in each. 4 lanes, 32 registers.

    One load of activations feeds `unroll` k steps, one of eight weights both halves of a register. Activations are
    loaded whole whatever `steps` is: their rows are padded.
    """

    name: ClassVar[str] = "smlal"
    activation: ClassVar[str] = "int16"
    weight: ClassVar[str] = "int16"
    accumulator: ClassVar[str] = "int32"
    lane_weight: ClassVar[str] = "int16"
    means: ClassVar[str] = "int32"
    unroll: ClassVar[int] = 8

    ends_apart: ClassVar[bool] = True
    copied: ClassVar[int] = 64  # bytes in a pass of a loop that copies

    def multiply(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        offsets: Sequence[Any],
        weights: Any,
        weight_offset: Any,
        steps: int,
    ) -> None:
        vectors = len(accumulators[0])
        values = [source.vector(offset, self.unroll) for offset in offsets]
        for step in range(steps):
            for first in range(0, vectors, self.unroll // self.lanes):
                count = min(self.unroll // self.lanes, vectors - first)
                read = weights.vector(weight_offset + (step * vectors + first) * self.lanes, count * self.lanes)
                for row, value in zip(accumulators, values, strict=True):
                    spread = T.broadcast(T.Shuffle([value], [step]), self.lanes)
                    for half, total in enumerate(row[first : first + count]):
                        lanes = list(range(half * self.lanes, (half + 1) * self.lanes))
                        weight = T.Shuffle([read], lanes) if count > 1 else read
                        total.value = self.multiply_lanes(total.value, spread, weight)

    def multiply_lanes(self, total: Any, value: Any, weight: Any) -> Any:
        return modular.added(total, self.product(value, weight), self.lanes)

    def product(self, value: Any, weight: Any) -> Any:
        """int16 times int16, which no product overflows."""
        kind = f"int32x{self.lanes}"
        return T.cast(weight, kind) * T.cast(value, kind)

    def registers_used(self, pixels: int, vectors: int) -> int:
        """Sums, activations, two of weights, and two to spare: without them LLVM runs out of the sixteen registers that
        can be read by element, and spills activations within the loop."""
        return pixels * vectors + pixels + 4

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.unroll + vectors * self.lanes / self.unroll

    def time(self, pixels: int, vectors: int) -> float:
        """One pipe multiplies, an instruction a cycle, and takes four for a sum; weights come from L2."""
        return max(pixels * vectors, 4) + 0.2 * self.loads(pixels, vectors) + 0.2 * vectors


@dataclass(frozen=True)
class Vmlal(Smlal):
    """vmlal.s16 by element, on 32-bit ARM with 16 registers. Loads fill half of one: those take an offset."""

    name: ClassVar[str] = "vmlal"
    unroll: ClassVar[int] = 4
    ends_apart: ClassVar[bool] = False
    copied: ClassVar[int] = 16

    def registers_used(self, pixels: int, vectors: int) -> int:
        """None to spare: loads fill halves."""
        return pixels * vectors + pixels + 2

    def product(self, value: Any, weight: Any) -> Any:
        """By an intrinsic: LLVM would spread activations by way of general registers."""
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", "llvm.arm.neon.vmulls", weight, value)


def words(integers: Integers) -> Smlal:
    """The products in 16 bits of a machine that multiplies bytes by `integers`."""
    kind = Vmlal if integers.registers < 32 else Smlal
    return kind(integers.lanes, integers.registers, integers.cores, integers.cache)
