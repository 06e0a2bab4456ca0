"""8-bit integers on x86 with VNNI: four unsigned bytes times four signed ones, added to 32 bits (vpdpbusd)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Integers
from .tir import T


@dataclass(frozen=True)
class Vnni(Integers):
    """AVX-512 VNNI (16 lanes, 32 registers) or AVX-VNNI (8 lanes, 16 registers). Wraps, never saturates.

    The intrinsic that TVM ships is rejected by its own LLVM, which takes bytes as operands now: it is declared here.
    """

    name: ClassVar[str] = "vnni"
    activation: ClassVar[str] = "uint8"
    lowest: ClassVar[float] = 0.0
    unroll: ClassVar[int] = 16
    group: ClassVar[int] = 4

    def multiply(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        offsets: Sequence[Any],
        weights: Any,
        weight_offset: Any,
        steps: int,
    ) -> None:
        vectors, intrinsic = len(accumulators[0]), f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}"
        pairs = [(p, v) for p in range(len(offsets)) for v in range(vectors)]
        if len(offsets) < vectors:  # LLVM keeps this order: the operand that changes least stays in registers
            pairs.sort(key=lambda pair: pair[1])
        for step in range(0, steps, self.group):
            for p, v in pairs:
                four = self.broadcast_bytes(source, offsets[p] + step, min(self.group, steps - step))
                weight = weights.vector(weight_offset + (step * vectors + v * self.group) * self.lanes, self.lanes * 4)
                total = accumulators[p][v]
                total.value = T.call_llvm_pure_intrin(f"int32x{self.lanes}", intrinsic, total.value, four, weight)

    def broadcast_bytes(self, source: Any, offset: Any, count: int) -> Any:
        """Up to four neighbouring bytes in every lane; what is missing of four is zero, and is not read."""
        if count == self.group:
            four = T.reinterpret(source.vector(offset, 4), dtype="int32")
        else:
            four = T.int32(0)
            for i in range(count):
                four = four | (T.cast(source.scalar(offset + i), "int32") << T.int32(8 * i))
        return T.reinterpret(T.broadcast(four, self.lanes), dtype=f"uint8x{self.lanes * 4}")

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + min(pixels, vectors) + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels + vectors
