"""fp32 arithmetic whose weights lie in memory in fewer bits: they become float32 vectors in registers as they are read.

A layer of one row is bound by memory, so that its time falls with the bytes of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from .arm import NeonFp32
from .armv7 import Armv7Fp32
from .base import Arithmetic, Fp32
from .tir import T
from .x86 import X86Fp32


class StoredWeights(Fp32):
    """What all of them share: unpacking costs about as much as two loads, and a few registers."""

    def registers_used(self, pixels: int, vectors: int) -> int:
        return super().registers_used(pixels, vectors) + vectors + 1

    def loads(self, pixels: int, vectors: int) -> float:
        return super().loads(pixels, vectors) + 2 * vectors


class Words(StoredWeights):
    """Integers of `bits` bits, in int32 words that each hold the next steps of one lane, the first one lowest.

    A lane's integer is moved to the top of its word and back down, which extends its sign: no lane meets another, and
    one load serves all steps of a word.
    """

    weight: ClassVar[str] = "int32"
    unroll: ClassVar[int] = 8
    bits: ClassVar[int]

    def weight_vector(self, weights: Any, start: Any, step: int, vectors: int, vector: int) -> Any:
        place = start // self.group + (step // self.group * vectors + vector) * self.lanes
        return self.unpacked(weights.vector(place, self.lanes), step % self.group)

    def order(self, steps: int, vectors: int) -> list[tuple[int, int]]:
        """All of a word in turn: LLVM then spills a third of what it does where all words are open at once."""
        return [(step, vector) for vector in range(vectors) for step in range(steps)]

    def unpacked(self, words: Any, position: int) -> Any:
        """float32 of the integer at a position of every word."""
        above = 32 - self.bits * (position + 1)
        moved = words << T.broadcast(T.int32(above), self.lanes) if above else words
        signed = moved >> T.broadcast(T.int32(32 - self.bits), self.lanes)
        return T.cast(signed, f"float32x{self.lanes}")


class Int8Weights(Words):
    """Four int8 in a word."""

    name: ClassVar[str] = "int8 weights"
    group: ClassVar[int] = 4
    per_element: ClassVar[int] = 4
    bits: ClassVar[int] = 8

    def stored(self, weights: np.ndarray) -> np.ndarray:
        return weights.astype(np.int8).view("<i4")


class Int4Weights(Words):
    """Eight integers from -8 to 7 in a word."""

    name: ClassVar[str] = "int4 weights"
    group: ClassVar[int] = 8
    per_element: ClassVar[int] = 8
    bits: ClassVar[int] = 4

    def stored(self, weights: np.ndarray) -> np.ndarray:
        nibbles = weights.astype(np.int8).view(np.uint8) & 15
        return (nibbles[0::2] | (nibbles[1::2] << 4)).view("<i4")


class Float16Weights(StoredWeights):
    """float16, which one instruction widens (vcvtph2ps, fcvtl)."""

    name: ClassVar[str] = "float16 weights"
    weight: ClassVar[str] = "float16"

    def weight_vector(self, weights: Any, start: Any, step: int, vectors: int, vector: int) -> Any:
        return self.widened(super().weight_vector(weights, start, step, vectors, vector))

    def widened(self, half: Any) -> Any:
        return T.cast(half, f"float32x{self.lanes}")


class BFloat16Weights(StoredWeights):
    """bfloat16 as its 16 bits in uint16: the upper half of a float32."""

    name: ClassVar[str] = "bfloat16 weights"
    weight: ClassVar[str] = "uint16"

    def weight_vector(self, weights: Any, start: Any, step: int, vectors: int, vector: int) -> Any:
        bits = T.cast(super().weight_vector(weights, start, step, vectors, vector), f"int32x{self.lanes}")
        return T.reinterpret(bits << T.broadcast(T.int32(16), self.lanes), dtype=f"float32x{self.lanes}")


@dataclass(frozen=True)
class X86Int8Weights(Int8Weights, X86Fp32):
    """On x86."""


@dataclass(frozen=True)
class X86Int4Weights(Int4Weights, X86Fp32):
    """On x86. With AVX-512 one permutation looks 16 integers up in a register of 16 floats: it reads four bits."""

    def unpacked(self, words: Any, position: int) -> Any:
        if self.lanes != 16:
            return super().unpacked(words, position)
        table = T.Shuffle([T.float32(n if n < 8 else n - 16) for n in range(16)], list(range(16)))
        places = words >> T.broadcast(T.int32(self.bits * position), self.lanes) if position else words
        return T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", table, places)


@dataclass(frozen=True)
class X86Float16Weights(Float16Weights, X86Fp32):
    """On x86, with F16C: every processor that has AVX2."""


@dataclass(frozen=True)
class X86BFloat16Weights(BFloat16Weights, X86Fp32):
    """On x86."""


@dataclass(frozen=True)
class NeonInt8Weights(Int8Weights, NeonFp32):
    """On NEON."""


@dataclass(frozen=True)
class NeonInt4Weights(Int4Weights, NeonFp32):
    """On NEON."""


@dataclass(frozen=True)
class NeonFloat16Weights(Float16Weights, NeonFp32):
    """On NEON."""


@dataclass(frozen=True)
class NeonBFloat16Weights(BFloat16Weights, NeonFp32):
    """On NEON."""


@dataclass(frozen=True)
class Armv7Int8Weights(Int8Weights, Armv7Fp32):
    """On 32-bit ARM."""


@dataclass(frozen=True)
class Armv7Int4Weights(Int4Weights, Armv7Fp32):
    """On 32-bit ARM."""


@dataclass(frozen=True)
class Armv7Float16Weights(Float16Weights, Armv7Fp32):
    """On 32-bit ARM, whose VFPv4 widens float16 (vcvt.f32.f16). LLVM would do it lane by lane."""

    def widened(self, half: Any) -> Any:
        bits = T.reinterpret(half, dtype="int16x4")
        return T.call_llvm_pure_intrin("float32x4", "llvm.arm.neon.vcvthf2fp", bits)


@dataclass(frozen=True)
class Armv7BFloat16Weights(BFloat16Weights, Armv7Fp32):
    """On 32-bit ARM."""


_KINDS: dict[type, dict[str, type[StoredWeights]]] = {
    X86Fp32: {
        "int8": X86Int8Weights,
        "int4": X86Int4Weights,
        "float16": X86Float16Weights,
        "bfloat16": X86BFloat16Weights,
    },
    NeonFp32: {
        "int8": NeonInt8Weights,
        "int4": NeonInt4Weights,
        "float16": NeonFloat16Weights,
        "bfloat16": NeonBFloat16Weights,
    },
    Armv7Fp32: {
        "int8": Armv7Int8Weights,
        "int4": Armv7Int4Weights,
        "float16": Armv7Float16Weights,
        "bfloat16": Armv7BFloat16Weights,
    },
}
WEIGHTS = tuple(_KINDS[X86Fp32])


def with_stored_weights(arithmetic: Arithmetic, kind: str) -> StoredWeights | None:
    """The fp32 arithmetic of a machine with weights of a kind (`WEIGHTS`); None where it cannot unpack them.

    x86 without AVX2 has no instruction for float16.
    """
    if kind == "float16" and isinstance(arithmetic, X86Fp32) and arithmetic.lanes < 8:
        return None
    return _KINDS[type(arithmetic)][kind](**{f.name: getattr(arithmetic, f.name) for f in fields(arithmetic)})
