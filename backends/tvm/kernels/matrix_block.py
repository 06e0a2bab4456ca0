"""A block of pixels that is worked on together on a matrix unit: where its tiles read, and where their outputs go."""

from __future__ import annotations

from dataclasses import dataclass

from .builder import Index, View, smallest
from .matrix_plan import MatrixPlan
from .output import Output


@dataclass(frozen=True)
class Block:
    """`lines` lines of pixels from line `first` on, numbered as in the plan; its tiles are numbered from 0.

    view, origin: the input as tiles are loaded, and the offset of what output line 0 reads first. output, place: where
    results go, and the offset of line 0.

    The last tile of a line, or of all pixels, begins earlier where it would not be full: what it has in common with the
    tile before is written twice, the same bytes. Where tiles go on from line to line, the pixels between two lines are
    written to the places of the first ones of the line behind, before these are: outputs are written in the order of
    their pixels.
    """

    plan: MatrixPlan
    view: View
    origin: Index
    output: Output
    first: Index
    lines: Index
    place: Index = 0

    @property
    def tiles(self) -> Index:
        return self.plan.tiles(self.lines)

    def start(self, tile: Index) -> Index:
        """Offset of the first byte that a tile's first pixel reads."""
        p = self.plan
        line, pixel = self.where(tile)
        if p.pixels:
            return self.origin + pixel * p.in_pitch
        return self.origin + (line * p.window.stride[0] * p.line_pixels + pixel * p.window.stride[1]) * p.in_pitch

    def target(self, tile: Index, pixel: Index) -> Index:
        """Offset of what a pixel of a tile gives."""
        p = self.plan
        line, first = self.where(tile)
        pixel = first + pixel
        if p.flat:
            return self.place + p.pixel_place(line + pixel // p.line_pixels, pixel % p.line_pixels)
        return self.place + p.pixel_place(line, pixel)

    def where(self, tile: Index) -> tuple[Index, Index]:
        """(line, first pixel) of a tile: of a line, or of all pixels."""
        p = self.plan
        if p.pixels:
            return 0, _first(self.first + tile, p.size, p.pixels)
        if p.flat:
            return self.first, _first(tile, p.size, p.flat_pixels)
        return self.first + tile // p.columns, _first(tile % p.columns, p.size, p.row_pixels)


def _first(tile: Index, size: int, pixels: int) -> Index:
    return tile * size if pixels % size == 0 else smallest(tile * size, pixels - size)
