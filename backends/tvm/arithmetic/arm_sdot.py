"""8-bit integers on NEON with the dot product: four products at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .arm_integers import NeonIntegers, four_bytes, joined, spread_lane
from .rounding import nearest
from .tir import T

BYTE = 128  # what makes a signed byte unsigned


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
        time; where all pixels read fewer, what lies before them is read too.
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
    reads_runs: ClassVar[bool] = True

    def steps(self, real: Any, low: Any, high: Any) -> Any:
        """Rounded by two additions: `frintn` takes one pipe for as long as both together."""
        return nearest(self.between(real, low, high), self.lanes)

    def centered(self, stored: Any, zero_point: Any, vectors: int = 1) -> list[Any]:
        """Half a float32, 0x4B00, above 16 bits makes 2**23 plus those: one subtraction is left, and no conversion."""
        half, read = 2 * self.lanes, max(vectors, 2) * self.lanes
        whole = joined([stored] * (read // (vectors * self.lanes)), vectors * self.lanes)
        above = T.broadcast(T.cast(0x4B00, "int16"), half)
        zero = T.broadcast(zero_point + T.float32(2.0**23 + BYTE), self.lanes)
        found = []
        for v in range(vectors):
            eight = T.Shuffle([whole], list(range(v // 2 * half, (v // 2 + 1) * half))) if read > half else whole
            unsigned = T.cast(eight, f"int16x{half}") + T.broadcast(T.cast(BYTE, "int16"), half)
            lanes = range(v % 2 * self.lanes, (v % 2 + 1) * self.lanes)
            words = T.Shuffle([unsigned, above], [place for lane in lanes for place in (lane, half + lane)])
            found.append(T.reinterpret(words, dtype="float32x4") - zero)
        return found

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


def _zipped(one: Any, other: Any, lanes: int) -> Any:
    """Two vectors lane by lane."""
    return T.Shuffle([one, other], [place for lane in range(lanes) for place in (lane, lanes + lane)])
