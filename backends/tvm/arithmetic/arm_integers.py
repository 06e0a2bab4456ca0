"""8-bit integers on NEON: signed activations; eight products at a time for two pixels, or four, or two."""

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

    table_lanes: ClassVar[int] = 16

    def look_up(self, table: Any, places: Any) -> Any:
        """Four tables of 64 bytes (tbl); a place outside of one gives zero."""
        found = T.broadcast(T.cast(0, "int8"), 16)
        for quarter in range(4):
            parts = [table.vector(64 * quarter + 16 * i, 16) for i in range(4)]
            inside = places - T.broadcast(T.cast(64 * quarter - 128, "int8"), 16)
            found = found | T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4", *parts, inside)
        return found

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2


class ByPixel(NeonIntegers):
    """Four activations of one pixel are multiplied at a time."""

    group: ClassVar[int] = 4

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
                    four = self.lane(whole[p], step) if whole else four_bytes(source, offset + step, steps - step)
                    accumulators[p][v].value = self.add_products(accumulators[p][v].value, four, weight)

    def lane(self, bytes_read: Any, step: int) -> Any:
        """Four neighbouring bytes of a vector of 16, as an int32."""
        return T.Shuffle([T.reinterpret(bytes_read, dtype="int32x4")], [step // self.group])


@dataclass(frozen=True)
class Sdot(ByPixel):
    """sdot by element, of cores with the dot product (Cortex-A55, A76 and newer)."""

    name: ClassVar[str] = "sdot"

    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        spread = T.reinterpret(T.broadcast(four, self.lanes), dtype="int8x16")
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot", total, weight, spread)


@dataclass(frozen=True)
class Smmla(NeonIntegers):
    """smmla of the matrix extension i8mm (Neoverse V1 and newer, Cortex-A510, A710, X2): eight k steps of two pixels
    times two outputs, twice the products of sdot.

    The accumulators of two neighbouring pixels hold outputs 0 and 1 of both, then outputs 2 and 3 of both. A pixel
    without a neighbour costs as much as a pair.
    """

    name: ClassVar[str] = "smmla"
    unroll: ClassVar[int] = 8
    group: ClassVar[int] = 8
    rows: ClassVar[int] = 2

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
        pairs = [self.pair(source, offsets[p : p + 2], steps) for p in range(0, len(offsets), 2)]
        for v in range(vectors):
            for half in range(2):
                weight = weights.vector(weight_offset + v * self.group * self.lanes + half * 16, 16)
                for p, pixels in enumerate(pairs):
                    total = accumulators[2 * p + half][v]
                    products = "llvm.aarch64.neon.smmla"
                    total.value = T.call_llvm_pure_intrin("int32x4", products, total.value, pixels, weight)

    def pair(self, source: Any, offsets: Sequence[Any], steps: int) -> Any:
        """Up to eight neighbouring bytes of each of two pixels in one vector; zeros for one that takes no part."""
        halves = [T.int64(0) if offset is None else _bytes(source, offset, steps, 8) for offset in offsets]
        return T.reinterpret(T.Shuffle(halves, [0, 1]), dtype="int8x16")

    def woven(self, values: Sequence[Any]) -> Sequence[Any]:
        return [T.Shuffle(list(values), [0, 1, 4, 5]), T.Shuffle(list(values), [2, 3, 6, 7])]

    def unwoven(self, values: Sequence[Any]) -> Sequence[Any]:
        return self.woven(values)  # a transposition of pairs: it is its own inverse

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels + 2 * vectors

    def registers_used(self, pixels: int, vectors: int) -> int:
        pairs = -(-pixels // 2)
        return 2 * pairs * vectors + pairs + 2

    def time(self, pixels: int, vectors: int) -> float:
        """Beside the products each pair of pixels takes an instruction that puts it into one vector."""
        even = pixels + pixels % 2
        return super().time(even, vectors) + even / 2


def four_bytes(source: Any, offset: Any, count: int) -> Any:
    """Four neighbouring bytes in memory as an int32; what is missing of `count` is zero, and not read."""
    return _bytes(source, offset, count, 4)


def _bytes(source: Any, offset: Any, count: int, size: int) -> Any:
    """`size` (4 or 8) neighbouring bytes in memory as an integer; what is missing of `count` is zero, and not read."""
    kind = f"int{8 * size}"
    if count >= size:
        return T.reinterpret(source.vector(offset, size), dtype=kind)
    whole = T.cast(0, kind)
    for i in range(count):
        byte = T.cast(T.reinterpret(source.scalar(offset + i), dtype="uint8"), kind)
        whole = whole | (byte << T.cast(8 * i, kind))
    return whole
