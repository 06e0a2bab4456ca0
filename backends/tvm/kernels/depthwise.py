"""Depthwise convolutions: a few vectors of channels at a time, a row of output columns in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from . import packing, product_weights, woven_rows, zipped_rows
from .builder import Index, Kernel, Register, Vector, View
from .microkernel import halved
from .output import Output
from .shapes import Depthwise, Signature, Window, round_up
from .tile import is_parallel
from .window import Borders, Columns, by_input, cut_columns, input_column, input_row, rows_on_image

MOST_COLUMNS = 14  # per tile: enough accumulators to hide every latency, and the code stays short


def width(channels: int, arithmetic: Arithmetic) -> int:
    """Vectors of channels that are taken at a time."""
    whole = round_up(channels, arithmetic.lanes) % (arithmetic.lane_vectors * arithmetic.lanes) == 0
    return arithmetic.lane_vectors if whole else 1


def several_rows(window: Window, arithmetic: Arithmetic, vectors: int) -> Any:
    """The module that takes several rows of a window at a time; None where they are taken one by one."""
    if woven_rows.takes(window, arithmetic):
        return woven_rows
    return zipped_rows if zipped_rows.takes(window, arithmetic, vectors) else None


def tile_columns(window: Window, out_width: int, arithmetic: Arithmetic, vectors: int = 1) -> int:
    """Output columns per register tile: equal parts of a row; a row of weights and some inputs fit beside them."""
    rows = several_rows(window, arithmetic, vectors)
    most = rows.MOST_COLUMNS if rows else MOST_COLUMNS
    most = max(1, min(most, (arithmetic.registers - window.kernel[1] - 2 * vectors) // vectors))
    return -(-out_width // -(-out_width // most))


def signature(spec: Depthwise, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    output = (spec.batch, *spec.window.output(spec.height, spec.width), channels)
    source = (spec.batch, spec.height, spec.width, channels)
    biases = channels * len(_reached(spec))
    rows = several_rows(spec.window, arithmetic, width(spec.channels, arithmetic))
    each = rows.weights_per_channel(spec.window, arithmetic) if rows else spec.window.taps
    packed = ((channels * each,), arithmetic.lane_weight), ((biases,), arithmetic.accumulator)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, channels)


def pack(
    spec: Depthwise,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """weight [channels, 1, kh, kw] -> [vectors][kh][kw][lanes], bias, and for integers what their epilogue reads.

    Where several rows are taken at a time, weights are as `woven_rows.pack` or `zipped_rows.pack` says.
    """
    matrix = np.asarray(weight).reshape(spec.channels, -1)
    vectors = width(spec.channels, arithmetic)
    lanes, rows = arithmetic.lanes * vectors, several_rows(spec.window, arithmetic, vectors)
    if rows:
        weights = rows.pack(matrix, spec.window, arithmetic, lanes)
    else:
        weights = packing.vectors(matrix, lanes, arithmetic.lane_weight)
    return [
        weights,
        product_weights.biases(arithmetic, bias, matrix, zero_point, _reached(spec), spec.epilogue),
        *product_weights.finishing(spec.epilogue, arithmetic, spec.channels, multiplier, constants),
    ]


def _reached(spec: Depthwise) -> list[np.ndarray]:
    """For every class of outputs with a bias of its own, the taps that fall on the image."""
    if not spec.bordered:
        return [np.ones(spec.window.taps)]
    return Borders.of(spec.window, spec.height, spec.width).reached()


def describe(spec: Depthwise, arithmetic: Arithmetic) -> str:
    vectors = width(spec.channels, arithmetic)
    columns = tile_columns(spec.window, spec.window.output(spec.height, spec.width)[1], arithmetic, vectors)
    kernel, number = "x".join(map(str, spec.window.kernel)), "1 vector" if vectors == 1 else f"{vectors} vectors"
    return f"depthwise {kernel}, tile {columns} pixels x {number} of {arithmetic.lanes}"


@dataclass(frozen=True)
class Taps:
    """The register tile of a depthwise convolution; `pitch` is the step from one input column to the next.

    `channels`: lanes of outputs; `borders`: where biases differ; `vectors`: of channels, taken at a time; `has_slack`:
    `lane_taps` - 1 pixels more than there are may be read.
    """

    kernel: Kernel
    arithmetic: Arithmetic
    window: Window
    height: int
    pitch: int
    channels: int
    borders: Borders | None
    weights: View
    bias: View
    vectors: int
    has_slack: bool = False

    def tile(
        self,
        source: View,
        line: Callable[[Index], Index],
        row: Index,
        columns: Columns,
        column: Index,
        group: Index,
        store: Callable[[list[int], list[Vector]], None],
    ) -> None:
        """Neighbouring output columns of one group of `vectors` vectors of channels.

        line(y) is the offset in `source` of that group in input row y; store(columns, values) takes the results of some
        columns, those of a column side by side.
        """
        lanes, together = self.arithmetic.lanes, self.arithmetic.lanes * self.vectors
        sums = [self.kernel.registers(self.vectors, lanes, self.arithmetic.accumulator) for _ in range(columns.size)]
        for i, totals in enumerate(sums):
            for v, total in enumerate(totals):
                total.value = self.bias.vector(self.start(row, columns, i) + group * together + v * lanes, lanes)
        self.accumulate(sums, source, line, row, columns, column, group)
        for first, count in halved(columns.size, self.joined):
            some = range(first, first + count)
            store(list(some), [total.value for i in some for total in sums[i]])

    def accumulate(
        self,
        sums: list[list[Register]],
        source: View,
        line: Callable[[Index], Index],
        row: Index,
        columns: Columns,
        column: Index,
        group: Index,
    ) -> None:
        """Add the window's products to the registers of each column."""
        (tall, wide), together = self.window.kernel, self.arithmetic.lanes * self.vectors
        rows = several_rows(self.window, self.arithmetic, self.vectors)
        if rows:
            several = rows.Rows(
                self.kernel, self.arithmetic, self.window, self.height, self.pitch, together, self.weights
            )
            several.accumulate(sums, source, line, row, columns, column, group)
            return
        begin, end = rows_on_image(self.window, self.height, row)
        with self.kernel.loop(end - begin, begin) as tap:
            start = line(input_row(self.window, row, tap))
            weights = (group * (tall * wide) + tap * wide) * together
            for i, taps in self.order(columns):
                places = [start + input_column(self.window, column + i, across) * self.pitch for across in taps]
                read = [self.weights.vector(weights + across * together, together) for across in taps]
                if self.reads_spans and places:
                    spans = places[:: self.arithmetic.lane_taps]
                    wide = [source.vector(place, together * self.arithmetic.lane_taps) for place in spans]
                    self.arithmetic.multiply_neighbours(sums[i], wide, read)
                else:
                    values = [source.vector(place, together) for place in places]
                    self.arithmetic.multiply_taps(sums[i], values, read)

    @property
    def joined(self) -> int:
        """Columns that are finished at a time."""
        how = self.arithmetic
        return how.together // self.vectors if isinstance(how, Integers) and how.joins_pixels else 1

    @property
    def reads_spans(self) -> bool:
        """Whether the inputs of neighbouring taps lie side by side, and are read as one."""
        beside = self.pitch == self.arithmetic.lanes * self.vectors and self.window.dilation[1] == 1
        return self.has_slack and beside and self.arithmetic.lane_taps > 1

    def order(self, columns: Columns) -> list[tuple[int, list[int]]]:
        """(output column, taps that are added to it at a time): by input, or all of a column where that is cheaper."""
        pairs = by_input(self.window, columns)
        if self.vectors == self.arithmetic.lane_taps == 1:
            return [(i, [across]) for i, across in pairs]
        return [(i, [across for column, across in pairs if column == i]) for i in range(columns.size)]

    def start(self, row: Index, columns: Columns, i: int) -> Index:
        """Where the biases of the class lie that column i of a tile belongs to."""
        return 0 if self.borders is None else self.borders.index(row, columns, i) * self.channels


