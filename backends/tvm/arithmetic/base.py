"""What an arithmetic is: how one machine multiplies and accumulates a register tile, and at what cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...tiles import NO_TILES, Tiles
from .rounding import nearest
from .tir import T


@dataclass(frozen=True)
class Arithmetic(ABC):
    """One way to multiply on one kind of CPU.

    lanes: values of one vector register; registers: vector registers of the CPU; cores: threads that share a kernel;
    cache: bytes of activations that should stay near one core (about half of its L2); tiles: register tiles that were
    measured for some layers, and go before the rule's.
    """

    lanes: int
    registers: int
    cores: int = 1
    cache: int = 512 << 10
    tiles: Tiles = NO_TILES

    name: ClassVar[str]
    activation: ClassVar[str]  # dtypes of the three operands
    weight: ClassVar[str]
    accumulator: ClassVar[str]
    lane_weight: ClassVar[str]  # dtype of weights that are multiplied lane by lane
    lane_vectors: ClassVar[int] = 1  # neighbouring vectors that `multiply_taps` takes at a time
    lane_taps: ClassVar[int] = 1  # taps of a row that one instruction of `multiply_taps` takes
    means: ClassVar[str]  # dtype in which means are summed
    unroll: ClassVar[int]  # k steps in one pass of the inner loop
    asks_for_maps: ClassVar[bool] = False  # whether kernels prefetch maps that are larger than the cache
    group: ClassVar[int] = 1  # neighbouring k steps that one instruction takes: they lie side by side in the weights
    rows: ClassVar[int] = 1  # neighbouring pixels that one instruction takes
    ends_apart: ClassVar[bool] = False  # whether Winograd's last pass stands behind the loop, among the stores of sums
    per_element: ClassVar[int] = 1  # weights in one element of their array in memory
    lowest: ClassVar[float] = float("-inf")  # of activations: what no maximum is below

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight in memory."""
        return np.dtype(self.weight).itemsize / self.per_element

    def stored(self, weights: np.ndarray) -> np.ndarray:
        """Weights in the order in which they are read as the array that lies in memory."""
        return weights.astype(self.weight, copy=False)

    @abstractmethod
    def multiply(
        self,
        accumulators: Sequence[Sequence[Any]],
        source: Any,
        offsets: Sequence[Any],
        weights: Any,
        weight_offset: Any,
        steps: int,
    ) -> None:
        """Emit `steps` k steps of accumulators[pixel][vector] += source[offsets[pixel] + k] * weights[k][vector].

        Weights lie in memory as [k / group][vector][lane][group]. `steps` need not be a multiple of the group: what the
        weights hold beyond it is zero. Pixels come in whole groups of `rows`; one whose offset is None takes no part.
        """

    def woven(self, values: Sequence[Any]) -> Sequence[Any]:
        """Vectors of `rows` neighbouring pixels as their accumulators hold them."""
        return values

    def unwoven(self, values: Sequence[Any]) -> Sequence[Any]:
        """The accumulators of `rows` neighbouring pixels as a vector for each."""
        return values

    @abstractmethod
    def multiply_lanes(self, total: Any, value: Any, weight: Any) -> Any:
        """total + value * weight, lane by lane. weight: a vector of `lane_weight`."""

    def multiply_taps(self, totals: Sequence[Any], values: Sequence[Any], weights: Sequence[Any]) -> None:
        """Emit totals += values * weights, summed over taps, lane by lane.

        totals: registers of `lane_vectors` neighbouring vectors; values, weights: those vectors as one, for each tap.
        """
        (total,) = totals
        for value, weight in zip(values, weights, strict=True):
            total.value = self.multiply_lanes(total.value, value, weight)

    def multiply_neighbours(self, totals: Sequence[Any], spans: Sequence[Any], weights: Sequence[Any]) -> None:
        """The same for taps that read neighbouring vectors: each span holds the next `lane_taps` of them.

        What the last span holds beyond the last tap does not count. Only where `lane_taps` is above 1.
        """
        raise NotImplementedError

    def greater(self, end: Any, value: Any) -> Any:
        """The greater of two vectors of floats, lane by lane. A NaN of `value` stays; `end` has none."""
        # The end comes first so that the comparison, false for NaN, selects the value.
        return T.max(end, value)

    def lesser(self, end: Any, value: Any) -> Any:
        """The lesser of two vectors of floats, lane by lane. A NaN of `value` stays; `end` has none."""
        return T.min(end, value)

    @abstractmethod
    def registers_used(self, pixels: int, vectors: int) -> int:
        """Vector registers that a tile of `pixels` x `vectors` keeps busy."""

    @abstractmethod
    def loads(self, pixels: int, vectors: int) -> float:
        """Vector loads of one k step of a tile."""

    def efficiency(self, pixels: int, vectors: int) -> float:
        """Share of the peak that a tile can reach.

        Eight accumulators hide the latency of a multiply-add (4 cycles, 2 ports); as many loads as multiply-adds can
        be issued; weights come from L2, once per tile, fast enough for six pixels.
        """
        accumulators = pixels * vectors
        feeding = accumulators / self.loads(pixels, vectors)
        return min(accumulators / 8, 1.0) * min(feeding, 1.0) * min(pixels / 6, 1.0)

    def time(self, pixels: int, vectors: int) -> float:
        """Estimated time of one k step of a tile, in multiply-adds at peak rate.

        Loads cost a little even where they are not the bottleneck; those of weights come from L2.
        """
        traffic = self.loads(pixels, vectors) + 2 * vectors
        return pixels * vectors / self.efficiency(pixels, vectors) + 0.2 * traffic


class Fp32(Arithmetic):
    """Single precision throughout."""

    name: ClassVar[str] = "fp32"
    activation: ClassVar[str] = "float32"
    weight: ClassVar[str] = "float32"
    accumulator: ClassVar[str] = "float32"
    lane_weight: ClassVar[str] = "float32"
    means: ClassVar[str] = "float32"
    unroll: ClassVar[int] = 4

    def weight_vector(self, weights: Any, start: Any, step: int, vectors: int, vector: int) -> Any:
        """The weights that one vector of outputs has for one k step, counted from `start`, as float32."""
        return weights.vector(start + (step * vectors + vector) * self.lanes, self.lanes)

    def order(self, steps: int, vectors: int) -> list[tuple[int, int]]:
        """The order in which NEON multiplies: (k step, vector)."""
        return [(step, vector) for step in range(steps) for vector in range(vectors)]

    def multiply_lanes(self, total: Any, value: Any, weight: Any) -> Any:
        return total + value * weight


class WholeSum(NamedTuple):
    """Scalars of an addition of two integers behind a product, all float32 of whole numbers.

    low, high: of the own integer, from its zero point on; zero_other: of the other one; factor, factor_other: what they
    are multiplied with, in int16; rounder: 1.5 * 2**23, times what the sum of products is divided by, a power of two;
    low_of_sum, high_of_sum, zero_point: of what is stored.
    """

    low: Any
    high: Any
    zero_other: Any
    factor: Any
    factor_other: Any
    rounder: Any
    low_of_sum: Any
    high_of_sum: Any
    zero_point: Any


