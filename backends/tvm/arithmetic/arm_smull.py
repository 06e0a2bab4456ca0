"""8-bit integers on NEON without the dot product: two products fit 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .arm_integers import NeonIntegers, four_bytes, joined, saturated, spread_lane
from .base import WholeSum
from .tir import T


@dataclass(frozen=True)
class Smull(NeonIntegers):
    """smull and smlal to 16 bits, sadalp to 32, of cores without the dot product (Cortex-A53, A72).

    Two products of an activation and a weight within -127..127 fit 16 bits: 2 * 128 * 127 < 2**15. Of four k steps the
    first two are multiplied and the last two added to them, in eight lanes that hold the pairs of four outputs; one
    instruction adds the pairs to the sums. The two pairs of activations are spread once for all vectors of outputs.
    """

    name: ClassVar[str] = "smull"
    group: ClassVar[int] = 4
    takes_any_byte: ClassVar[bool] = False
    saturates: ClassVar[bool] = True
    zips_rows: ClassVar[bool] = True
    reads_runs: ClassVar[bool] = True
    adds_whole: ClassVar[bool] = True

    def stored(self, weights: np.ndarray) -> np.ndarray:
        """[lane][4 k] of each vector as [pair of k][lane][2 k]."""
        pairs = weights.astype(self.weight, copy=False).reshape(-1, self.lanes, 2, 2)
        return pairs.transpose(0, 2, 1, 3).ravel()

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
            at = weight_offset + step * vectors * self.lanes
            read = [weights.vector(at + v * self.group * self.lanes, 16) for v in range(vectors)]
            for p, offset in enumerate(offsets):
                if whole:
                    pairs, first = T.reinterpret(whole[p], dtype="int16x8"), step // 2
                else:
                    pairs, first = self.pairs(source, offset, step, steps)
                spread = [self.spread(pairs, first + half, half) for half in range(2)]
                for v in range(vectors):
                    total = accumulators[p][v]
                    total.value = self.add_products(total.value, spread, read[v])

    def pairs(self, source: Any, offset: Any, step: int, steps: int) -> tuple[Any, int]:
        """A vector that holds activations `step` .. `step` + 3 of `steps` as lanes of 16 bits, and the first lane."""
        if steps >= 8 and steps % self.group == 0:
            start = min(step - step % 8, steps - 8)
            return T.reinterpret(source.vector(offset + start, 8), dtype="int16x4"), (step - start) // 2
        return self.two_pairs(four_bytes(source, offset + step, steps - step)), 0

    def two_pairs(self, four: Any) -> Any:
        """int32 as a vector of 16 bits, of which the first two lanes count; LLVM would widen a vector of two."""
        return T.reinterpret(T.Shuffle([T.reinterpret(four, dtype="float32"), T.float32(0)], [0, 1]), dtype="int16x4")

    def spread(self, pairs: Any, lane: int, half: int) -> Any:
        """A pair of activations in every 16 bits of eight bytes, which are multiplied with one half of the weights.

        For the upper half they are the upper half of a register too, behind a fence that keeps LLVM from spreading the
        pair over eight bytes: smlal2 then takes both as they are.
        """
        if half == 0:
            return spread_lane(pairs, lane, self.lanes)
        whole = T.reinterpret(spread_lane(pairs, lane, 2 * self.lanes), dtype="float32x4")
        fenced = T.call_llvm_pure_intrin("float32x4", "llvm.arithmetic.fence", whole)
        return half_of(T.reinterpret(fenced, dtype="int8x16"), 1)

    def add_products(self, total: Any, spread: Sequence[Any], weights: Any) -> Any:
        """total plus the products of two pairs of activations, each in every 16 bits, with both halves of int8x16."""
        # An intrinsic keeps the half of the weights that it takes beside it; LLVM would extract it outside of a loop.
        first, second = (
            T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull", T.reinterpret(pair, dtype="int8x8"), part)
            for pair, part in zip(spread, (half_of(weights, 0), half_of(weights, 1)), strict=True)
        )
        return total + T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp", first + second)

    def multiply_zipped(
        self, totals: Sequence[Any], values: Sequence[tuple[Any, Any]], weights: Sequence[Sequence[Any]]
    ) -> None:
        """zip1 and zip2; two taps at a time as in `multiply_taps`, then sadalp, which adds the rows."""
        lanes = self.lanes
        for half, total in enumerate(totals):
            order = [place for lane in range(half * lanes, (half + 1) * lanes) for place in (lane, 2 * lanes + lane)]
            products = [
                T.cast(T.Shuffle([upper, lower], order), "int16x8") * T.cast(read[half], "int16x8")
                for (upper, lower), read in zip(values, weights, strict=True)
            ]
            for first in range(0, len(products), 2):
                pair = sum(products[first + 1 : first + 2], start=products[first])
                total.value = total.value + T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp", pair)

    def centered(self, stored: Any, zero_point: Any, vectors: int = 1) -> list[Any]:
        """In 16 bits: LLVM would widen bytes for a conversion by a table."""
        differences = self.differences(stored, zero_point, vectors)
        return [T.cast(T.cast(difference, "int32x4"), "float32x4") for difference in differences]

    def differences(self, stored: Any, zero_point: Any, vectors: int) -> list[Any]:
        """Bytes of so many vectors minus a scalar of float32, as vectors of int16."""
        lanes = vectors * self.lanes
        whole = T.cast(stored, f"int16x{lanes}") - T.broadcast(T.cast(zero_point, "int16"), lanes)
        return [part_of(whole, v, self.lanes) for v in range(vectors)] if vectors > 1 else [whole]

    def stored_sum(self, reals: Sequence[Any], residuals: Sequence[Any], numbers: WholeSum, *, saturates: bool) -> Any:
        """Whole numbers are multiplied in half the time of floats. Sums become floats, exactly, only to be rounded.

        `rounder` rounds to a multiple of the power of two that sums are divided by: half to even, the result in the
        low 16 bits.
        """
        n, count = numbers, len(reals)
        held, length = self.held(reals, n.low, n.high), count // len(residuals)
        own = [part_of(held, v, self.lanes) for v in range(count)] if count > 1 else [held]
        other = [each for stored in residuals for each in self.differences(stored, n.zero_other, length)]
        factors = [T.broadcast(T.cast(factor, "int16"), self.lanes) for factor in (n.factor, n.factor_other)]
        whole = []
        for pair in zip(own, other, strict=True):
            first, second = (T.cast(x, "int32x4") * T.cast(y, "int32x4") for x, y in zip(pair, factors, strict=True))
            rounded = T.cast(first + second, "float32x4") + T.broadcast(n.rounder, self.lanes)
            whole.append(T.cast(T.reinterpret(rounded, dtype="int32x4"), "int16x4"))
        if saturates and count > 1:
            return saturated(whole, n.zero_point)
        lanes = count * self.lanes
        low, high, zero = (T.broadcast(T.cast(x, "int16"), lanes) for x in (n.low_of_sum, n.high_of_sum, n.zero_point))
        return T.cast(T.min(T.max(joined(whole, self.lanes), low), high) + zero, f"{self.activation}x{lanes}")

    def stored_saturated(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """Every step saturates: to int32, to int16 twice, to int8."""
        if len(reals) == 1:
            return self.stored_bytes(reals, low, high, zero_point)
        return saturated([_nearest_int16(real) for real in reals], zero_point)

    def held(self, reals: Sequence[Any], low: Any, high: Any) -> Any:
        """These cores convert as fast as they add, and compare eight integers in the time of two floats."""
        narrow = [_nearest_int16(real) for real in reals]
        lanes = len(reals) * self.lanes
        ends = [T.broadcast(T.cast(end, "int16"), lanes) for end in (low, high)]
        return T.min(T.max(joined(narrow, self.lanes), ends[0]), ends[1])

    def registers_used(self, pixels: int, vectors: int) -> int:
        """Sums, activations, both halves of the weights, two pairs and their products."""
        return pixels * vectors + pixels + 2 * vectors + 3

    def time(self, pixels: int, vectors: int) -> float:
        """In multiplications: one pipe multiplies, the other one adds pairs and spreads activations."""
        sums = pixels * vectors
        products = max(2 * sums, sums + 2 * pixels)
        return products + 0.2 * self.loads(pixels, vectors) + 2 * self.writing(pixels, vectors)


def _nearest_int16(real: Any) -> Any:
    """float32, rounded half to even and saturated to int16."""
    whole = T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.fcvtns", real)
    return T.call_llvm_pure_intrin("int16x4", "llvm.aarch64.neon.sqxtn", whole)


def part_of(vector: Any, which: int, lanes: int) -> Any:
    """`lanes` neighbouring lanes of a vector."""
    return T.Shuffle([vector], list(range(which * lanes, (which + 1) * lanes)))


def half_of(vector: Any, which: int) -> Any:
    """The lower or upper eight bytes of sixteen."""
    return part_of(vector, which, 8)
