"""Depthwise windows by columns: one instruction multiplies the rows of a column that were woven lane by lane.

A column of inputs is woven once for all the outputs that read it. Rows beyond the image, and those that the window does
not have, meet weights of zero: what is read for them does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from .builder import Index, Register, View, largest, smallest
from .several_rows import SeveralRows
from .shapes import Window, round_up
from .window import Columns, by_input, input_column, input_row, rows_on_image

BYTE = 0xFF
MOST_COLUMNS = 7  # per tile: LLVM weaves the inputs of all of them first, and they have to stay in registers


def takes(window: Window, arithmetic: Arithmetic) -> bool:
    """Whether a window is multiplied by columns."""
    return isinstance(arithmetic, Integers) and arithmetic.lane_rows > 1 and window.kernel[0] > 1


def weights_per_channel(window: Window, arithmetic: Arithmetic) -> int:
    """Weights of a channel in memory: a column has whole groups of rows."""
    assert isinstance(arithmetic, Integers)
    return round_up(window.kernel[0], arithmetic.lane_rows) * window.kernel[1]


def pack(matrix: np.ndarray, window: Window, arithmetic: Integers, lanes: int) -> np.ndarray:
    """[channels, taps] as [vector][group of rows][column][lane][row], padded with zeros."""
    (tall, wide), rows, channels = window.kernel, arithmetic.lane_rows, len(matrix)
    padded = np.zeros((round_up(channels, lanes), round_up(tall, rows), wide), arithmetic.lane_weight)
    padded[:channels, :tall] = matrix.reshape(channels, tall, wide)
    return padded.reshape(-1, lanes, padded.shape[1] // rows, rows, wide).transpose(0, 2, 4, 1, 3).ravel()


class Rows(SeveralRows):
    """Those of a window, woven."""

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
        (tall, wide), rows = self.window.kernel, self.arithmetic.lane_rows
        for part in range(-(-tall // rows)):
            taps = range(part * rows, min(tall, (part + 1) * rows))
            starts = [line(self.clamped(input_row(self.window, row, tap))) for tap in taps]
            starts += starts[-1:] * (rows - len(starts))
            first = (group * -(-tall // rows) + part) * wide * self.together * rows
            mask = self.mask(row, taps)
            for _, pairs in groupby(by_input(self.window, columns), lambda pair: self.input(*pair)):
                reading = list(pairs)
                place = input_column(self.window, column + reading[0][0], reading[0][1]) * self.pitch
                woven = self.woven([source.vector(start + place, self.together) for start in starts])
                for i, across in reading:
                    read = self.read(first + across * self.together * rows, mask)
                    for total, values, weights in zip(sums[i], woven, read, strict=True):
                        total.value = self.arithmetic.add_rows(total.value, values, weights)

    def woven(self, rows: Sequence[Any]) -> list[Any]:
        """A column: a vector of bytes for each vector of channels."""
        size = self.arithmetic.lane_rows * self.arithmetic.lanes
        both = self.arithmetic.woven_rows(rows, self.together)
        vectors = range(self.together // self.arithmetic.lanes)
        return [T.Shuffle([both], list(range(v * size, (v + 1) * size))) for v in vectors]

    def input(self, i: int, across: int) -> int:
        """The input column of tap `across` of output column i, counted from the tile's first."""
        return i * self.window.stride[1] + across * self.window.dilation[1]

    def clamped(self, y: Index) -> Index:
        """A row of the image instead of one beyond it."""
        top, bottom = self.window.padding[:2]
        y = largest(0, y) if top else y
        return smallest(self.height - 1, y) if bottom else y

    def mask(self, row: Index, taps: range) -> Any:
        """The rows of a group that lie on the image, as bytes of an int32; None where all of them always do."""
        begin, end = rows_on_image(self.window, self.height, row)
        if isinstance(begin, int) and isinstance(end, int) and begin == 0 and end == self.window.kernel[0]:
            return None
        mask = T.int32(0)
        for i, tap in enumerate(taps):
            byte = np.uint32(BYTE << 8 * i).astype(np.int32)
            mask = mask | T.Select(T.And(begin <= tap, tap < end), T.int32(int(byte)), T.int32(0))
        return mask

    def read(self, offset: Index, mask: Any) -> list[Any]:
        """The weights of a column, a vector of bytes for each vector of channels."""
        rows, lanes = self.arithmetic.lane_rows, self.arithmetic.lanes
        size = rows * lanes
        read = [self.weights.vector(offset + at, size) for at in range(0, self.together * rows, size)]
        if mask is None:
            return read
        spread = T.broadcast(mask, lanes)
        kind = f"int32x{lanes}"
        return [T.reinterpret(T.reinterpret(w, dtype=kind) & spread, dtype=f"int8x{size}") for w in read]
