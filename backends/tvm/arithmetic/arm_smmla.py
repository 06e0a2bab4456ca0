"""8-bit integers on NEON with i8mm: eight products at a time, for two pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .arm_integers import NeonIntegers, few_bytes
from .tir import T


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
        halves = [T.int64(0) if offset is None else few_bytes(source, offset, steps, 8) for offset in offsets]
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
