"""Pooling: max and mean over a sliding window, mean over the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from . import product_weights
from .builder import Index, Kernel, Register, Vector, View, broadcast
from .depthwise import tile_columns
from .epilogues import Epilogue
from .output import Output
from .shapes import GlobalMean, Pool, Signature, round_up
from .tile import is_parallel, segments
from .window import Borders, Columns, cut_columns, input_column, input_row, rows_on_image

MEAN_VECTORS = 8  # summed side by side: hides the latency of an addition


def signature(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    size = (1, 1) if isinstance(spec, GlobalMean) else spec.window.output(spec.height, spec.width)
    source, output = (spec.batch, spec.height, spec.width, channels), (spec.batch, *size, channels)
    if isinstance(spec.epilogue, Epilogue):
        return Signature((source,), (), None, output, arithmetic.activation, arithmetic.activation)
    packed = (((channels * len(_reached(spec)),), arithmetic.accumulator),)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, channels)


def pack(
    spec: GlobalMean | Pool,
    arithmetic: Arithmetic,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """Pooling has no weights. A mean of integers takes biases, a multiplier and what its epilogue reads."""
    if isinstance(spec.epilogue, Epilogue):
        return []
    reached = _reached(spec)
    ones = np.ones((spec.channels, len(reached[0])))
    bias = product_weights.biases(arithmetic, None, ones, zero_point, reached)
    rest = product_weights.finishing(spec.epilogue, arithmetic, spec.channels, multiplier, constants)
    return [bias, *rest]


def describe(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> str:
    if isinstance(spec, GlobalMean):
        return f"global mean, up to {MEAN_VECTORS} vectors of {arithmetic.lanes}"
    return f"{spec.mode} pool {'x'.join(map(str, spec.window.kernel))}, vectors of {_lanes(spec, arithmetic)}"


def prim_func(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> Any:
    return _global_mean(spec, arithmetic) if isinstance(spec, GlobalMean) else _pool(spec, arithmetic)


def _reached(spec: GlobalMean | Pool) -> list[np.ndarray]:
    """For every class of outputs with a bias of its own, the pixels of its window that lie on the image."""
    if isinstance(spec, GlobalMean):
        return [np.ones(spec.height * spec.width)]
    if not spec.bordered:
        return [np.ones(spec.window.taps)]
    return Borders.of(spec.window, spec.height, spec.width).reached()


def _global_mean(spec: GlobalMean, arithmetic: Arithmetic) -> Any:
    lanes, pixels = arithmetic.lanes, spec.height * spec.width
    pitch, kind = round_up(spec.channels, lanes), arithmetic.means
    exact = isinstance(spec.epilogue, Epilogue)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        outputs = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=1)
        with kernel.loop(spec.batch or given.batch) as image:
            source, output = given.sources[0].at(image), outputs.at(image)
            for cut in segments(pitch // lanes, MEAN_VECTORS):
                with kernel.loop(cut.count) as group:
                    sums, first = kernel.registers(cut.size, lanes, kind), (cut.start + group * cut.size) * lanes
                    for v, total in enumerate(sums):
                        zero = broadcast(0.0, lanes)
                        total.value = zero if exact else given.weights[0].vector(first + v * lanes, lanes)
                    with kernel.loop(pixels) as pixel:
                        for v, total in enumerate(sums):
                            value = source.vector(pixel * pitch + first + v * lanes, lanes)
                            total.value = total.value + T.cast(value, f"{kind}x{lanes}")
                    for v, total in enumerate(sums):
                        value = total.value * broadcast(1 / pixels, lanes) if exact else total.value
                        output.write(first + v * lanes, value, first + v * lanes)
    return kernel.prim_func


def _pool(spec: Pool, arithmetic: Arithmetic) -> Any:
    window, lanes, pitch = spec.window, _lanes(spec, arithmetic), round_up(spec.channels, arithmetic.lanes)
    out_height, out_width = window.output(spec.height, spec.width)
    cut = cut_columns(window, spec.width, out_width, tile_columns(window, out_width, arithmetic))
    parallel = is_parallel(
        arithmetic, (spec.batch or 1) * out_height * out_width * pitch * window.kernel[0] * window.kernel[1]
    )
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        outputs = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=1)
        biases = given.weights[0] if given.weights else None
        with kernel.grid(spec.batch or given.batch, out_height, parallel=parallel) as (image, row):
            source, output = given.sources[0].at(image), outputs.at(image)
            for columns in cut:
                with kernel.grid(columns.count, pitch // lanes) as (i, vector):
                    column, channel = columns.start + i * columns.size, vector * lanes
                    place = (row * out_width + column) * pitch + channel
                    tile = _Tile(kernel, spec, arithmetic, source, biases)
                    for c, result in enumerate(tile.results(row, columns, column, channel)):
                        _store(output, spec, place + c * pitch, result, channel, lanes)
    return kernel.prim_func


def _lanes(spec: Pool, arithmetic: Arithmetic) -> int:
    """Channels that are compared at a time: of bytes as many as fill registers and pixels."""
    lanes, pitch = arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    if spec.mode != "max" or not isinstance(arithmetic, Integers) or not arithmetic.fills_registers:
        return lanes
    return next(width for width in (4 * lanes, 2 * lanes, lanes) if pitch % width == 0)


def _store(output: Output, spec: Pool, place: Index, value: Vector, channel: Index, lanes: int) -> None:
    if spec.mode == "max":  # bytes or floats as they were read
        output.target.store(place, value, lanes)
    else:
        output.write(place, value, channel)


class _Tile:
    """Neighbouring output columns of one vector of channels."""

    def __init__(self, kernel: Kernel, spec: Pool, arithmetic: Arithmetic, source: View, biases: View | None):
        self.kernel, self.spec, self.arithmetic, self.source, self.biases = kernel, spec, arithmetic, source, biases
        self.lanes, self.pitch = _lanes(spec, arithmetic), round_up(spec.channels, arithmetic.lanes)
        self.borders = Borders.of(spec.window, spec.height, spec.width) if spec.bordered else None

    def results(self, row: Index, columns: Columns, column: Index, channel: Index) -> list[Vector]:
        """Largest values, means, or for integers sums."""
        spec, kind = self.spec, self._kind()
        found: list[Register] = self.kernel.registers(columns.size, self.lanes, kind)
        for i, register in enumerate(found):
            register.value = self._start(row, columns, i, channel)
        begin, end = rows_on_image(spec.window, spec.height, row)
        with self.kernel.loop(end - begin, begin) as tap:
            line = input_row(spec.window, row, tap) * spec.width
            for across, reads in enumerate(columns.on_image):
                for i, on_image in enumerate(reads):
                    if on_image:
                        place = (line + input_column(spec.window, column + i, across)) * self.pitch + channel
                        self._take(found[i], T.cast(self.source.vector(place, self.lanes), f"{kind}x{self.lanes}"))
        if spec.mode == "max" or self.biases is not None:
            return [register.value for register in found]
        return self._means(found, columns, end - begin)

    def _kind(self) -> str:
        return self.arithmetic.activation if self.spec.mode == "max" else self.arithmetic.means

    def _start(self, row: Index, columns: Columns, i: int, channel: Index) -> Vector:
        if self.spec.mode == "max":
            return T.broadcast(T.cast(self.arithmetic.lowest, self._kind()), self.lanes)
        if self.biases is None:
            return broadcast(0.0, self.lanes)
        place = 0 if self.borders is None else self.borders.index(row, columns, i) * self.pitch
        return self.biases.vector(place + channel, self.lanes)

    def _take(self, register: Register, value: Vector) -> None:
        register.value = self._larger(value, register.value) if self.spec.mode == "max" else register.value + value

    def _larger(self, value: Vector, other: Vector) -> Vector:
        """The larger one; NaN where one of them is, which a comparison alone would lose."""
        if self._kind() == "float32":
            return T.call_llvm_intrin(f"float32x{self.lanes}", "llvm.maximum", value, other)
        return T.max(value, other)

    def _means(self, found: list[Register], columns: Columns, rows: Index) -> list[Vector]:
        if self.spec.count_padding:
            return [register.value * broadcast(1 / self.spec.window.taps, self.lanes) for register in found]
        widths = [sum(reads[i] for reads in columns.on_image) for i in range(columns.size)]
        return [
            register.value / broadcast(T.cast(rows, "float32") * T.float32(width), self.lanes)
            for register, width in zip(found, widths, strict=True)
        ]
