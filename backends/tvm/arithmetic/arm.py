"""fp32 on NEON: one load of four activations feeds four k steps, lane by lane (fmla v.4s by element)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Fp32
from .tir import T


@dataclass(frozen=True)
class NeonFp32(Fp32):
    """NEON: 4 lanes, 32 registers."""

    ends_apart: ClassVar[bool] = True

    def multiply(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        offsets: Sequence[Any],
        weights: Any,
        weight_offset: Any,
        steps: int,
    ) -> None:
        # One load holds `lanes` steps. Fewer end a row: a whole vector could reach past the buffer.
        whole = [
            [source.vector(offset + first, self.lanes) for offset in offsets]
            for first in range(0, steps - self.lanes + 1, self.lanes)
        ]
        for step, v in self.order(steps, len(accumulators[0])):
            part, lane = divmod(step, self.lanes)
            weight = self.weight_vector(weights, weight_offset, step, len(accumulators[0]), v)
            for p, offset in enumerate(offsets):
                value = T.Shuffle([whole[part][p]], [lane]) if part < len(whole) else source.scalar(offset + step)
                total = accumulators[p][v]
                total.value = total.value + T.broadcast(value, self.lanes) * weight

    def greater(self, end: Any, value: Any) -> Any:
        """fmax, which keeps NaN: a comparison and a selection would be two instructions."""
        return T.call_llvm_pure_intrin(str(value.ty), "llvm.maximum", end, value)

    def lesser(self, end: Any, value: Any) -> Any:
        return T.call_llvm_pure_intrin(str(value.ty), "llvm.minimum", end, value)

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors
