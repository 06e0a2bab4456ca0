"""float16 on NEON, of cores with half-precision arithmetic: eight values of a vector instead of four (fmla v.8h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .arm import NeonFp32

# `fmla v.8h` takes a single lane from v0 to v15 only: with more pixels than this LLVM moves activations to and fro.
MOST_PIXELS = 10


@dataclass(frozen=True)
class NeonFp16(NeonFp32):
    """8 lanes, 32 registers. Activations, weights and the sums of products are float16; means are summed in float32.

    A sum of n products of one size is off by about sqrt(n) * 2**-12 of them; beyond 65504 it is infinite.
    """

    name: ClassVar[str] = "fp16"
    activation: ClassVar[str] = "float16"
    weight: ClassVar[str] = "float16"
    accumulator: ClassVar[str] = "float16"
    lane_weight: ClassVar[str] = "float16"
    means: ClassVar[str] = "float32"
    unroll: ClassVar[int] = 8

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 3 if pixels <= MOST_PIXELS else self.registers + 1
