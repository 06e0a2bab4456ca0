"""fp32 on NEON: one load of four activations feeds four k steps, lane by lane (fmla v.4s by element)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import Fp32
from .tir import T


@dataclass(frozen=True)
class NeonFp32(Fp32):
    """NEON: 4 lanes, 32 registers."""

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
        # Fewer steps than lanes end a row: a whole vector could reach past the buffer.
        whole = [source.vector(offset, self.lanes) for offset in offsets] if steps == self.lanes else None
        for step in range(steps):
            for v in range(vectors):
                weight = weights.vector(weight_offset + (step * vectors + v) * self.lanes, self.lanes)
                for p, offset in enumerate(offsets):
                    value = T.Shuffle([whole[p]], [step]) if whole else source.scalar(offset + step)
                    total = accumulators[p][v]
                    total.value = total.value + T.broadcast(value, self.lanes) * weight

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors
