"""The inner loop of every matrix-like kernel: a tile of accumulators that stays in registers over the reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

from ..arithmetic import Arithmetic, Sdot
from ..arithmetic.tir import T
from .builder import Index, Kernel, Vector, View
from .prefetches import CACHE_LINE, Ahead, Following, Soon, weights_per_line
from .shapes import round_up


class Accumulators:
    """`pixels` x `vectors` registers, started from the bias, fed by `accumulate`, read by `finish`.

    An arithmetic that takes several pixels at once has registers for whole groups of them.
    """

    def __init__(self, kernel: Kernel, arithmetic: Arithmetic, pixels: int, vectors: int):
        self._kernel, self._arithmetic, self._pixels, self._vectors = kernel, arithmetic, pixels, vectors
        rows = range(round_up(pixels, arithmetic.rows))
        self._rows = [kernel.registers(vectors, arithmetic.lanes, arithmetic.accumulator) for _ in rows]

    def start(self, bias: View, *offsets: Index) -> None:
        """Every pixel begins with the bias, read from an offset of its own, or from one that all share."""
        lanes = self._arithmetic.lanes
        starts = offsets * len(self._rows) if len(offsets) == 1 else self._filled(offsets, offsets[-1])
        for v in range(self._vectors):
            for first in self._groups():
                group = slice(first, first + self._arithmetic.rows)
                begins = self._arithmetic.woven([bias.vector(offset + v * lanes, lanes) for offset in starts[group]])
                for row, begin in zip(self._rows[group], begins, strict=True):
                    row[v].value = begin

    def clear(self) -> None:
        """Every register becomes zero."""
        for register in (register for row in self._rows for register in row):
            register.value = T.broadcast(T.cast(0, register.dtype), self._arithmetic.lanes)

    def add_scaled(self, sums: Accumulators, scales: View, offset: Index) -> None:
        """Add those of another tile of this size, each times its output's scale ([vectors][lanes] from `offset` on)."""
        lanes = self._arithmetic.lanes
        for v in range(self._vectors):
            scale = scales.vector(offset + v * lanes, lanes)
            for total, sum_ in zip(self._rows, sums._rows, strict=True):
                total[v].value = total[v].value + sum_[v].value * scale

    def accumulate(
        self,
        source: View,
        offsets: Sequence[Index | None],
        weights: View,
        weight_offset: Index,
        length: int,
        ahead: Ahead | None = None,
        soon: Soon | None = None,
        following: Following | None = None,
        *,
        apart: bool = False,
    ) -> None:
        """Add `length` products per output.

        Pixel p reads source[offsets[p] .. + length]; a pixel without an offset takes no part (its tap falls on
        padding). Weights are [length][vectors][lanes] from `weight_offset` on. apart: the last pass stands behind the
        loop, so that what is done with the sums stands between its products.
        """
        filled, group = self._filled(offsets, None), range(self._arithmetic.rows)
        part = [
            first + i for first in self._groups() if any(filled[first + i] is not None for i in group) for i in group
        ]
        rows, starts = [self._rows[i] for i in part], [filled[i] for i in part]
        if not rows:
            return
        unroll, pitch = self._arithmetic.unroll, self._vectors * self._arithmetic.lanes
        whole, rest = divmod(length, unroll)
        first = min(whole, soon.pixels) if soon else 0
        last = int(apart and whole > first)
        for begin, passes, fetched in (
            (0, first, soon),
            (first, whole - first - last, None),
            (whole - last, last, None),
        ):
            if not passes:
                continue
            with self._kernel.loop(passes, begin) as k:
                self._prefetch(weights, ahead, k)
                self.fetch(fetched, k, passes)
                here = _moved(starts, k * unroll)
                self._arithmetic.multiply(rows, source, here, weights, weight_offset + k * (unroll * pitch), unroll)
                self._follow(source, following, k)
        if rest:
            here = _moved(starts, whole * unroll)
            self._arithmetic.multiply(rows, source, here, weights, weight_offset + whole * unroll * pitch, rest)

    def accumulate_words(
        self, source: View, start: Index, stride: int, weights: View, weight_offset: Index, taps: int
    ) -> None:
        """Add `taps` neighbouring taps per output, as `Sdot.multiply_words` says: every pixel takes part."""
        assert isinstance(self._arithmetic, Sdot)
        self._arithmetic.multiply_words(self._rows, source, start, stride, weights, weight_offset, taps)

    def _prefetch(self, weights: View, ahead: Ahead | None, k: Index) -> None:
        if ahead is None:
            return
        for line in range(ahead.lines):
            place = ((ahead.passed + k) * ahead.lines + line) * weights_per_line(self._arithmetic)
            self._kernel.prefetch(weights, (ahead.start + place) // self._arithmetic.per_element)

    def _follow(self, source: View, following: Following | None, k: Index) -> None:
        if following is None:
            return
        for line in range(following.lines):
            self._kernel.prefetch(source, following.offset(source, k, line), near=True)

    def fetch(self, soon: Soon | None, k: Index, passes: int) -> None:
        """Ask in pass k of `passes` for the lines of one pixel, or of more where there are fewer passes than pixels."""
        if soon is None:
            return
        each = ceil(soon.pixels / passes)
        for pixel in range(each):
            for view, write in soon.views:
                for element in range(0, self._vectors * self._arithmetic.lanes, CACHE_LINE // view.itemsize):
                    place = soon.first + (k * each + pixel) * soon.pitch + element
                    self._kernel.prefetch(view, place, write=write)

    def finish(self, store: Callable[[int, int, Vector], None]) -> None:
        """Hand every accumulator to store(pixel, vector, value)."""
        for first in self._groups():
            group = self._rows[first : first + self._arithmetic.rows]
            for v in range(self._vectors):
                values = self._arithmetic.unwoven([row[v].value for row in group])
                for i, value in enumerate(values[: self._pixels - first]):
                    store(first + i, v, value)

    def finish_together(self, most: int, store: Callable[[int, int, list[Vector]], None]) -> None:
        """Hand neighbours of a pixel to store(pixel, first vector, values): `most` at a time, then halves of that."""
        for first in self._groups():
            group = self._rows[first : first + self._arithmetic.rows]
            for v, size in halved(self._vectors, most):
                columns = [self._arithmetic.unwoven([row[v + i].value for row in group]) for i in range(size)]
                for i in range(min(len(group), self._pixels - first)):
                    store(first + i, v, [column[i] for column in columns])

    def _groups(self) -> range:
        """The first rows of groups that are multiplied together."""
        return range(0, len(self._rows), self._arithmetic.rows)

    def _filled(self, values: Sequence[Index | None], filler: Index | None) -> Sequence[Any]:
        """A value for each row, where there is one for each pixel."""
        return [*values, *[filler] * (len(self._rows) - len(values))]


def halved(extent: int, most: int) -> Iterator[tuple[int, int]]:
    """(first, number) of the pieces of an extent: `most` each, a power of two, then smaller powers."""
    first = 0
    while first < extent:
        while most > extent - first:
            most //= 2
        yield first, most
        first += most


def _moved(starts: Sequence[Index | None], distance: Index) -> list[Index | None]:
    return [None if start is None else start + distance for start in starts]