class Integers(Arithmetic):
    """8-bit activations times int8 weights, summed in int32. Sums wrap around, none saturates."""

    weight: ClassVar[str] = "int8"
    accumulator: ClassVar[str] = "int32"
    lane_weight: ClassVar[str] = "int16"
    means: ClassVar[str] = "int32"

    together: ClassVar[int] = 1  # vectors of sums that become bytes at a time
    reads_small_sums: ClassVar[bool] = False  # as floats (`requantize.start`), because conversions are slow
    saturates: ClassVar[bool] = False  # in fewer instructions than it holds bytes between ends
    reads_runs: ClassVar[bool] = False  # of a residual as many bytes at a time as it writes
    adds_whole: ClassVar[bool] = False  # residuals by whole factors: `stored_sum`
    reads_bounds: ClassVar[bool] = False  # of real numbers, and so needs fewer instructions: `stored_bounded`
    joins_pixels: ClassVar[bool] = False  # whether it is worth it to take them from several pixels
    takes_any_byte: ClassVar[bool] = True  # as a weight, -128 too, in the order of `panels`: so may be activations
    fills_registers: ClassVar[bool] = False  # with bytes that are only compared: four times its lanes
    table_lanes: ClassVar[int] = 0  # bytes that `look_up` takes at a time; 0 where it looks up one by one

    lane_rows: ClassVar[int] = 1  # rows of a depthwise window that `add_rows` takes at a time
    zips_rows: ClassVar[bool] = False  # whether it is cheaper to take two of them at a time: `multiply_zipped`

    def woven_rows(self, rows: Sequence[Any], lanes: int) -> Any:
        """Vectors of `lanes` activations, one of each of `lane_rows` rows, lane by lane. Only where that is above 1."""
        raise NotImplementedError

    def add_rows(self, total: Any, woven: Any, weights: Any) -> Any:
        """total plus activations * weights, summed over rows. Both hold `lanes` columns as `woven_rows` weaves them."""
        raise NotImplementedError

    def multiply_zipped(
        self, totals: Sequence[Any], values: Sequence[tuple[Any, Any]], weights: Sequence[Sequence[Any]]
    ) -> None:
        """Emit totals += both rows * their weights, summed over taps, lane by lane. Only where `zips_rows`.

        totals: registers of `lane_vectors` neighbouring vectors; values: for each tap those vectors of the upper and
        the lower row; weights: for each tap a vector for each half of the lanes, in which the two rows' alternate.
        """
        raise NotImplementedError

    def steps(self, real: Any, low: Any, high: Any) -> Any:
        """A vector of float32, held between two whole numbers and rounded half to even. low, high: scalars."""
        return nearest(self.between(real, low, high), self.lanes)

    def between(self, real: Any, low: Any, high: Any) -> Any:
        """A vector of float32, none of which is NaN, held between two scalars."""
        ends = [T.broadcast(end, self.lanes) for end in (low, high)]
        return T.min(T.max(real, ends[0]), ends[1])

    def centered(self, stored: Any, zero_point: Any, vectors: int = 1) -> list[Any]:
        """Bytes of so many vectors (one, if not `reads_runs`) minus a scalar of float32, as vectors of float32."""
        return [T.cast(stored, f"float32x{self.lanes}") - T.broadcast(zero_point, self.lanes)]

    def stored_bytes(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """Vectors of float32, rounded half to even, held between two whole numbers, plus zero_point, as one of bytes.

        low, high, zero_point: float32 scalars; the sums lie within the range of the activations.
        """
        raise NotImplementedError

    def stored_bounded(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any, *, saturates: bool) -> Any:
        """`stored_bytes` of vectors that lie within int32. saturates: low and high are those of the bytes."""
        return self.stored_bytes(reals, low, high, zero_point)

    def stored_saturated(self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any) -> Any:
        """`stored_bytes` where low and high are those of the bytes."""
        return self.stored_bytes(reals, low, high, zero_point)

    def stored_small(
        self, reals: Sequence[Any], low: Any, high: Any, zero_point: Any, *, saturates: bool, even: bool
    ) -> Any:
        """`stored_bytes` of vectors that lie within int16, with zero_point too.

        saturates: low and high are those of the bytes; even: zero_point is.
        """
        return self.stored_bytes(reals, low, high, zero_point)

    def stored_sum(self, reals: Sequence[Any], residuals: Sequence[Any], numbers: WholeSum, *, saturates: bool) -> Any:
        """Vectors of float32 as integers, plus residuals, as one vector of bytes. Only where `adds_whole`.

        residuals: bytes, of one vector each, or of more where `reads_runs`; saturates: the ends of the sum are those of
        the bytes.
        """
        raise NotImplementedError

    def look_up(self, table: Any, places: Any) -> Any:
        """The bytes of a table of 256 at `table_lanes` places, which are bytes as they lie in memory."""
        raise NotImplementedError

    def multiply_lanes(self, total: Any, value: Any, weight: Any) -> Any:
        """Operands of 16 bits: LLVM finds vpmaddwd or smlal for them."""
        kind = f"int32x{self.lanes}"
        return total + T.cast(value, kind) * T.cast(weight, kind)
