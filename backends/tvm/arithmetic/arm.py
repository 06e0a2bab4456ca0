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
        for first in range(0, steps, self.lanes):
            # Fewer steps than lanes end a row: a whole vector could reach past the buffer.
            is_whole = first + self.lanes <= steps
            whole = [source.vector(offset + first, self.lanes) for offset in offsets] if is_whole else None
            for step in range(first, min(first + self.lanes, steps)):
                for v in range(vectors):
                    weight = self.weight_vector(weights, weight_offset, step, vectors, v)
                    for p, offset in enumerate(offsets):
                        value = T.Shuffle([whole[p]], [step - first]) if whole else source.scalar(offset + step)
                        total = accumulators[p][v]
                        total.value = total.value + T.broadcast(value, self.lanes) * weight

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors
