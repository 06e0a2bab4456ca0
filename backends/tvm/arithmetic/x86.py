"""fp32 on x86: a broadcast activation times a vector of weights (vfmadd231ps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Fp32
from .tir import T


@dataclass(frozen=True)
class X86Fp32(Fp32):
    """AVX-512 (16 lanes, 32 registers) or AVX2 with FMA (8 lanes, 16 registers)."""

    asks_for_maps: ClassVar[bool] = True

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
        pairs = [(p, v) for p in range(len(offsets)) for v in range(vectors)]
        if len(offsets) < vectors:  # LLVM keeps this order: the operand that changes least stays in registers
            pairs.sort(key=lambda pair: pair[1])
        for step in range(steps):
            for p, v in pairs:
                value = T.broadcast(source.scalar(offsets[p] + step), self.lanes)
                weight = self.weight_vector(weights, weight_offset, step, vectors, v)
                accumulators[p][v].value = accumulators[p][v].value + value * weight

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + min(pixels, vectors) + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels + vectors
