"""The input of a convolution on a matrix unit, where tiles cannot be loaded from it as it lies: with its padding."""

from __future__ import annotations

from dataclasses import dataclass

from ..arithmetic.tir import T
from .builder import Index, Kernel, View
from .matrix_plan import MatrixPlan
from .sources import Part, Sources


@dataclass(frozen=True)
class Copy:
    """A block of input lines with its padding around it."""

    kernel: Kernel
    plan: MatrixPlan
    source: Sources
    copy: View
    padding: View
    lanes: int

    def emit(self, top: Index, lines: Index) -> None:
        """Lines top .. top + lines of the padded image; those off the image hold padding."""
        p, kernel = self.plan, self.kernel
        above, _, left, right = p.window.padding
        pitch = p.line_pixels * p.channels
        with kernel.loop(lines) as line:
            row = top + line - above
            is_inside = T.And(row >= 0, row < p.source_height)
            with kernel.when(is_inside):
                self.fill(line * pitch, left)
                for part in self.source:
                    first = row * (p.source_width * part.pitch)
                    self.move(part, first, line * pitch + left * p.channels + part.first)
                self.fill(line * pitch + (left + p.source_width) * p.channels, right)
            with kernel.when(T.Not(is_inside)):
                self.fill(line * pitch, p.line_pixels)

    def fill(self, offset: Index, pixels: int) -> None:
        """Padding in some neighbouring pixels."""
        size = self.lanes if self.plan.channels % self.lanes == 0 else 4
        if pixels:
            with self.kernel.loop(pixels * self.plan.channels // size) as i:
                self.copy.store(offset + i * size, self.padding.vector(0, size), size)

    def move(self, part: Part, source: Index, target: Index) -> None:
        """One line of a map, as it is, or its channels in use of each pixel."""
        p = self.plan
        if part.channels == part.pitch == p.channels:
            self.run(part.view, source, target, p.source_width * p.channels)
            return
        with self.kernel.loop(p.source_width) as pixel:
            self.run(part.view, source + pixel * part.pitch, target + pixel * p.channels, part.channels)

    def run(self, view: View, source: Index, target: Index, size: int) -> None:
        """Neighbouring bytes."""
        at_once = next(each for each in (64, 32, 16, 4) if size % each == 0)
        with self.kernel.loop(size // at_once) as i:
            self.copy.store(target + i * at_once, view.vector(source + i * at_once, at_once), at_once)
