"""Depthwise convolutions: one vector of channels at a time, a row of output columns in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View
from .output import Output
from .shapes import Depthwise, Signature, Window, round_up
from .tile import is_parallel
from .window import Borders, Columns, by_input, cut_columns, input_column, input_row, rows_on_image

MOST_COLUMNS = 14  # per tile: enough accumulators to hide every latency, and the code stays short


def tile_columns(window: Window, out_width: int, arithmetic: Arithmetic) -> int:
    """Output columns per register tile: equal parts of a row; a row of weights and one input fit beside them."""
    most = max(1, min(MOST_COLUMNS, arithmetic.registers - window.kernel[1] - 2))
    return -(-out_width // -(-out_width // most))


def signature(spec: Depthwise, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    output = (spec.batch, *spec.window.output(spec.height, spec.width), channels)
    source = (spec.batch, spec.height, spec.width, channels)
    biases = channels * len(_reached(spec))
    packed = ((channels * spec.window.taps,), arithmetic.lane_weight), ((biases,), arithmetic.accumulator)
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
    """weight [channels, 1, kh, kw] -> [vector][kh][kw][lanes], bias, and for integers what their epilogue reads."""
    matrix = np.asarray(weight).reshape(spec.channels, -1)
    return [
        packing.vectors(matrix, arithmetic.lanes, arithmetic.lane_weight),
        product_weights.biases(arithmetic, bias, matrix, zero_point, _reached(spec)),
        *product_weights.finishing(spec.epilogue, arithmetic, spec.channels, multiplier, constants),
    ]


def _reached(spec: Depthwise) -> list[np.ndarray]:
    """For every class of outputs with a bias of its own, the taps that fall on the image."""
    if not spec.bordered:
        return [np.ones(spec.window.taps)]
    return Borders.of(spec.window, spec.height, spec.width).reached()


def describe(spec: Depthwise, arithmetic: Arithmetic) -> str:
    columns = tile_columns(spec.window, spec.window.output(spec.height, spec.width)[1], arithmetic)
    kernel = "x".join(map(str, spec.window.kernel))
    return f"depthwise {kernel}, tile {columns} pixels x 1 vector of {arithmetic.lanes}"


@dataclass(frozen=True)
class Taps:
    """The register tile of a depthwise convolution; `pitch` is the step from one input column to the next.

    `channels`: lanes of outputs; `borders`: where biases differ.
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

    def tile(
        self,
        source: View,
        line: Callable[[Index], Index],
        row: Index,
        columns: Columns,
        column: Index,
        vector: Index,
        store: Callable[[int, Vector], None],
    ) -> None:
        """Neighbouring output columns of one vector of channels.

        line(y) is the offset in `source` of that vector in input row y; store(i, value) takes the result of column i.
        """
        lanes, (tall, wide) = self.arithmetic.lanes, self.window.kernel
        sums = self.kernel.registers(columns.size, lanes, self.arithmetic.accumulator)
        for i, total in enumerate(sums):
            total.value = self.bias.vector(self.start(row, columns, i) + vector * lanes, lanes)
        begin, end = rows_on_image(self.window, self.height, row)
        with self.kernel.loop(end - begin, begin) as tap:
            start = line(input_row(self.window, row, tap))
            weights = (vector * (tall * wide) + tap * wide) * lanes
            for i, across in by_input(self.window, columns):
                value = source.vector(start + input_column(self.window, column + i, across) * self.pitch, lanes)
                weight = self.weights.vector(weights + across * lanes, lanes)
                sums[i].value = self.arithmetic.multiply_lanes(sums[i].value, value, weight)
        for i, total in enumerate(sums):
            store(i, total.value)

    def start(self, row: Index, columns: Columns, i: int) -> Index:
        """Where the biases of the class lie that column i of a tile belongs to."""
        return 0 if self.borders is None else self.borders.index(row, columns, i) * self.channels


def prim_func(spec: Depthwise, arithmetic: Arithmetic) -> Any:
    window, lanes, pitch = spec.window, arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    out_height, out_width = window.output(spec.height, spec.width)
    cut = cut_columns(window, spec.width, out_width, tile_columns(window, out_width, arithmetic))
    parallel = is_parallel(
        arithmetic, (spec.batch or 1) * out_height * out_width * pitch * window.kernel[0] * window.kernel[1]
    )
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        borders = Borders.of(window, spec.height, spec.width) if spec.bordered else None
        taps = Taps(kernel, arithmetic, window, spec.height, pitch, pitch, borders, *given.weights[:2])
        outputs = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        with kernel.grid(spec.batch or given.batch, out_height, parallel=parallel) as (image, row):
            source, output = given.sources[0].at(image), outputs.at(image)
            for columns in cut:
                with kernel.grid(columns.count, pitch // lanes) as (i, vector):
                    column = columns.start + i * columns.size
                    channel, place = vector * lanes, (row * out_width + column) * pitch + vector * lanes

                    def line(y: Index, channel: Index = channel) -> Index:
                        return y * (spec.width * pitch) + channel

                    def store(
                        c: int, value: Vector, output: Output = output, place: Index = place, channel: Index = channel
                    ) -> None:
                        output.write(place + c * pitch, value, channel)

                    taps.tile(source, line, row, columns, column, vector, store)
    return kernel.prim_func
