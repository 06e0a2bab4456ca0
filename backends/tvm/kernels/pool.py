"""Pooling: max and mean over a sliding window, mean over the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Index, Kernel, Register, Vector, View, broadcast
from .depthwise import tile_columns
from .shapes import GlobalMean, Pool, Signature, round_up
from .tile import is_parallel, segments
from .window import Columns, cut_columns, input_column, input_row, rows_on_image

LOWEST = float("-inf")
MEAN_VECTORS = 8  # summed side by side: hides the latency of an addition


def signature(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    size = (1, 1) if isinstance(spec, GlobalMean) else spec.window.output(spec.height, spec.width)
    source = (spec.batch, spec.height, spec.width, channels)
    return Signature((source,), (), None, (spec.batch, *size, channels))


def pack(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> list[np.ndarray]:
    """Pooling has no weights."""
    return []


def describe(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> str:
    if isinstance(spec, GlobalMean):
        return f"global mean, up to {MEAN_VECTORS} vectors of {arithmetic.lanes}"
    return f"{spec.mode} pool {'x'.join(map(str, spec.window.kernel))}, vectors of {arithmetic.lanes}"


def prim_func(spec: GlobalMean | Pool, arithmetic: Arithmetic) -> Any:
    return _global_mean(spec, arithmetic) if isinstance(spec, GlobalMean) else _pool(spec, arithmetic)


def _global_mean(spec: GlobalMean, arithmetic: Arithmetic) -> Any:
    lanes, pixels = arithmetic.lanes, spec.height * spec.width
    pitch = round_up(spec.channels, lanes)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        with kernel.loop(spec.batch or given.batch) as image:
            source, target = given.sources[0].at(image), given.target.at(image)
            for cut in segments(pitch // lanes, MEAN_VECTORS):
                with kernel.loop(cut.count) as group:
                    sums, first = kernel.registers(cut.size, lanes), (cut.start + group * cut.size) * lanes
                    for total in sums:
                        total.value = broadcast(0.0, lanes)
                    with kernel.loop(pixels) as pixel:
                        for v, total in enumerate(sums):
                            total.value = total.value + source.vector(pixel * pitch + first + v * lanes, lanes)
                    for v, total in enumerate(sums):
                        target.store(first + v * lanes, total.value * broadcast(1 / pixels, lanes), lanes)
    return kernel.prim_func


def _pool(spec: Pool, arithmetic: Arithmetic) -> Any:
    window, lanes, pitch = spec.window, arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    out_height, out_width = window.output(spec.height, spec.width)
    cut = cut_columns(window, spec.width, out_width, tile_columns(window, out_width, arithmetic))
    parallel = is_parallel(
        arithmetic, (spec.batch or 1) * out_height * out_width * pitch * window.kernel[0] * window.kernel[1]
    )
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        with kernel.grid(spec.batch or given.batch, out_height, parallel=parallel) as (image, row):
            source, target = given.sources[0].at(image), given.target.at(image)
            for columns in cut:
                with kernel.grid(columns.count, pitch // lanes) as (i, vector):
                    column = columns.start + i * columns.size
                    place = (row * out_width + column) * pitch + vector * lanes
                    results = _tile(kernel, spec, lanes, pitch, source, row, columns, column, vector * lanes)
                    for c, result in enumerate(results):
                        target.store(place + c * pitch, result, lanes)
    return kernel.prim_func


def _tile(
    kernel: Kernel,
    spec: Pool,
    lanes: int,
    pitch: int,
    source: View,
    row: Index,
    columns: Columns,
    column: Index,
    channel: Index,
) -> list[Vector]:
    """Neighbouring output columns of one vector of channels."""
    window = spec.window
    found: list[Register] = kernel.registers(columns.size, lanes)
    for register in found:
        register.value = broadcast(LOWEST if spec.mode == "max" else 0.0, lanes)
    begin, end = rows_on_image(window, spec.height, row)
    with kernel.loop(end - begin, begin) as tap:
        line = input_row(window, row, tap) * spec.width
        for across, reads in enumerate(columns.on_image):
            for i, on_image in enumerate(reads):
                if on_image:
                    place = (line + input_column(window, column + i, across)) * pitch + channel
                    value, register = source.vector(place, lanes), found[i]
                    register.value = T.max(value, register.value) if spec.mode == "max" else register.value + value
    if spec.mode == "max":
        return [register.value for register in found]
    if spec.count_padding:
        return [register.value * broadcast(1 / window.taps, lanes) for register in found]
    widths = [sum(reads[i] for reads in columns.on_image) for i in range(columns.size)]
    return [
        register.value / broadcast(T.cast(end - begin, "float32") * T.float32(width), lanes)
        for register, width in zip(found, widths, strict=True)
    ]
