"""32-bit ARM (ARMv7): NEON with 16 registers, whose fused multiply-add takes no single lane of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .arm import NeonFp32
from .arm_integers import NeonIntegers, spread_lane
from .arm_smull import Smull, half_of
from .base import Integers
from .tir import T

HELD = 2  # k steps of a pixel that lie in one 64-bit register
SPREAD = 0.5  # of a multiply-add: what it costs to spread one activation over a register


@dataclass(frozen=True)
class Armv7Fp32(NeonFp32):
    """vfma.f32, of cores with VFPv4 (Cortex-A7, A15 and newer): 4 lanes, 16 registers.

    An activation is spread over a register for all vectors of outputs. NEON takes denormals for zeros on these cores.
    """

    ends_apart: ClassVar[bool] = False

    def multiply(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        offsets: Sequence[Any],
        weights: Any,
        weight_offset: Any,
        steps: int,
    ) -> None:
        # Whole vectors of activations would take every register that the sums leave.
        whole = [
            [source.vector(offset + first, HELD) for offset in offsets] for first in range(0, steps - HELD + 1, HELD)
        ]
        for step, v in self.order(steps, len(accumulators[0])):
            part, lane = divmod(step, HELD)
            weight = self.weight_vector(weights, weight_offset, step, len(accumulators[0]), v)
            for p, offset in enumerate(offsets):
                value = T.Shuffle([whole[part][p]], [lane]) if part < len(whole) else source.scalar(offset + step)
                total = accumulators[p][v]
                total.value = total.value + T.broadcast(value, self.lanes) * weight

    def registers_used(self, pixels: int, vectors: int) -> int:
        """Sums, weights, one that is spread, and one for each pixel: with fewer LLVM spills."""
        return pixels * vectors + vectors + pixels + 1

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / HELD + vectors

    def time(self, pixels: int, vectors: int) -> float:
        """Eight sums hide the latency of a multiply-add; what is spread serves all vectors. Weights come from L2."""
        traffic = self.loads(pixels, vectors) + 2 * vectors
        return max(pixels * vectors, 8) + SPREAD * pixels + 0.2 * traffic


@dataclass(frozen=True)
class Vmull(Smull):
    """vmull.s8 and vmlal.s8 to 16 bits, vpadal.s16 to 32: the scheme of `Smull` in 16 registers.

    Tables are looked up one by one: vtbl reads 32 bytes for eight places, and 256 fill every register.
    """

    name: ClassVar[str] = "vmull"
    table_lanes: ClassVar[int] = 0
    saturates: ClassVar[bool] = False
    zips_rows: ClassVar[bool] = False
    reads_runs: ClassVar[bool] = False
    adds_whole: ClassVar[bool] = False

    def two_pairs(self, four: Any) -> Any:
        """A whole register: LLVM would take two lanes apart in general registers, by way of the stack."""
        return T.reinterpret(T.broadcast(four, 2), dtype="int16x4")

    def spread(self, pairs: Any, lane: int, half: int) -> Any:
        return spread_lane(pairs, lane, self.lanes)

    def add_products(self, total: Any, spread: Sequence[Any], weights: Any) -> Any:
        """By intrinsics: LLVM would widen weights outside of a loop, into twice the registers."""
        pairs = [T.reinterpret(pair, dtype="int8x8") for pair in spread]
        first, second = (
            T.call_llvm_pure_intrin("int16x8", "llvm.arm.neon.vmulls", pair, half_of(weights, half))
            for half, pair in enumerate(pairs)
        )
        return T.call_llvm_pure_intrin("int32x4", "llvm.arm.neon.vpadals", total, first + second)

    def steps(self, real: Any, low: Any, high: Any) -> Any:
        """No instruction of ARMv7 rounds."""
        return Integers.steps(self, real, low, high)

    def held(self, reals: Sequence[Any], low: Any, high: Any) -> Any:
        """Adding 1.5 * 2**23 rounds half to even, which no instruction of ARMv7 does; the sum's low bits hold it."""
        return NeonIntegers.held(self, reals, low, high)

    def between(self, real: Any, low: Any, high: Any) -> Any:
        for compare, end in (("llvm.maximum", low), ("llvm.minimum", high)):
            real = T.call_llvm_pure_intrin("float32x4", compare, real, T.broadcast(end, self.lanes))
        return real
