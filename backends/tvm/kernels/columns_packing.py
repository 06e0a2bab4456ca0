"""The rows of an image that a row of outputs reads, packed into words of four bytes (`packed_columns`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..arithmetic.tir import T
from .builder import Index, Kernel, Vector, View, largest, smallest
from .columns_plan import STEP, WORD, Plan, free_bytes
from .shapes import DirectConv
from .window import input_row, rows_on_image


@dataclass(frozen=True)
class Columns:
    """The rows that a row of outputs reads, packed into `words`: [word, then tail][column][4 bytes].

    A tail lies in the column where its window begins.
    """

    kernel: Kernel
    spec: DirectConv
    plan: Plan
    source: View
    zeros: View
    words: View

    def pack(self, row: Index) -> None:
        """What lies beside the image first and last, what lies between a register of pixels at a time."""
        (left, right), width = self.spec.window.padding[2:], self.spec.width
        self.fill(0, left)
        with self.kernel.loop(width // STEP) as i:
            self.step(row, i * STEP)
        if width % STEP:
            self.step(row, width - STEP)
        self.fill(left + width, right)
        if self.plan.tails:
            with self.kernel.loop(-(-((self.plan.out_width - 1) * self.spec.window.stride[1] + 1) // STEP)) as i:
                self.tails(i * STEP)

    def fill(self, first: int, count: int) -> None:
        """Zero points in `count` columns, and in what a register holds beyond them."""
        size = STEP * WORD
        for word in range(self.plan.words):
            for column in range(first, first + count, STEP):
                self.words.store((word * self.plan.columns + column) * WORD, self.zeros.vector(0, size), size)

    def step(self, row: Index, x: Index) -> None:
        """The columns from x on."""
        window, channels, size = self.spec.window, self.spec.in_channels, STEP * WORD
        begin, end = rows_on_image(window, self.spec.height, row)
        lines = [self.line(row, tap, x, begin, end) for tap in range(window.kernel[0])]
        last = len(lines) * channels - 1
        for word in range(self.plan.words):
            taken = [min(byte, last) for byte in range(word * WORD, (word + 1) * WORD)]
            first = taken[0] // channels
            read = lines[first : taken[-1] // channels + 1]
            offsets = [(byte // channels - first) * size + byte % channels for byte in taken]
            bytes_ = T.Shuffle(read, [pixel * WORD + offset for pixel in range(STEP) for offset in offsets])
            place = (word * self.plan.columns + window.padding[2] + x) * WORD
            self.words.store(place, bytes_, size)

    def tails(self, x: Index) -> None:
        """Those of the windows that begin in the columns from x on."""
        p, spec, free = self.plan, self.spec, free_bytes(self.spec)
        wide, end = spec.window.kernel[1], spec.window.kernel[0] * spec.in_channels
        for tail in range(p.tails):
            is_own = tail < wide - 1
            begin = tail * free if is_own else (wide - 1) * free + (tail - wide + 1) * WORD
            taken = [min(byte, end - 1) for byte in range(begin, begin + (free if is_own else WORD))]
            bytes_ = self.of_columns(x, taken)
            if is_own:
                own = self.words.vector((p.whole * p.columns + x + 1 + tail) * WORD, STEP * WORD)
                kept = range(WORD - free)
                places = [
                    i * WORD + b if b in kept else STEP * WORD + i * WORD + b - len(kept)
                    for i in range(STEP)
                    for b in range(WORD)
                ]
                bytes_ = T.Shuffle([own, bytes_], places)
            self.words.store(((p.words + tail) * p.columns + x) * WORD, bytes_, STEP * WORD)

    def of_columns(self, x: Index, taken: list[int]) -> Vector:
        """These bytes of the columns from x on, which lie in one word or in two: at the beginning of each word."""
        size, first = STEP * WORD, taken[0] // WORD
        lines = range(first, taken[-1] // WORD + 1)
        read = [self.words.vector((line * self.plan.columns + x) * WORD, size) for line in lines]
        places = [(byte // WORD - first) * size + byte % WORD for byte in taken]
        places += places[-1:] * (WORD - len(places))
        return T.Shuffle(read, [i * WORD + place for i in range(STEP) for place in places])

    def line(self, row: Index, tap: int, x: Index, begin: Index, end: Index) -> Vector:
        """Pixels of the row that a tap reads; zero points where that is none of the image's."""
        height, size = self.spec.height, STEP * WORD
        y = smallest(height - 1, largest(0, input_row(self.spec.window, row, tap)))
        read = self.source.vector((y * self.spec.width + x) * WORD, size)
        if isinstance(begin, int) and isinstance(end, int) and begin <= tap < end:
            return read
        return T.Select(T.And(begin <= tap, tap < end), read, self.zeros.vector(0, size))
