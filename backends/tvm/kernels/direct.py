"""Convolutions of any window: every tap of the window is a matrix product, summed in one register tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Sdot
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View
from .direct_plan import Plan, plan
from .microkernel import Accumulators
from .output import Output
from .prefetches import Ahead, Soon
from .shapes import DirectConv, Signature, round_up
from .tile import Tiling, Traffic, input_blocks, is_parallel, lies_in, segments
from .window import Columns, by_input, count_rows, cut_columns, input_column, input_row, rows_on_image


def tiling(spec: DirectConv, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return plan(spec, arithmetic).tiling


def signature(spec: DirectConv, arithmetic: Arithmetic) -> Signature:
    p, lanes = plan(spec, arithmetic), arithmetic.lanes
    if spec.image:
        source = (spec.batch, spec.in_channels, spec.height, spec.width)
    else:
        source = (spec.batch, spec.height, spec.width, round_up(spec.in_channels, lanes))
    output = (spec.batch, p.out_height, p.out_width, round_up(spec.out_channels, lanes))
    outputs = p.groups * p.vectors * lanes
    biases = outputs * len(p.borders.reached()) if p.borders else outputs
    packed = ((outputs * spec.window.taps * p.run,), arithmetic.weight), ((biases,), arithmetic.accumulator)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs)


def pack(
    spec: DirectConv,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """weight [out, in / groups, kh, kw] -> panels per group, bias, and for integers what their epilogue reads.

    The reduction runs over kh, kw, in; where an image is read over kh, in, kw.
    """
    p = plan(spec, arithmetic)
    own_in, own_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    joined = np.zeros((p.groups, p.group_out, p.run, *spec.window.kernel), arithmetic.weight)
    each = np.asarray(weight).reshape(p.groups, -1, own_out, own_in, *spec.window.kernel)
    for part in range(spec.groups // p.groups):  # the block diagonal
        outs, ins = slice(part * own_out, (part + 1) * own_out), slice(part * own_in, (part + 1) * own_in)
        joined[:, outs, ins] = each[:, part]
    order = (0, 1, 3, 2, 4) if spec.image else (0, 1, 3, 4, 2)
    matrices = joined.transpose(order).reshape(p.groups, p.group_out, -1)
    cut = [packing.panels(matrix, arithmetic, p.tile.vectors) for matrix in matrices]
    tap_sums = np.asarray(weight).sum(1, dtype=np.float64).reshape(spec.out_channels, -1)
    reached = p.borders.reached() if p.borders else [np.ones(spec.window.taps)]
    return [
        np.concatenate(cut),
        product_weights.biases(arithmetic, bias, tap_sums, zero_point, reached, spec.epilogue),
        *product_weights.finishing(spec.epilogue, arithmetic, spec.out_channels, multiplier, constants),
    ]


def describe(spec: DirectConv, arithmetic: Arithmetic) -> str:
    tile, kernel = plan(spec, arithmetic).tile, "x".join(map(str, spec.window.kernel))
    return f"direct {kernel}, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"


def prim_func(spec: DirectConv, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        source, (weights, bias) = given.sources[0], given.weights[:2]
        nest = Nest(kernel, arithmetic, spec, plan(spec, arithmetic), source, weights, bias, output)
        nest.emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class Place:
    """Which register tile: the indices of the loops around it."""

    image: Index
    row: Index
    column: Index
    columns: Columns
    group: Index
    panel: Index
    vectors: int


@dataclass(frozen=True)
class Nest:
    """The loops around the microkernel."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: DirectConv
    plan: Plan
    source: View
    weights: View
    bias: View
    output: Output

    def emit(self, images: Index) -> None:
        """Images, blocks of rows, groups, panels of weights; inside, the tiles of one block."""
        p, spec, size = self.plan, self.spec, self.plan.tile.vectors
        panels = list(segments(p.vectors, size))
        count = sum(panel.count for panel in panels)
        parts = input_blocks(self.arithmetic, self.traffic, p.out_height, p.groups * count)
        work = (spec.batch or 1) * p.out_height * p.out_width * self.depth * p.groups * p.group_out
        extents = (images, parts.count, p.groups, count)
        with self.kernel.grid(*extents, parallel=is_parallel(self.arithmetic, work)) as (image, part, group, panel):
            first, mine = parts[part]
            for cut in panels:
                with self.kernel.when(lies_in(panel, cut, size, count)), self.kernel.loop(mine, first) as row:
                    for columns in cut_columns(spec.window, spec.width, p.out_width, p.tile.pixels):
                        with self.kernel.loop(columns.count) as i:
                            column = columns.start + i * columns.size
                            self.tile(Place(image, row, column, columns, group, panel, cut.size))

    @property
    def traffic(self) -> Traffic:
        """That of one image."""
        p, spec = self.plan, self.spec
        outputs = p.groups * p.vectors * self.arithmetic.lanes
        return Traffic(
            read=self.source.itemsize * spec.height * spec.width * self.pitch_in,
            finished=self.output.bytes_of(p.out_height * p.out_width * outputs),
            weights=self.arithmetic.weight_bytes * outputs * self.depth,
        )

    @property
    def pitch_in(self) -> int:
        """Elements from one pixel of the packed input to the next."""
        return round_up(self.spec.in_channels, self.arithmetic.lanes)

    @property
    def depth(self) -> int:
        """Products per output."""
        return self.spec.window.taps * self.plan.run

    def tile(self, place: Place) -> None:
        """One register tile: neighbouring columns by the vectors of one panel."""
        p, lanes, window = self.plan, self.arithmetic.lanes, self.spec.window
        channel = self.vector(place) * lanes
        sums = Accumulators(self.kernel, self.arithmetic, place.columns.size, place.vectors)
        sums.start(self.bias, *self.starts(place, channel))
        ends = begin, _ = rows_on_image(window, self.spec.height, place.row)
        panel = channel * self.depth
        ahead = self.ahead(place, panel)
        with self.kernel.loop(count_rows(window, self.spec.height, p.out_height, ends), begin) as tap:
            if self.spec.image:
                self.feed_image(sums, place, tap, panel, tap - begin)
            else:
                passes = (tap - begin) * (window.kernel[1] * (p.run // self.arithmetic.unroll))
                self.feed(sums, place, tap, panel, ahead and ahead.after(passes))
        output = self.output.at(place.image)
        sums.finish_together(output.together, lambda i, v, values: self.store(output, place, i, v, values))

    def store(self, output: Output, place: Place, i: int, v: int, values: list[Vector]) -> None:
        """Write the vectors from v on of pixel i of a finished tile."""
        lanes, pitch = self.arithmetic.lanes, round_up(self.spec.out_channels, self.arithmetic.lanes)
        channels = [self.vector(place, v + u) * lanes for u in range(len(values))]
        pixel = place.row * self.plan.out_width + place.column + i
        output.write_together(pixel * pitch + channels[0], values, channels)

    def vector(self, place: Place, v: int = 0) -> Index:
        """The number of a tile's vector v among all vectors of outputs."""
        return place.group * self.plan.vectors + place.panel * self.plan.tile.vectors + v

    def starts(self, place: Place, channel: Index) -> list[Index]:
        """Where the bias of each pixel lies: one for all, or one for each class of borders."""
        p = self.plan
        if p.borders is None:
            return [channel]
        outputs, columns = p.groups * p.vectors * self.arithmetic.lanes, place.columns
        return [p.borders.index(place.row, columns, i) * outputs + channel for i in range(columns.size)]

    def feed(self, sums: Accumulators, place: Place, tap_row: Index, panel: Index, ahead: Ahead | None) -> None:
        """One row of the window over packed channels: the channels of each tap are one run.

        `panel`: offset of the panel of weights.
        """
        p, spec, window = self.plan, self.spec, self.spec.window
        source, line = self.source.at(place.image), input_row(window, place.row, tap_row) * spec.width
        for first, taps, taking_part in place.columns.taps():
            if self.shares_words(taps) and all(taking_part):
                start = (line + input_column(window, place.column, first)) * self.pitch_in
                weights = panel + (tap_row * window.kernel[1] + first) * p.run * (place.vectors * self.arithmetic.lanes)
                sums.accumulate_words(source, start, window.stride[1], self.weights, weights, taps)
                continue
            with self.kernel.loop(taps, first) as tap:
                start = (line + input_column(window, place.column, tap)) * self.pitch_in + place.group * p.group_in
                offsets = _offsets(start, window.stride[1] * self.pitch_in, taking_part)
                step = (tap_row * window.kernel[1] + tap) * p.run
                weights = panel + step * (place.vectors * self.arithmetic.lanes)
                here = ahead and ahead.after(ahead.passed + tap * (p.run // self.arithmetic.unroll))
                sums.accumulate(source, offsets, self.weights, weights, p.run, here)

    def shares_words(self, taps: int) -> bool:
        """Whether a row of `taps` taps is a run of words of four activations, most of which several pixels read."""
        window, alone = self.spec.window, self.plan.run == self.pitch_in == self.arithmetic.group
        dense = window.dilation[1] == 1 and window.stride[1] < taps
        return isinstance(self.arithmetic, Sdot) and alone and dense and taps >= 4

    def ahead(self, place: Place, panel: Index) -> Ahead | None:
        """What a whole tile prefetches of the next panel."""
        p, pixels = self.plan, self.plan.tile.pixels
        if self.spec.image or place.columns.size != pixels:
            return None
        per_row = p.out_width // pixels
        next_panel = panel + self.depth * place.vectors * self.arithmetic.lanes
        tiles, tile = p.out_height * per_row, place.row * per_row + place.column // pixels
        return Ahead.plan(self.arithmetic, next_panel, self.depth, place.vectors, tiles, tile)

    def soon(self, place: Place) -> Soon | None:
        """What a tile over an image prefetches of its results' lines."""
        p, pitch = self.plan, round_up(self.spec.out_channels, self.arithmetic.lanes)
        if not self.arithmetic.asks_for_maps:
            return None
        first = (place.row * p.out_width + place.column) * pitch + self.vector(place) * self.arithmetic.lanes
        output, elements = self.output.at(place.image), p.out_height * p.out_width * pitch
        return Soon.plan(self.arithmetic, output, first, pitch, place.columns.size, elements)

    def feed_image(self, sums: Accumulators, place: Place, tap_row: Index, panel: Index, done: Index) -> None:
        """One row of the window over the planes of a plain image; `done` rows went before.

        Taps that read the same pixel stand side by side: LLVM loads it once, and need not keep it.
        """
        p, spec, window = self.plan, self.spec, self.spec.window
        source, line = self.source.at(place.image), input_row(window, place.row, tap_row)
        soon, passes = self.soon(place), window.kernel[0] * p.group_in
        with self.kernel.loop(p.group_in) as channel:
            sums.fetch(soon, done * p.group_in + channel, passes)
            start = ((place.group * p.group_in + channel) * spec.height + line) * spec.width
            for i, tap in by_input(window, place.columns):
                offsets: list[Index | None] = [None] * place.columns.size
                offsets[i] = start + input_column(window, place.column + i, tap)
                step = (tap_row * p.group_in + channel) * window.kernel[1] + tap
                weights = panel + step * (place.vectors * self.arithmetic.lanes)
                sums.accumulate(source, offsets, self.weights, weights, 1)


def _offsets(start: Index, pitch: int, taking_part: tuple[bool, ...]) -> list[Index | None]:
    return [start + i * pitch if takes_part else None for i, takes_part in enumerate(taking_part)]
