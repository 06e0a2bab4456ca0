"""Depthwise convolutions: one vector of channels at a time, a row of output columns in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import packing
from .builder import Index, Kernel, Vector, View
from .output import Output
from .shapes import Depthwise, Signature, Window, round_up
from .tile import is_parallel
from .window import Columns, by_input, cut_columns, input_column, input_row, rows_on_image

MOST_COLUMNS = 14  # per tile: enough accumulators to hide every latency, and the code stays short


def tile_columns(window: Window, out_width: int, arithmetic: Arithmetic) -> int:
    """Output columns per register tile: equal parts of a row; a row of weights and one input fit beside them."""
    most = max(1, min(MOST_COLUMNS, arithmetic.registers - window.kernel[1] - 2))
    return -(-out_width // -(-out_width // most))


def signature(spec: Depthwise, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    output = (spec.batch, *spec.window.output(spec.height, spec.width), channels)
    residual = output if spec.epilogue.residual else None
    source = (spec.batch, spec.height, spec.width, channels)
    return Signature((source,), ((channels * spec.window.taps,), (channels,)), residual, output)


def pack(spec: Depthwise, arithmetic: Arithmetic, weight: np.ndarray, bias: np.ndarray | None) -> list[np.ndarray]:
    """weight [channels, 1, kh, kw] -> [vector][kh][kw][lanes], bias."""
    matrix = np.asarray(weight).reshape(spec.channels, -1)
    return [packing.panels(matrix, arithmetic.lanes, 1), packing.lanes_of(bias, spec.channels, arithmetic.lanes)]


def describe(spec: Depthwise, arithmetic: Arithmetic) -> str:
    columns = tile_columns(spec.window, spec.window.output(spec.height, spec.width)[1], arithmetic)
    kernel = "x".join(map(str, spec.window.kernel))
    return f"depthwise {kernel}, tile {columns} pixels x 1 vector of {arithmetic.lanes}"


@dataclass(frozen=True)
class Taps:
    """The register tile of a depthwise convolution; `pitch` is the step from one input column to the next."""

    kernel: Kernel
    arithmetic: Arithmetic
    window: Window
    height: int
    pitch: int
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
        for total in sums:
            total.value = self.bias.vector(vector * lanes, lanes)
        begin, end = rows_on_image(self.window, self.height, row)
        with self.kernel.loop(end - begin, begin) as tap:
            start = line(input_row(self.window, row, tap))
            weights = (vector * (tall * wide) + tap * wide) * lanes
            for i, across in by_input(self.window, columns):
                value = source.vector(start + input_column(self.window, column + i, across) * self.pitch, lanes)
                weight = self.weights.vector(weights + across * lanes, lanes)
                sums[i].value = sums[i].value + value * weight
        for i, total in enumerate(sums):
            store(i, total.value)


def prim_func(spec: Depthwise, arithmetic: Arithmetic) -> Any:
    window, lanes, pitch = spec.window, arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    out_height, out_width = window.output(spec.height, spec.width)
    cut = cut_columns(window, spec.width, out_width, tile_columns(window, out_width, arithmetic))
    parallel = is_parallel(
        arithmetic, (spec.batch or 1) * out_height * out_width * pitch * window.kernel[0] * window.kernel[1]
    )
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        taps = Taps(kernel, arithmetic, window, spec.height, pitch, *given.weights)
        outputs = Output(kernel, lanes, spec.epilogue, given.target, given.residual)
        with kernel.grid(spec.batch or given.batch, out_height, parallel=parallel) as (image, row):
            source, output = given.sources[0].at(image), outputs.at(image)
            for columns in cut:
                with kernel.grid(columns.count, pitch // lanes) as (i, vector):
                    column = columns.start + i * columns.size
                    channel, place = vector * lanes, (row * out_width + column) * pitch + vector * lanes

                    def line(y: Index, channel: Index = channel) -> Index:
                        return y * (spec.width * pitch) + channel

                    def store(c: int, value: Vector, output: Output = output, place: Index = place) -> None:
                        output.write(place + c * pitch, value)

                    taps.tile(source, line, row, columns, column, vector, store)
    return kernel.prim_func
