"""8-bit integers on x86: unsigned activations, with VNNI four products at a time, else two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

from .base import Integers
from .tir import T


@dataclass(frozen=True)
class Packing:
    """The instructions that turn float32 into bytes, by the lanes of a register. Both pack 128 bits at a time."""

    to_int32: str
    masked: bool  # takes a mask and a rounding mode
    to_int16: str
    to_bytes: str


_PACKING = {
    8: Packing("llvm.x86.avx.cvt.ps2dq.256", False, "llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    16: Packing(
        "llvm.x86.avx512.mask.cvtps2dq.512", True, "llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"
    ),
}
_CURRENT_ROUNDING = 4  # that of the control register: half to even


class X86Integers(Integers):
    """Activations are unsigned, a group of them is broadcast to all lanes."""

    activation: ClassVar[str] = "uint8"
    lowest: ClassVar[float] = 0.0
    together: ClassVar[int] = 4
    joins_pixels: ClassVar[bool] = True
    reads_bounds: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def stored_bytes(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """Packing saturates, so that only what is too large for int32 has to be held back before.

        Four vectors become one of bytes in two thirds of the instructions that they need one by one.
        """
        lanes, count = self.lanes, len(reals)
        whole = [self._rounded(T.min(real, T.broadcast(high, lanes))) for real in reals]
        if count == 1:
            steps = T.max(whole[0], T.broadcast(T.cast(low, "int32"), lanes))
            return T.cast(steps + T.broadcast(T.cast(zero_point, "int32"), lanes), f"uint8x{lanes}")
        packed = self._packed(whole, zero_point, saturating=False)
        return T.max(packed, T.broadcast(T.cast(low + zero_point, "uint8"), count * lanes))

    def stored_bounded(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any, *, saturates: bool) -> Any:
        """Every step saturates, and ends within those of the bytes are kept last, for all vectors at a time."""
        if len(reals) == 1:
            return self.stored_bytes(reals, low, high, zero_point)
        packed = self._packed([self._rounded(real) for real in reals], zero_point, saturating=True)
        if saturates:
            return packed
        ends = [T.broadcast(T.cast(end + zero_point, "uint8"), len(reals) * self.lanes) for end in (low, high)]
        return T.max(T.min(packed, ends[1]), ends[0])

    def _packed(self, whole: Sequence[Any], zero_point: Any, *, saturating: bool) -> Any:
        """Two or four vectors of int32 as bytes in their order. The zero point is added to int16."""
        lanes, count = self.lanes, len(whole)
        pack, offset = _PACKING[lanes], T.broadcast(T.cast(zero_point, "int16"), 2 * lanes)
        kind = f"int16x{2 * lanes}"
        steps = [T.call_llvm_pure_intrin(kind, pack.to_int16, *whole[i : i + 2]) for i in range(0, count, 2)]
        if saturating:
            halves = [T.call_llvm_pure_intrin(kind, "llvm.sadd.sat", each, offset) for each in steps]
        else:
            halves = [each + offset for each in steps]
        # Every 128 bits hold four bytes of each vector in turn.
        packed = T.call_llvm_pure_intrin(f"uint8x{4 * lanes}", pack.to_bytes, halves[0], halves[-1])
        order = [4 * part + vector for vector in range(count) for part in range(lanes // 4)]
        in_order = T.Shuffle([T.reinterpret(packed, dtype=f"int32x{lanes}")], order)
        return T.reinterpret(in_order, dtype=f"uint8x{count * lanes}")

    def _rounded(self, real: Any) -> Any:
        pack = _PACKING[self.lanes]
        more = (T.broadcast(T.int32(0), self.lanes), T.int16(-1), T.int32(_CURRENT_ROUNDING))
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", pack.to_int32, real, *(more if pack.masked else ()))

    @abstractmethod
    def broadcast(self, source: Any, offset: Any, count: int) -> Any:
        """A group of neighbouring activations in every lane; what is missing of `count` is zero, and is not read."""

    @abstractmethod
    def add_products(self, total: Any, group: Any, weights: Any, offset: Any) -> Any:
        """total plus the products of each lane's group with its weights, which lie from `offset` on."""

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
        for step in range(0, steps, self.group):
            for p, v in pairs:
                group = self.broadcast(source, offsets[p] + step, min(self.group, steps - step))
                place = weight_offset + (step * vectors + v * self.group) * self.lanes
                total = accumulators[p][v]
                total.value = self.add_products(total.value, group, weights, place)

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + min(pixels, vectors) + 2

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels + vectors


