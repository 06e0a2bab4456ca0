"""Sliding windows without a halo in memory: which taps of a window fall on the image, and which on padding.

Rows are cut off at run time (a loop over the window's rows that lie on the image); columns at compile time, because a
register tile covers several of them: tiles whose columns lose the same taps share one body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..arithmetic.tir import T
from .builder import Index, largest, smallest
from .shapes import Window


@dataclass(frozen=True)
class Columns:
    """`count` neighbouring tiles of `size` output columns from `start` on.

    on_image[tap][column]: whether that tap of the window's row reads a pixel of the image.
    """

    start: int
    count: int
    size: int
    on_image: tuple[tuple[bool, ...], ...]

    def taps(self) -> Iterator[tuple[int, int, tuple[bool, ...]]]:
        """(first tap, number of taps, columns that take part) of neighbouring taps that treat all columns alike."""
        first = 0
        for tap in range(1, len(self.on_image) + 1):
            if tap == len(self.on_image) or self.on_image[tap] != self.on_image[first]:
                yield first, tap - first, self.on_image[first]
                first = tap


def cut_columns(window: Window, width: int, out_width: int, size: int) -> list[Columns]:
    """Cut a row of output columns into tiles of `size`, equal neighbours joined."""
    left, step, spread = window.padding[2], window.stride[1], window.dilation[1]
    cut: list[Columns] = []
    for start in range(0, out_width, size):
        columns = range(start, min(start + size, out_width))
        on_image = tuple(
            tuple(0 <= column * step + tap * spread - left < width for column in columns)
            for tap in range(window.kernel[1])
        )
        if cut and (cut[-1].size, cut[-1].on_image) == (len(columns), on_image):
            cut[-1] = Columns(cut[-1].start, cut[-1].count + 1, len(columns), on_image)
        else:
            cut.append(Columns(start, 1, len(columns), on_image))
    return cut


def rows_on_image(window: Window, height: int, row: Index) -> tuple[Index, Index]:
    """(first, past the last) of the window's rows that lie on the image, for one output row."""
    top, step, spread, taps = window.padding[0], window.stride[0], window.dilation[0], window.kernel[0]
    reach = (taps - 1) * spread + 1
    last_row = (height + top + window.padding[1] - reach) // step
    first: Index = 0
    if top:
        first = largest(0, (top - row * step + spread - 1) // spread)
    end: Index = taps
    if last_row * step + reach - top > height:
        end = smallest(taps, (height + top - row * step + spread - 1) // spread)
    return first, end


def count_rows(window: Window, height: int, out_height: int, ends: tuple[Index, Index]) -> Index:
    """How many of the window's rows lie on the image, from `rows_on_image`.

    Where every window reaches the image, LLVM is told: it would start the registers of a tile once more for no rows.
    """
    begin, end = ends
    count = end - begin
    if isinstance(count, int) or any(first >= last for first, last in _reach(window, height, out_height)):
        return count
    # A maximum of TIR's own would be gone before LLVM sees it: TVM can often prove that it is not needed.
    return T.call_llvm_pure_intrin("int32", "llvm.smax", T.cast(count, "int32"), T.int32(1))


def input_row(window: Window, row: Index, tap: Index) -> Index:
    """The image row that one row of the window reads."""
    return row * window.stride[0] + tap * window.dilation[0] - window.padding[0]


def input_column(window: Window, column: Index, tap: Index) -> Index:
    """The image column that one column of the window reads."""
    return column * window.stride[1] + tap * window.dilation[1] - window.padding[2]


def by_input(window: Window, columns: Columns) -> list[tuple[int, int]]:
    """(output column, tap) pairs on the image, those that read one input column side by side: LLVM loads it once."""
    pairs = [(i, tap) for tap, reads in enumerate(columns.on_image) for i, on_image in enumerate(reads) if on_image]
    return sorted(pairs, key=lambda pair: (input_column(window, pair[0], pair[1]), pair))


@dataclass(frozen=True)
class Borders:
    """Classes of output positions whose windows lose the same taps to padding.

    top, bottom: output rows whose windows leave the image there; middle: whether rows are left between them.
    patterns: for each class of columns, which taps of a window's row fall on the image.
    """

    window: Window
    height: int
    out_height: int
    top: int
    bottom: int
    patterns: tuple[tuple[bool, ...], ...]

    @staticmethod
    def of(window: Window, height: int, width: int) -> Borders:
        out_height, out_width = window.output(height, width)
        cuts = cut_columns(window, width, out_width, 1)
        columns = (column for cut in cuts for column in zip(*cut.on_image, strict=True))
        whole = [begin == 0 and end == window.kernel[0] for begin, end in _reach(window, height, out_height)]
        top = whole.index(True) if any(whole) else out_height
        bottom = whole[::-1].index(True) if any(whole) else 0
        return Borders(window, height, out_height, top, bottom, tuple(dict.fromkeys(columns)))

    @property
    def rows(self) -> int:
        """Classes of rows: each row that loses a tap is one, all others are one."""
        return self.top + self.bottom + (self.top + self.bottom < self.out_height)

    def row(self, row: Index) -> Index:
        """The class of an output row."""
        if self.rows == self.out_height:
            return row
        below = largest(0, row - (self.out_height - self.bottom - 1)) if self.bottom else 0
        return smallest(row, self.top) + below

    def index(self, row: Index, columns: Columns, i: int) -> Index:
        """The class of column i of a tile in an output row, as `reached` counts them."""
        pattern = self.patterns.index(tuple(taps[i] for taps in columns.on_image))
        return self.row(row) * len(self.patterns) + pattern

    def reached(self) -> list[np.ndarray]:
        """For every class, columns fastest: [taps], which taps of a window fall on the image."""
        ends = list(_reach(self.window, self.height, self.out_height))
        kept = [*range(self.top), *range(self.out_height - self.bottom, self.out_height)]
        if self.rows > len(kept):
            kept.insert(self.top, self.top)
        tall = np.arange(self.window.kernel[0])
        lines = [(tall >= ends[row][0]) & (tall < ends[row][1]) for row in kept]
        return [np.outer(line, pattern).ravel() for line in lines for pattern in self.patterns]


def _reach(window: Window, height: int, out_height: int) -> Iterator[tuple[int, int]]:
    """(first, past the last) of the window's rows on the image, for each output row."""
    for row in range(out_height):
        begin, end = rows_on_image(window, height, row)
        yield int(begin), max(int(begin), int(end))
