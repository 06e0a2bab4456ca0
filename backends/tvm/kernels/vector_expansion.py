"""The 1x1 convolution in front of a depthwise one, in register tiles of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import depthwise, pointwise, product_weights
from .builder import Index, Kernel, Vector, View
from .expansion import Expansion, Fill, pointwise_of
from .microkernel import Accumulators
from .output import Output
from .prefetches import Ahead
from .shapes import ExpandDepthwise, Signature, round_up
from .tile import Segment, Tile, Tiling, segments, tile_of


def tiling(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover: each a part of a row."""
    vectors = round_up(spec.channels, arithmetic.lanes) // arithmetic.lanes
    return Tiling(spec.width, vectors, multiple=depthwise.width(spec.channels, arithmetic))


@dataclass(frozen=True)
class VectorExpansion(Expansion):
    """A row at a time. The ring holds [rows][groups][width][together * lanes]."""

    @cached_property
    def tile(self) -> Tile:
        return tile_of(self.spec, self.arithmetic, tiling(self.spec, self.arithmetic))

    @property
    def vectors(self) -> int:
        return self.tile.vectors

    @property
    def depth(self) -> int:
        """The reduction in whole groups of the arithmetic."""
        return round_up(self.spec.in_channels, self.arithmetic.group)

    def signature(self) -> Signature:
        return pointwise.signature(pointwise_of(self.spec), self.arithmetic)

    def pack(self, *weights: Any) -> list[np.ndarray]:
        return pointwise.pack(pointwise_of(self.spec), self.arithmetic, *weights, vectors=self.vectors)

    def describe(self) -> str:
        return f"expand, tile {self.tile.pixels} pixels x {self.tile.vectors} vectors of {self.arithmetic.lanes}"

    def line(self, y: Index, group: Index, cut: Segment) -> Index:
        together = self.together
        return ((y % self.rows) * (cut.size // together) + group) * (self.spec.width * together * self.arithmetic.lanes)

    @contextmanager
    def filling(self, kernel: Kernel, source: View, weights: list[View]) -> Iterator[Fill]:
        def fill(image: Index, y: Index, panel: Index, cut: Segment, ring: View) -> None:
            for columns in segments(self.spec.width, self.tile.pixels):
                with kernel.loop(columns.count) as i:
                    row = _Row(self, kernel, source.at(image), weights, panel, cut, ring)
                    row.compute(y, columns.start + i * columns.size, columns.size)

        yield fill


@dataclass(frozen=True)
class _Row:
    """The part of a row that one panel of channels has."""

    expansion: VectorExpansion
    kernel: Kernel
    source: View
    given: list[View]
    panel: Index
    cut: Segment
    ring: View

    def compute(self, y: Index, column: Index, pixels: int) -> None:
        """One register tile of row y."""
        e, cut = self.expansion, self.cut
        arithmetic, spec, lanes = e.arithmetic, e.spec, e.arithmetic.lanes
        pitch, channel = round_up(spec.in_channels, lanes), self.panel * (e.tile.vectors * lanes)
        tile = Accumulators(self.kernel, arithmetic, pixels, cut.size)
        weights, bias, *finishing = self.given
        tile.start(bias, channel)
        offsets = [(y * spec.width + column + i) * pitch for i in range(pixels)]
        here = channel * e.depth
        ahead = self.ahead(here, y * (spec.width // pixels) + column // pixels, pixels)
        tile.accumulate(self.source, offsets, weights, here, spec.in_channels, ahead)
        integers = product_weights.together(arithmetic, spec.expand)
        inner = Output(self.kernel, arithmetic, spec.expand, self.ring, None, *finishing, integers=integers)
        together = e.together

        def store(i: int, v: int, values: list[Vector]) -> None:
            place = e.line(y, v // together, cut) + (column + i) * (together * lanes)
            inner.write_together(place, values, [channel + (v + u) * lanes for u in range(together)])

        tile.finish_together(together, store)

    def ahead(self, here: Index, done: Index, pixels: int) -> Ahead | None:
        """What the whole tile number `done` prefetches of the next panel."""
        e = self.expansion
        if pixels != e.tile.pixels:
            return None
        next_panel = here + e.depth * self.cut.size * e.arithmetic.lanes
        tiles = e.spec.height * (e.spec.width // pixels)
        return Ahead.plan(e.arithmetic, next_panel, e.depth, self.cut.size, tiles, done)
