"""A 1x1 convolution and the depthwise convolution behind it, one panel of channels at a time.

The wide tensor between them exists only as a ring of the few rows that the depthwise window spans, so it never leaves
the cache: before each row of output, the rows of the expansion that it needs and that are not there yet are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import depthwise, pointwise, product_weights
from .builder import Index, Kernel, Vector, View, largest, smallest
from .depthwise import Taps, tile_columns
from .microkernel import Accumulators, Ahead
from .output import Output
from .shapes import Depthwise, ExpandDepthwise, Pointwise, Signature, round_up
from .tile import Segment, Tile, Tiling, cut_blocks, is_parallel, lies_in, segments, tile_of
from .window import Borders, cut_columns

FEWEST_ROWS = 8  # of output in a band: its first rows are computed twice


def _depthwise(spec: ExpandDepthwise) -> Depthwise:
    return Depthwise(spec.batch, spec.height, spec.width, spec.channels, spec.window, spec.epilogue, spec.bordered)


def _expand(spec: ExpandDepthwise) -> Pointwise:
    return Pointwise(spec.batch, spec.height, spec.width, spec.in_channels, spec.channels, spec.expand)


def tiling(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Tiling:
    """What the 1x1's tiles cover: each a part of a row."""
    vectors = round_up(spec.channels, arithmetic.lanes) // arithmetic.lanes
    return Tiling(spec.width, vectors, multiple=depthwise.width(spec.channels, arithmetic))


