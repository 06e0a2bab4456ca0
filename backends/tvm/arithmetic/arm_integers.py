"""8-bit integers on NEON: signed activations, with the dot product four products at a time, else two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Integers
from .tir import T


class NeonIntegers(Integers):
    """Activations are signed. 4 lanes, 32 registers."""

    activation: ClassVar[str] = "int8"
    lowest: ClassVar[float] = -128.0
    unroll: ClassVar[int] = 16
    group: ClassVar[int] = 4

    table_lanes: ClassVar[int] = 16

    def look_up(self, table: Any, places: Any) -> Any:
        """Four tables of 64 bytes (tbl); a place outside of one gives zero."""
        found = T.broadcast(T.cast(0, "int8"), 16)
        for quarter in range(4):
            parts = [table.vector(64 * quarter + 16 * i, 16) for i in range(4)]
            inside = places - T.broadcast(T.cast(64 * quarter - 128, "int8"), 16)
            found = found | T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4", *parts, inside)
        return found

    @abstractmethod
    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        """total plus the products of four activations (an int32) with four weights (int8x16) for each lane."""

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
        # One load feeds four groups; fewer steps than that end a row, and a whole vector could reach past the buffer.
        whole = [source.vector(offset, self.unroll) for offset in offsets] if steps == self.unroll else None
        for step in range(0, steps, self.group):
            for v in range(vectors):
                weight = weights.vector(weight_offset + (step * vectors + v * self.group) * self.lanes, 16)
                for p, offset in enumerate(offsets):
                    four = self.lane(whole[p], step) if whole else self.four(source, offset + step, steps - step)
                    accumulators[p][v].value = self.add_products(accumulators[p][v].value, four, weight)

    def lane(self, bytes_read: Any, step: int) -> Any:
        """Four neighbouring bytes of a vector of 16, as an int32."""
        return T.Shuffle([T.reinterpret(bytes_read, dtype="int32x4")], [step // self.group])

    def four(self, source: Any, offset: Any, count: int) -> Any:
        """Four neighbouring bytes in memory as an int32; what is missing of `count` is zero, and is not read."""
        if count >= self.group:
            return T.reinterpret(source.vector(offset, 4), dtype="int32")
        four = T.int32(0)
        for i in range(count):
            byte = T.cast(T.reinterpret(source.scalar(offset + i), dtype="uint8"), "int32")
            four = four | (byte << T.int32(8 * i))
        return four

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2


@dataclass(frozen=True)
class Sdot(NeonIntegers):
    """sdot by element, of cores with the dot product (Cortex-A55, A76 and newer)."""

    name: ClassVar[str] = "sdot"

    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        spread = T.reinterpret(T.broadcast(four, self.lanes), dtype="int8x16")
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot", total, weight, spread)


@dataclass(frozen=True)
class Smull(NeonIntegers):
    """smull and smlal to 16 bits, sadalp to 32, of cores without the dot product (Cortex-A53, A72).

    Two products of an activation and a weight within -127..127 fit 16 bits: 2 * 128 * 127 < 2**15.
    """

    name: ClassVar[str] = "smull"

    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        spread = T.reinterpret(T.broadcast(four, self.lanes), dtype="int8x16")
        halves = [_half(spread, i, "int16x8") * _half(weight, i, "int16x8") for i in range(2)]
        # Lanes hold products [k0 k1 k2 k3] of output 0, then of output 1: pairs are added, and pairs of pairs.
        sums = [T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp", half) for half in halves]
        return total + T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp", *sums)


def _half(vector: Any, which: int, kind: str) -> Any:
    return T.cast(T.Shuffle([vector], list(range(which * 8, which * 8 + 8))), kind)
