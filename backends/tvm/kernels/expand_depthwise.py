"""A 1x1 convolution and the depthwise convolution behind it, one panel of channels at a time.

The wide tensor between them exists only as a ring of the few rows that the depthwise window spans, so it never leaves
the cache: before each row of output, the rows of the expansion that it needs and that are not there yet are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arithmetic import Amx, Arithmetic
from . import depthwise, matrix_plan, product_weights, vector_expansion
from .builder import Index, Kernel, Vector, View, largest, smallest
from .depthwise import Taps, tile_columns
from .expansion import Expansion, pointwise_of
from .matrix_expansion import MatrixExpansion
from .output import Output
from .shapes import Depthwise, ExpandDepthwise, Signature, round_up
from .tile import Segment, Tiling, cut_blocks, is_parallel, lies_in, segments
from .vector_expansion import VectorExpansion
from .window import Borders, cut_columns

FEWEST_ROWS = 8  # of output in a band: its first rows are computed twice


def _depthwise(spec: ExpandDepthwise) -> Depthwise:
    return Depthwise(spec.batch, spec.height, spec.width, spec.channels, spec.window, spec.epilogue, spec.bordered)


def expansion(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Expansion:
    """How the 1x1 convolution is computed."""
    if isinstance(arithmetic, Amx) and matrix_plan.takes(pointwise_of(spec), arithmetic):
        return MatrixExpansion(arithmetic, spec)
    return VectorExpansion(arithmetic, spec)


def tiling(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Tiling | None:
    """What the register tiles of the 1x1 cover; None where it has none."""
    found = expansion(spec, arithmetic)
    return vector_expansion.tiling(spec, arithmetic) if isinstance(found, VectorExpansion) else None


def signature(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Signature:
    """The weights of the 1x1, then those of the depthwise convolution."""
    first = expansion(spec, arithmetic).signature()
    second = depthwise.signature(_depthwise(spec), arithmetic)
    weights, dtypes = first.weights + second.weights, first.weight_dtypes + second.weight_dtypes
    return replace(second, inputs=first.inputs, weights=weights, weight_dtypes=dtypes)


def pack(spec: ExpandDepthwise, arithmetic: Arithmetic, *weights: Any) -> list[np.ndarray]:
    """What `pointwise.pack` takes for the 1x1, then as much for the depthwise convolution."""
    half = len(weights) // 2
    first = expansion(spec, arithmetic).pack(*weights[:half])
    return [*first, *depthwise.pack(_depthwise(spec), arithmetic, *weights[half:])]


def describe(spec: ExpandDepthwise, arithmetic: Arithmetic) -> str:
    first = expansion(spec, arithmetic).describe()
    return f"{first}, fused with {depthwise.describe(_depthwise(spec), arithmetic)}"


def prim_func(spec: ExpandDepthwise, arithmetic: Arithmetic) -> Any:
    how = expansion(spec, arithmetic)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        count = len(how.signature().weights)
        first, second = given.weights[:count], given.weights[count:]
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, replace(given, weights=second), taken=2)
        borders = Borders.of(spec.window, spec.height, spec.width) if spec.bordered else None
        taps = Taps(
            kernel, arithmetic, spec.window, spec.height, how.together * arithmetic.lanes,
            round_up(spec.channels, arithmetic.lanes), borders, second[0], second[1], how.together, has_slack=True,
        )  # fmt: skip
        nest = _Nest(kernel, arithmetic, spec, how, given.sources[0], first, taps, output)
        nest.emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class _Nest:
    """The loops around the two microkernels."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: ExpandDepthwise
    expansion: Expansion
    source: View
    expand: list[View]
    taps: Taps
    output: Output

    def emit(self, images: Index) -> None:
        """Images, bands of rows, panels of channels; inside, the rows of output of one band."""
        spec, lanes, size = self.spec, self.arithmetic.lanes, self.expansion.vectors
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
                with (
                    self.kernel.when(lies_in(panel, cut, size, count)),
                    self.expansion.filling(self.kernel, self.source, self.expand) as fill,
                ):
                    beyond = (self.arithmetic.lane_taps - 1) * lanes * self.taps.vectors  # what its last span reads
                    size_of_ring = self.expansion.rows * cut.size * spec.width * lanes + beyond
                    ring = self.kernel.workspace(size_of_ring, self.arithmetic.activation)
                    with self.kernel.loop(mine, first) as row:
                        for y in self.missing(first, row):
                            fill(image, y, panel, cut, ring)
                        self.depthwise_row(image, row, panel, cut, ring)

    def missing(self, first: Index, row: Index) -> Iterator[Index]:
        """The first rows of chunks of the expansion that output row `row` needs, and row - 1 has not left there."""
        spec, step, top = self.spec, self.spec.window.stride[0], self.spec.window.padding[0]
        chunk, reach = self.expansion.chunk, self.expansion.reach
        begin, end = largest(0, row * step - top), smallest(spec.height, row * step - top + reach)
        begin, end = _down(begin, chunk), _up(end, chunk)
        if row is not first:  # a band of one row starts and ends with it
            there = _up(smallest(spec.height, (row - 1) * step - top + reach), chunk)
            begin = self.kernel.select(row == first, begin, largest(begin, there))
        with self.kernel.loop(end - begin, begin) as number:
            yield number * chunk

    def depthwise_row(self, image: Index, row: Index, panel: Index, cut: Segment, ring: View) -> None:
        """One row of output for one panel, out of the ring."""
        spec, window, lanes = self.spec, self.spec.window, self.arithmetic.lanes
        out_width = window.output(spec.height, spec.width)[1]
        pitch, output, vectors = round_up(spec.channels, lanes), self.output.at(image), self.taps.vectors
        size = tile_columns(window, out_width, self.arithmetic, vectors)
        for columns in cut_columns(window, spec.width, out_width, size):
            with self.kernel.grid(cut.size // vectors, columns.count) as (g, i):
                column, group = columns.start + i * columns.size, panel * (self.expansion.vectors // vectors) + g
                channels = [(group * vectors + v) * lanes for v in range(vectors)]
                place = (row * out_width + column) * pitch + channels[0]

                def line(y: Index, g: Index = g) -> Index:
                    return self.expansion.line(y, g, cut)

                def store(
                    some: list[int], values: list[Vector], place: Index = place, channels: list[Index] = channels
                ) -> None:
                    output.write_runs([place + c * pitch for c in some], values, channels * len(some))

                self.taps.tile(ring, line, row, columns, column, group, store)


def _down(rows: Index, chunk: int) -> Index:
    """Chunks that lie whole in some rows."""
    return rows if chunk == 1 else rows // chunk


def _up(rows: Index, chunk: int) -> Index:
    """Chunks that hold some rows."""
    return rows if chunk == 1 else (rows + chunk - 1) // chunk
