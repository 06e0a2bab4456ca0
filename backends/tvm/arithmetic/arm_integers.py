"""8-bit integers on NEON: signed activations; eight products at a time for two pixels, or four, or two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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
        for compare, end in (("fmax", low), ("fmin", high)):
            ends = T.broadcast(end, self.lanes)
            real = T.call_llvm_pure_intrin("float32x4", f"llvm.aarch64.neon.{compare}", real, ends)
        return T.call_llvm_pure_intrin("float32x4", "llvm.roundeven", real)

    def stored_bytes(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """Both steps are exact in 16 bits."""
        lanes = len(reals) * self.lanes
        steps = self.held(reals, low, high) + T.broadcast(T.cast(zero_point, "int16"), lanes)
        return T.cast(steps, f"{self.activation}x{lanes}")

    def held(self, reals: Sequence[Any], low: Any, high: Any) -> Any:
        """Rounded and held between two whole numbers, as one vector of int16.

        Adding `ROUNDER` rounds to a whole number, which the sum's low bits hold: cheaper than to convert.
        """
        rounder = T.broadcast(T.float32(ROUNDER), self.lanes)
        ends = [("fmax", T.broadcast(low, self.lanes)), ("fmin", T.broadcast(high, self.lanes))]
        whole = []
        for real in reals:
            for compare, end in ends:
                real = T.call_llvm_pure_intrin("float32x4", f"llvm.aarch64.neon.{compare}", real, end)
            whole.append(T.cast(T.reinterpret(real + rounder, dtype="int32x4"), "int16x4"))
        return joined(whole, self.lanes)

    def stored_small(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any, *, saturates: bool) -> Any:
        """Rounded to int16, then saturated to bytes, of which up to sixteen are held between the ends at a time."""
        if len(reals) == 1:
            return self.stored_bytes(reals, low, high, zero_point)
        rounder = T.broadcast(T.float32(ROUNDER), self.lanes)
        # TVM lets LLVM fuse a product into the sum behind it; the contract rounds both.
        fenced = [T.call_llvm_pure_intrin("float32x4", "llvm.arithmetic.fence", real) for real in reals]
        whole = [T.cast(T.reinterpret(real + rounder, dtype="int32x4"), "int16x4") for real in fenced]
        stored = saturated(whole, zero_point)
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


class ByPixel(NeonIntegers):
    """Four activations of one pixel are multiplied at a time."""

    group: ClassVar[int] = 4

    @abstractmethod
    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        """total plus the products of four activations, four times over, with four weights for each lane (int8x16)."""

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
        # One load feeds four groups; fewer steps than that end a row, and a whole vector could reach past the buffer.
        whole = [source.vector(offset, self.unroll) for offset in offsets] if steps == self.unroll else None
        for step in range(0, steps, self.group):
            if whole:
                fours = [(T.reinterpret(read, dtype="int32x4"), step // self.group) for read in whole]
            else:
                fours = [self.fours(source, offset, step, steps) for offset in offsets]
            for v in range(vectors):
                weight = weights.vector(weight_offset + (step * vectors + v * self.group) * self.lanes, 16)
                for p, four in enumerate(fours):
                    spread = T.reinterpret(spread_lane(*four, self.lanes), dtype="int8x16")
                    total = accumulators[p][v]
                    total.value = self.add_products(total.value, spread, weight)

    def multiply_words(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        start: Any,
        stride: int,
        weights: Any,
        weight_offset: Any,
        taps: int,
    ) -> None:
        """`multiply` for a row of taps of four activations each, which lie side by side from `start` on.

        stride: taps from one pixel's first to the next one's. Taps that several pixels read are read once, four at a
        time; there are four or more of them.
        """
        count, vectors = (len(accumulators) - 1) * stride + taps, len(accumulators[0])
        firsts = [min(first, count - 4) for first in range(0, count, 4)]
        read = [T.reinterpret(source.vector(start + first * self.group, 16), dtype="int32x4") for first in firsts]
        for tap in range(taps):
            words = [p * stride + tap for p in range(len(accumulators))]
            spread = [spread_lane(read[word // 4], word - firsts[word // 4], self.lanes) for word in words]
            for v in range(vectors):
                weight = weights.vector(weight_offset + (tap * vectors + v) * self.group * self.lanes, 16)
                for totals, four in zip(accumulators, spread, strict=True):
                    four = T.reinterpret(four, dtype="int8x16")
                    totals[v].value = self.add_products(totals[v].value, four, weight)

    def fours(self, source: Any, offset: Any, step: int, steps: int) -> tuple[Any, int]:
        """A vector that holds activations `step` .. `step` + 3 of `steps` in a lane of 32 bits, and the lane."""
        if steps >= 8 and steps % self.group == 0:
            start = min(step - step % 8, steps - 8)
            return T.reinterpret(source.vector(offset + start, 8), dtype="int32x2"), (step - start) // self.group
        four = T.reinterpret(four_bytes(source, offset + step, steps - step), dtype="float32")
        alone = T.Shuffle([four, *[T.float32(0)] * (self.lanes - 1)], list(range(self.lanes)))
        # Without a fence LLVM spreads them while it loads them, for which a core takes a pipe that multiplies.
        fenced = T.call_llvm_pure_intrin("float32x4", "llvm.arithmetic.fence", alone)
        return T.reinterpret(fenced, dtype="int32x4"), 0


@dataclass(frozen=True)
class Sdot(ByPixel):
    """sdot by element, of cores with the dot product (Cortex-A55, A76 and newer)."""

    name: ClassVar[str] = "sdot"
    lane_rows: ClassVar[int] = 4
    reads_small_sums: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def woven_rows(self, rows: Sequence[Any], lanes: int) -> Any:
        """zip1 and zip2: rows 0 and 2, rows 1 and 3, then both."""
        return _zipped(_zipped(rows[0], rows[2], lanes), _zipped(rows[1], rows[3], lanes), 2 * lanes)

    def add_rows(self, total: Any, woven: Any, weights: Any) -> Any:
        return self.add_products(total, woven, weights)

    def time(self, pixels: int, vectors: int) -> float:
        """Eight sums hide the latency of sdot; L2 gives a vector of weights in the time of four of them."""
        sums = pixels * vectors
        return sums / min(sums / 8, pixels / 4, 1.0) + 0.2 * self.loads(pixels, vectors) + self.writing(pixels, vectors)

    def add_products(self, total: Any, four: Any, weight: Any) -> Any:
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot", total, weight, four)


@dataclass(frozen=True)
class Smmla(NeonIntegers):
    """smmla of the matrix extension i8mm (Neoverse V1 and newer, Cortex-A510, A710, X2): eight k steps of two pixels
    times two outputs, twice the products of sdot.

    The accumulators of two neighbouring pixels hold outputs 0 and 1 of both, then outputs 2 and 3 of both. A pixel
    without a neighbour costs as much as a pair.
    """

    name: ClassVar[str] = "smmla"
    unroll: ClassVar[int] = 8
    group: ClassVar[int] = 8
    rows: ClassVar[int] = 2

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
        pairs = [self.pair(source, offsets[p : p + 2], steps) for p in range(0, len(offsets), 2)]
        for v in range(vectors):
            for half in range(2):
                weight = weights.vector(weight_offset + v * self.group * self.lanes + half * 16, 16)
                for p, pixels in enumerate(pairs):
                    total = accumulators[2 * p + half][v]
                    products = "llvm.aarch64.neon.smmla"
                    total.value = T.call_llvm_pure_intrin("int32x4", products, total.value, pixels, weight)

    def pair(self, source: Any, offsets: Sequence[Any], steps: int) -> Any:
        """Up to eight neighbouring bytes of each of two pixels in one vector; zeros for one that takes no part."""
        halves = [T.int64(0) if offset is None else _bytes(source, offset, steps, 8) for offset in offsets]
        return T.reinterpret(T.Shuffle(halves, [0, 1]), dtype="int8x16")

    def woven(self, values: Sequence[Any]) -> Sequence[Any]:
        return [T.Shuffle(list(values), [0, 1, 4, 5]), T.Shuffle(list(values), [2, 3, 6, 7])]

    def unwoven(self, values: Sequence[Any]) -> Sequence[Any]:
        return self.woven(values)  # a transposition of pairs: it is its own inverse

    def loads(self, pixels: int, vectors: int) -> float:
        return pixels + 2 * vectors

    def registers_used(self, pixels: int, vectors: int) -> int:
        pairs = -(-pixels // 2)
        return 2 * pairs * vectors + pairs + 2

    def time(self, pixels: int, vectors: int) -> float:
        """Beside the products each pair of pixels takes an instruction that puts it into one vector."""
        even = pixels + pixels % 2
        return super().time(even, vectors) + even / 2


def _zipped(one: Any, other: Any, lanes: int) -> Any:
    """Two vectors lane by lane."""
    return T.Shuffle([one, other], [place for lane in range(lanes) for place in (lane, lanes + lane)])


def spread_lane(vector: Any, lane: int, lanes: int) -> Any:
    """One lane of a vector, in `lanes` lanes."""
    return T.broadcast(T.Shuffle([vector], [lane]), lanes)


def joined(vectors: Sequence[Any], lanes: int) -> Any:
    """Vectors of `lanes` as one."""
    return T.Shuffle(list(vectors), list(range(len(vectors) * lanes))) if len(vectors) > 1 else vectors[0]


def saturated(whole: Sequence[Any], zero_point: Any) -> Any:
    """An even number of vectors of four int16, plus zero_point, saturated to int8."""
    offset, parts = T.broadcast(T.cast(zero_point, "int16"), 8), []
    for first in range(0, len(whole), 2):
        shifted = T.call_llvm_pure_intrin(
            "int16x8", "llvm.aarch64.neon.sqadd", joined(whole[first : first + 2], 4), offset
        )
        parts.append(T.call_llvm_pure_intrin("int8x8", "llvm.aarch64.neon.sqxtn", shifted))
    return joined(parts, 8)


def four_bytes(source: Any, offset: Any, count: int) -> Any:
    """Four neighbouring bytes in memory as an int32; what is missing of `count` is zero, and not read."""
    return _bytes(source, offset, count, 4)


def _bytes(source: Any, offset: Any, count: int, size: int) -> Any:
    """`size` (4 or 8) neighbouring bytes in memory as an integer; what is missing of `count` is zero, and not read."""
    kind = f"int{8 * size}"
    if count >= size:
        return T.reinterpret(source.vector(offset, size), dtype=kind)
    whole = T.cast(0, kind)
    for i in range(count):
        byte = T.cast(T.reinterpret(source.scalar(offset + i), dtype="uint8"), kind)
        whole = whole | (byte << T.cast(8 * i, kind))
    return whole