@dataclass(frozen=True)
class Vnni(X86Integers):
    """vpdpbusd of AVX-512 VNNI (16 lanes, 32 registers) or AVX-VNNI (8 lanes, 16 registers).

    The intrinsic that TVM ships is rejected by its own LLVM, which takes bytes as operands now: it is declared here.
    """

    name: ClassVar[str] = "vnni"
    lane_weight: ClassVar[str] = "int8"
    lane_taps: ClassVar[int] = 4
    unroll: ClassVar[int] = 16
    group: ClassVar[int] = 4

    def broadcast(self, source: Any, offset: Any, count: int) -> Any:
        if count == self.group:
            four = T.reinterpret(source.vector(offset, 4), dtype="int32")
        else:
            four = _or(T.cast(source.scalar(offset + i), "int32") << T.int32(8 * i) for i in range(count))
        return T.reinterpret(T.broadcast(four, self.lanes), dtype=f"uint8x{self.lanes * 4}")

    @property
    def table_lanes(self) -> int:  # type: ignore[override]
        """AVX-512 VBMI, which every CPU of that row has, permutes 64 bytes; AVX-VNNI has nothing of the kind."""
        return 64 if self.lanes == 16 else 0

    def look_up(self, table: Any, places: Any) -> Any:
        """Two permutes of 128 bytes each (vpermi2b), of which the place's upper bit chooses one."""
        quarters = [table.vector(64 * i, 64) for i in range(4)]
        permute = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (T.call_llvm_pure_intrin("uint8x64", permute, quarters[i], places, quarters[i + 1]) for i in (0, 2))
        return T.Select(places < T.broadcast(T.cast(128, "uint8"), 64), low, high)

    def add_products(self, total: Any, group: Any, weights: Any, offset: Any) -> Any:
        return self._dot(total, group, weights.vector(offset, self.lanes * 4))

    def multiply_lanes(self, total: Any, value: Any, weight: Any) -> Any:
        return self._dot(total, self._woven([value], "uint8"), self._woven([weight], "int8"))

    def multiply_taps(self, totals: Sequence[Any], values: Sequence[Any], weights: Sequence[Any]) -> None:
        """Four taps of a lane side by side are the four products of one vpdpbusd."""
        (total,) = totals
        for first in range(0, len(values), 4):
            four, by = values[first : first + 4], weights[first : first + 4]
            total.value = self._dot(total.value, self._woven(four, "uint8"), self._woven(by, "int8"))

    def multiply_neighbours(self, totals: Sequence[Any], spans: Sequence[Any], weights: Sequence[Any]) -> None:
        (total,) = totals
        for number, span in enumerate(spans):
            by = weights[4 * number : 4 * number + 4]
            total.value = self._dot(total.value, T.Shuffle([span], self._weave()), self._woven(by, "int8"))

    def _dot(self, total: Any, value: Any, weight: Any) -> Any:
        intrinsic = f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}"
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", intrinsic, total, value, weight)

    def _woven(self, vectors: Sequence[Any], dtype: str) -> Any:
        """Up to four vectors of bytes lane by lane; what is missing is zero."""
        nothing = T.broadcast(T.cast(0, dtype), self.lanes)
        return T.Shuffle([*vectors, *[nothing] * (4 - len(vectors))], self._weave())

    def _weave(self) -> list[int]:
        return [tap * self.lanes + lane for lane in range(self.lanes) for tap in range(4)]


@dataclass(frozen=True)
class Madd(X86Integers):
    """vpmaddwd of AVX2 (8 lanes, 16 registers) or AVX-512 (16 lanes, 32 registers): bytes are widened to 16 bits.

    vpmaddubsw would take the bytes as they are, but it saturates: its sums would not be those of the contract.
    """

    name: ClassVar[str] = "madd"
    unroll: ClassVar[int] = 8
    group: ClassVar[int] = 2

    def broadcast(self, source: Any, offset: Any, count: int) -> Any:
        two = _or(T.cast(source.scalar(offset + i), "int32") << T.int32(16 * i) for i in range(count))
        return T.reinterpret(T.broadcast(two, self.lanes), dtype=f"int16x{self.lanes * 2}")

    def add_products(self, total: Any, group: Any, weights: Any, offset: Any) -> Any:
        intrinsic = "llvm.x86.avx512.pmaddw.d.512" if self.lanes == 16 else "llvm.x86.avx2.pmadd.wd"
        weight = T.cast(weights.vector(offset, self.lanes * 2), f"int16x{self.lanes * 2}")
        return total + T.call_llvm_pure_intrin(f"int32x{self.lanes}", intrinsic, group, weight)


def _or(parts: Iterable[Any]) -> Any:
    return reduce(lambda left, right: left | right, parts)
