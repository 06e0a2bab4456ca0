"""A map of bytes with its padding around it: tiles are then read without asking where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..arithmetic.tir import T
from .builder import Index, Kernel, View
from .sources import Part, Sources

WIDE = 16  # bytes that are copied at a time


@dataclass(frozen=True)
class Border:
    """height, width: of the map; pitch: bytes of a pixel; padding: (top, bottom, left, right) in pixels, whose bytes
    are `filler`; copied: bytes in a pass of a loop. Of one that copies sixteen LLVM makes a call of memcpy, which again
    copies sixteen in a pass; more take registers of the loops around it."""

    kernel: Kernel
    height: int
    width: int
    pitch: int
    padding: tuple[int, int, int, int]
    filler: Any
    copied: int

    @property
    def line(self) -> int:
        """Bytes of a row with its padding."""
        return (self.padding[2] + self.width + self.padding[3]) * self.pitch

    def copy_row(self, source: Sources, row: Index, to: View, start: Index) -> None:
        """Row number `row`, counted with the padding, of a map or of several side by side, to `start`."""
        top, bottom, left, right = self.padding
        line = row - top
        inside = T.And(line >= 0, line < self.height) if top or bottom else True
        with self.kernel.when(inside):
            self._fill(to, start, left * self.pitch)
            first = start + left * self.pitch
            for part in source:
                self._copy(part, line * (self.width * part.pitch), to, first + part.first)
            self._fill(to, first + self.width * self.pitch, right * self.pitch)
        if inside is not True:
            with self.kernel.when(T.Not(inside)):
                self._fill(to, start, self.line)

    def _copy(self, part: Part, begin: Index, to: View, start: Index) -> None:
        """A row of one map: a run of bytes where its pixels lie side by side in the copy too."""
        pixels, size = (1, self.width * self.pitch) if part.pitch == self.pitch else (self.width, part.pitch)
        with self.kernel.loop(pixels) as pixel:
            for at, lanes in self._runs(size):
                value = part.view.vector(begin + pixel * part.pitch + at, lanes)
                to.store(start + pixel * self.pitch + at, value, lanes)

    def _fill(self, to: View, start: Index, count: int) -> None:
        for at, lanes in self._runs(count):
            to.store(start + at, T.broadcast(self.filler, lanes), lanes)

    def _runs(self, count: int) -> Iterator[tuple[Index, int]]:
        """(first byte, how many) of the vectors of a run; pixels are whole vectors of four bytes or more."""
        passes = count // self.copied
        if passes:
            with self.kernel.loop(passes) as i:
                for piece in range(0, self.copied, WIDE):
                    yield i * self.copied + piece, WIDE
        at = passes * self.copied
        while at < count:
            lanes = WIDE if count - at >= WIDE else 4
            yield at, lanes
            at += lanes
