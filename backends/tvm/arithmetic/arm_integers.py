"""8-bit integers on NEON: what all ways to multiply them share. Activations are signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .base import Integers
from .rounding import ROUNDER
from .tir import T


class NeonIntegers(Integers):
    """Activations are signed. 4 lanes, 32 registers."""

    activation: ClassVar[str] = "int8"
    lowest: ClassVar[float] = -128.0
    unroll: ClassVar[int] = 16

    lane_weight: ClassVar[str] = "int8"
    lane_vectors: ClassVar[int] = 2
    together: ClassVar[int] = 4
    table_lanes: ClassVar[int] = 16
    fills_registers: ClassVar[bool] = True

    def steps(self, real: Any, low: Any, high: Any) -> Any:
        """An instruction for each end, one to round."""
        return T.call_llvm_pure_intrin("float32x4", "llvm.roundeven", self.between(real, low, high))

    def between(self, real: Any, low: Any, high: Any) -> Any:
        """By instructions of their own, which LLVM does not make of a comparison and a selection."""
        for compare, end in (("fmax", low), ("fmin", high)):
            ends = T.broadcast(end, self.lanes)
            real = T.call_llvm_pure_intrin("float32x4", f"llvm.aarch64.neon.{compare}", real, ends)
        return real

    def stored_bytes(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """Both steps are exact in 16 bits."""
        lanes = len(reals) * self.lanes
        steps = self.held(reals, low, high) + T.broadcast(T.cast(zero_point, "int16"), lanes)
        return T.cast(steps, f"{self.activation}x{lanes}")

    def held(self, reals: Sequence[Any], low: Any, high: Any) -> Any:
        """Rounded and held between two whole numbers, as one vector of int16.

        Adding `ROUNDER` rounds to a whole number, which the sum's low bits hold: cheaper than to convert.
        """
        rounded = [self.between(real, low, high) + T.broadcast(T.float32(ROUNDER), self.lanes) for real in reals]
        return joined([T.cast(T.reinterpret(each, dtype="int32x4"), "int16x4") for each in rounded], self.lanes)

    def stored_small(
        self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any, *, saturates: bool, even: bool
    ) -> Any:
        """Rounded to int16, then saturated to bytes, of which up to sixteen are held between the ends at a time."""
        if len(reals) == 1:
            return self.stored_bytes(reals, low, high, zero_point)
        rounder = T.broadcast(T.float32(ROUNDER) + zero_point if even else T.float32(ROUNDER), self.lanes)
        # TVM lets LLVM fuse a product into the sum behind it; the contract rounds both.
        fenced = [T.call_llvm_pure_intrin("float32x4", "llvm.arithmetic.fence", real) for real in reals]
        whole = [T.cast(T.reinterpret(real + rounder, dtype="int32x4"), "int16x4") for real in fenced]
        stored = saturated(whole, None if even else zero_point)
        if saturates:
            return stored
        lanes = len(reals) * self.lanes
        ends = [T.broadcast(T.cast(end + zero_point, "int8"), lanes) for end in (low, high)]
        return T.min(T.max(stored, ends[0]), ends[1])

    def multiply_taps(self, totals: Sequence[Any], values: Sequence[Any], weights: Sequence[Any]) -> None:
        """Two taps at a time in 16 bits, which hold both products: 2 * 128 * 127 < 2**15."""
        if len(totals) == 1:
            super().multiply_taps(totals, values, weights)
            return
        kind = f"int16x{self.lanes * len(totals)}"
        products = [T.cast(value, kind) * T.cast(weight, kind) for value, weight in zip(values, weights, strict=True)]
        for first in range(0, len(products), 2):
            pair = sum(products[first + 1 : first + 2], start=products[first])
            for v, total in enumerate(totals):
                lanes = range(v * self.lanes, (v + 1) * self.lanes)
                total.value = total.value + T.cast(T.Shuffle([pair], list(lanes)), f"int32x{self.lanes}")

    def look_up(self, table: Any, places: Any) -> Any:
        """Four tables of 64 bytes (tbl); a place outside of one gives zero."""
        found = T.broadcast(T.cast(0, "int8"), 16)
        for quarter in range(4):
            parts = [table.vector(64 * quarter + 16 * i, 16) for i in range(4)]
            inside = places - T.broadcast(T.cast(64 * quarter - 128, "int8"), 16)
            found = found | T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4", *parts, inside)
        return found

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels / self.lanes + vectors

    def registers_used(self, pixels: int, vectors: int) -> int:
        return pixels * vectors + pixels + 2

    def writing(self, pixels: int, vectors: int) -> float:
        """What it costs, in products of a k step, that fewer than sixteen bytes of a pixel are stored at a time."""
        narrow = 0.0 if vectors % 4 == 0 else 0.05 if vectors % 2 == 0 else 0.1
        return narrow * pixels * vectors


def spread_lane(vector: Any, lane: int, lanes: int) -> Any:
    """One lane of a vector, in `lanes` lanes."""
    return T.broadcast(T.Shuffle([vector], [lane]), lanes)


def joined(vectors: Sequence[Any], lanes: int) -> Any:
    """Vectors of `lanes` as one."""
    return T.Shuffle(list(vectors), list(range(len(vectors) * lanes))) if len(vectors) > 1 else vectors[0]


def saturated(whole: Sequence[Any], zero_point: Any) -> Any:
    """An even number of vectors of four int16, plus zero_point if there is one, saturated to int8."""
    parts = []
    for first in range(0, len(whole), 2):
        eight = joined(whole[first : first + 2], 4)
        if zero_point is not None:
            offset = T.broadcast(T.cast(zero_point, "int16"), 8)
            eight = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.sqadd", eight, offset)
        parts.append(T.call_llvm_pure_intrin("int8x8", "llvm.aarch64.neon.sqxtn", eight))
    return joined(parts, 8)


def four_bytes(source: Any, offset: Any, count: int) -> Any:
    """Four neighbouring bytes in memory as an int32; what is missing of `count` is zero, and not read."""
    return few_bytes(source, offset, count, 4)


def few_bytes(source: Any, offset: Any, count: int, size: int) -> Any:
    """`size` (4 or 8) neighbouring bytes in memory as an integer; what is missing of `count` is zero, and not read."""
    kind = f"int{8 * size}"
    if count >= size:
        return T.reinterpret(source.vector(offset, size), dtype=kind)
    whole = T.cast(0, kind)
    for i in range(count):
        byte = T.cast(T.reinterpret(source.scalar(offset + i), dtype="uint8"), kind)
        whole = whole | (byte << T.cast(8 * i, kind))
    return whole