def _tile(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Tile:
    return tile_of(spec, arithmetic, tiling(spec, arithmetic))


def signature(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Signature:
    """The weights of the 1x1, then those of the depthwise convolution."""
    first = pointwise.signature(_expand(spec), arithmetic)
    second = depthwise.signature(_depthwise(spec), arithmetic)
    weights, dtypes = first.weights + second.weights, first.weight_dtypes + second.weight_dtypes
    return replace(second, inputs=first.inputs, weights=weights, weight_dtypes=dtypes)


def pack(spec: ExpandDepthwise, arithmetic: Arithmetic, *weights: Any) -> list[np.ndarray]:
    """What `pointwise.pack` takes for the 1x1, then as much for the depthwise convolution."""
    half = len(weights) // 2
    panels, *rest = pointwise.pack(_expand(spec), arithmetic, *weights[:half], vectors=_tile(spec, arithmetic).vectors)
    return [panels, *rest, *depthwise.pack(_depthwise(spec), arithmetic, *weights[half:])]


def describe(spec: ExpandDepthwise, arithmetic: Arithmetic) -> str:
    tile = _tile(spec, arithmetic)
    first = f"expand, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"
    return f"{first}, fused with {depthwise.describe(_depthwise(spec), arithmetic)}"


def prim_func(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        count = len(pointwise.signature(_expand(spec), arithmetic).weights)
        first, second = given.weights[:count], given.weights[count:]
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, replace(given, weights=second), taken=2)
        channels = round_up(spec.channels, arithmetic.lanes)
        borders = Borders.of(spec.window, spec.height, spec.width) if spec.bordered else None
        lanes = arithmetic.lanes
        together = depthwise.width(spec.channels, arithmetic)
        pitch = together * lanes
        weights, bias = second[:2]
        taps = Taps(
            kernel,
            arithmetic,
            spec.window,
            spec.height,
            pitch,
            channels,
            borders,
            weights,
            bias,
            together,
            has_slack=True,
        )
        nest = _Nest(kernel, arithmetic, spec, _tile(spec, arithmetic), given.sources[0], first, taps, output)
        nest.emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class _Nest:
    """The loops around the two microkernels."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: ExpandDepthwise
    tile: Tile
    source: View
    expand: list[View]
    taps: Taps
    output: Output

    @property
    def rows(self) -> int:
        """Rows of the ring: what the window spans."""
        return (self.spec.window.kernel[0] - 1) * self.spec.window.dilation[0] + 1

    @property
    def depth(self) -> int:
        """The 1x1's reduction in whole groups of the arithmetic."""
        return round_up(self.spec.in_channels, self.arithmetic.group)

    def emit(self, images: Index) -> None:
        """Images, bands of rows, panels of channels; inside, the rows of output of one band."""
        spec, lanes, size = self.spec, self.arithmetic.lanes, self.tile.vectors
        out_height = spec.window.output(spec.height, spec.width)[0]
        channels = round_up(spec.channels, lanes)
        panels = list(segments(channels // lanes, size))
        count = sum(panel.count for panel in panels)
        work = (spec.batch or 1) * spec.height * spec.width * channels * spec.in_channels
        parallel = is_parallel(self.arithmetic, work)
        # Every band computes the rows that it shares with the band above again: cut only to keep the cores busy.
        wanted = -(-4 * self.arithmetic.cores // count) if parallel else 1
        bands = cut_blocks(out_height, min(wanted, max(1, out_height // FEWEST_ROWS)))
        with self.kernel.grid(images, bands.count, count, parallel=parallel) as (image, band, panel):
            first, mine = bands[band]
            for cut in panels:
                with self.kernel.when(lies_in(panel, cut, size, count)):
                    beyond = (self.arithmetic.lane_taps - 1) * lanes * self.taps.vectors  # what its last span reads
                    size_of_ring = self.rows * cut.size * spec.width * lanes + beyond
                    ring = self.kernel.workspace(size_of_ring, self.arithmetic.activation)
                    with self.kernel.loop(mine, first) as row:
                        self.expand_rows(image, first, row, panel, cut, ring)
                        self.depthwise_row(image, row, panel, cut, ring)

    def expand_rows(self, image: Index, first: Index, row: Index, panel: Index, cut: Segment, ring: View) -> None:
        """The rows of the expansion that output row `row` needs, without those that row - 1 has left in the ring."""
        spec, step, top = self.spec, self.spec.window.stride[0], self.spec.window.padding[0]
        begin, end = largest(0, row * step - top), smallest(spec.height, row * step - top + self.rows)
        if row is not first:  # a band of one row starts and ends with it
            there = smallest(spec.height, (row - 1) * step - top + self.rows)
            begin = self.kernel.select(row == first, begin, largest(begin, there))
        with self.kernel.loop(end - begin, begin) as y:
            for columns in segments(spec.width, self.tile.pixels):
                with self.kernel.loop(columns.count) as i:
                    self.expand_tile(image, y, columns.start + i * columns.size, columns.size, panel, cut, ring)

    def expand_tile(
        self, image: Index, y: Index, column: Index, pixels: int, panel: Index, cut: Segment, ring: View
    ) -> None:
        """One register tile of the 1x1 convolution, into the ring."""
        spec, lanes = self.spec, self.arithmetic.lanes
        pitch, channel = round_up(spec.in_channels, lanes), panel * (self.tile.vectors * lanes)
        tile = Accumulators(self.kernel, self.arithmetic, pixels, cut.size)
        weights, bias, *finishing = self.expand
        tile.start(bias, channel)
        offsets = [(y * spec.width + column + i) * pitch for i in range(pixels)]
        here = channel * self.depth
        ahead = self.ahead(here, y * (spec.width // pixels) + column // pixels, pixels, cut)
        tile.accumulate(self.source.at(image), offsets, weights, here, spec.in_channels, ahead)
        integers = product_weights.together(self.arithmetic, spec.expand)
        inner = Output(self.kernel, lanes, spec.expand, ring, None, *finishing, integers=integers)

        together = self.taps.vectors

        def store(i: int, v: int, values: list[Vector]) -> None:
            place = self.line(y, v // together, cut) + (column + i) * (together * lanes)
            inner.write_together(place, values, [channel + (v + u) * lanes for u in range(together)])

        tile.finish_together(together, store)

    def ahead(self, here: Index, done: Index, pixels: int, cut: Segment) -> Ahead | None:
        """What the whole tile number `done` prefetches of the next panel."""
        spec = self.spec
        if pixels != self.tile.pixels:
            return None
        next_panel = here + self.depth * cut.size * self.arithmetic.lanes
        tiles = spec.height * (spec.width // pixels)
        return Ahead.plan(self.arithmetic, next_panel, self.depth, cut.size, tiles, done)

    def line(self, y: Index, group: Index, cut: Segment) -> Index:
        """Where the ring holds a group of vectors, as the depthwise convolution takes them, of input row y."""
        together = self.taps.vectors
        return ((y % self.rows) * (cut.size // together) + group) * (self.spec.width * together * self.arithmetic.lanes)

    def depthwise_row(self, image: Index, row: Index, panel: Index, cut: Segment, ring: View) -> None:
        """One row of output for one panel, out of the ring."""
        spec, window, lanes = self.spec, self.spec.window, self.arithmetic.lanes
        out_width = window.output(spec.height, spec.width)[1]
        pitch, output, vectors = round_up(spec.channels, lanes), self.output.at(image), self.taps.vectors
        size = tile_columns(window, out_width, self.arithmetic, vectors)
        for columns in cut_columns(window, spec.width, out_width, size):
            with self.kernel.grid(cut.size // vectors, columns.count) as (g, i):
                column, group = columns.start + i * columns.size, panel * (self.tile.vectors // vectors) + g
                channels = [(group * vectors + v) * lanes for v in range(vectors)]
                place = (row * out_width + column) * pitch + channels[0]

                def line(y: Index, g: Index = g) -> Index:
                    return self.line(y, g, cut)

                def store(c: int, values: list[Vector], place: Index = place, channels: list[Index] = channels) -> None:
                    output.write_together(place + c * pitch, values, channels)

                self.taps.tile(ring, line, row, columns, column, group, store)
