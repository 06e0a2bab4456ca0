"""Depthwise windows two rows at a time: pairs of inputs, one above the other, are neighbours in 16-bit products.

Without the dot product the sums of a row are added by instructions for which two pipes of a core compete, one of which
is the only one that multiplies. Neighbours are added by the other pipe alone, twice as many at a time. A row without a
second one is multiplied as it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from .builder import Index, Register, View, largest
from .several_rows import SeveralRows
from .shapes import Window, round_up
from .window import Columns, by_input, input_column, input_row, rows_on_image

MOST_COLUMNS = 8  # per tile: beside their sums the zipped inputs of a few columns have to stay in registers


def takes(window: Window, arithmetic: Arithmetic, vectors: int) -> bool:
    """Whether the rows of a window are zipped. vectors: of channels that are taken at a time."""
    zips = isinstance(arithmetic, Integers) and arithmetic.zips_rows
    return zips and vectors == arithmetic.lane_vectors and window.kernel[0] > 1


def weights_per_channel(window: Window, arithmetic: Arithmetic) -> int:
    """Weights of a channel in memory: of every two neighbouring rows, then of every row."""
    tall, wide = window.kernel
    return (2 * (tall - 1) + tall) * wide


def pack(matrix: np.ndarray, window: Window, arithmetic: Integers, lanes: int) -> np.ndarray:
    """[channels, taps] as [vector] of [upper row][column][lane][2 rows] and [row][column][lane], padded with zeros.

    An image's upper or lower end may cut any row off a window: what is left of it may begin with each.
    """
    (tall, wide), channels = window.kernel, len(matrix)
    padded = np.zeros((round_up(channels, lanes), tall, wide), arithmetic.lane_weight)
    padded[:channels] = matrix.reshape(channels, tall, wide)
    rows = padded.reshape(-1, lanes, tall, wide).transpose(0, 2, 3, 1)
    pairs = np.stack([rows[:, :-1], rows[:, 1:]], -1)
    count = len(rows)
    return np.concatenate([pairs.reshape(count, -1), rows.reshape(count, -1)], 1).ravel()


class Rows(SeveralRows):
    """Those of a window, zipped."""

    def accumulate(
        self,
        sums: Sequence[Sequence[Register]],
        source: View,
        line: Callable[[Index], Index],
        row: Index,
        columns: Columns,
        column: Index,
        group: Index,
    ) -> None:
        begin, end = rows_on_image(self.window, self.height, row)
        rows = largest(0, end - begin)
        pairs = by_input(self.window, columns)
        reads = [(own, i, [tap for to, tap in pairs if to == i]) for i, own in enumerate(sums)]
        tile = _Tile(self, source, line, row, column, group * self.weights_of_group, reads)
        # Written out, so that LLVM finds the rows' places before the loops around a tile.
        for pair in range(self.window.kernel[0] // 2):
            with self.kernel.when(rows >= 2 * pair + 2):
                tile.two_rows(begin + 2 * pair)
        with self.kernel.when(rows % 2 == 1):
            tile.last_row(end - 1)

    @property
    def weights_of_group(self) -> int:
        return weights_per_channel(self.window, self.arithmetic) * self.together


@dataclass(frozen=True)
class _Tile:
    """The output columns of a register tile: for each its registers, its number, and the taps of a row that it reads.

    weights: where those of the group of channels begin.
    """

    rows: Rows
    source: View
    line: Callable[[Index], Index]
    row: Index
    column: Index
    weights: Index
    reads: list[tuple[Sequence[Register], int, list[int]]]

    def places(self, tap: Index, i: int, taps: list[int]) -> list[Index]:
        """Where the inputs lie that row `tap` of output column i's window reads."""
        window, start = self.rows.window, self.line(input_row(self.rows.window, self.row, tap))
        return [start + input_column(window, self.column + i, across) * self.rows.pitch for across in taps]

    def inputs(self, tap: Index, i: int, taps: list[int]) -> list[Any]:
        return [self.source.vector(place, self.rows.together) for place in self.places(tap, i, taps)]

    def two_rows(self, tap: Index) -> None:
        """Row `tap` of the window and the one below it."""
        r, each = self.rows, self.rows.together
        first = self.weights + tap * (r.window.kernel[1] * 2 * each)
        for sums, i, taps in self.reads:
            both = list(zip(self.inputs(tap, i, taps), self.inputs(tap + 1, i, taps), strict=True))
            halves = [[first + (across * 2 + half) * each for half in range(2)] for across in taps]
            read = [[r.weights.vector(place, each) for place in half] for half in halves]
            r.arithmetic.multiply_zipped(sums, both, read)

    def last_row(self, tap: Index) -> None:
        """A row that has none below it."""
        r, each = self.rows, self.rows.together
        tall, wide = r.window.kernel
        first = self.weights + (2 * (tall - 1) + tap) * (wide * each)
        for sums, i, taps in self.reads:
            read = [r.weights.vector(first + across * each, each) for across in taps]
            r.arithmetic.multiply_taps(sums, self.inputs(tap, i, taps), read)