def prim_func(spec: Depthwise, arithmetic: Arithmetic) -> Any:
    window, lanes, pitch = spec.window, arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    out_height, out_width = window.output(spec.height, spec.width)
    vectors = width(spec.channels, arithmetic)
    together = vectors * lanes
    cut = cut_columns(window, spec.width, out_width, tile_columns(window, out_width, arithmetic, vectors))
    parallel = is_parallel(
        arithmetic, (spec.batch or 1) * out_height * out_width * pitch * window.kernel[0] * window.kernel[1]
    )
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        borders = Borders.of(window, spec.height, spec.width) if spec.bordered else None
        taps = Taps(kernel, arithmetic, window, spec.height, pitch, pitch, borders, *given.weights[:2], vectors=vectors)
        outputs = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        with kernel.grid(spec.batch or given.batch, out_height, parallel=parallel) as (image, row):
            source, output = given.sources[0].at(image), outputs.at(image)
            for columns in cut:
                with kernel.grid(columns.count, pitch // together) as (i, group):
                    column, channel = columns.start + i * columns.size, group * together
                    place = (row * out_width + column) * pitch + channel
                    channels = [channel + v * lanes for v in range(vectors)]

                    def line(y: Index, channel: Index = channel) -> Index:
                        return y * (spec.width * pitch) + channel

                    def store(
                        some: list[int],
                        values: list[Vector],
                        output: Output = output,
                        place: Index = place,
                        channels: list[Index] = channels,
                    ) -> None:
                        output.write_runs([place + c * pitch for c in some], values, channels * len(some))

                    taps.tile(source, line, row, columns, column, group, store)
    return kernel.prim_func
