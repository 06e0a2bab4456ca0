"""Windows over images of few channels, where one instruction multiplies four bytes: a column of the window lies dense.

A pixel of three channels takes four bytes, so that a fourth of the products of a 7x7 stem would be by nothing. For each
row of outputs the rows that it reads are packed: of a column of 7 pixels 21 bytes lie in six words instead of seven.
Beyond the image lies its zero point, so that all pixels are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Sdot
from ..arithmetic.tir import T
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View, largest, smallest
from .microkernel import Accumulators
from .output import Output
from .shapes import DirectConv, Signature, round_up
from .tile import Tile, Tiling, is_parallel, segments, tile_of
from .window import input_row, rows_on_image

WORD = 4  # bytes that one instruction multiplies, and those of a pixel
STEP = 4  # pixels that fill a register
SHORTEST = 4  # taps of a row that `accumulate_words` reads


@dataclass(frozen=True)
class Plan:
    """words: of one column; columns: of the packed rows, padding included."""

    out_height: int
    out_width: int
    vectors: int
    words: int
    columns: int
    tiling: Tiling
    tile: Tile


def takes(spec: Any, arithmetic: Arithmetic) -> bool:
    """Whether packing saves words."""
    if not isinstance(spec, DirectConv) or not isinstance(arithmetic, Sdot) or spec.image or spec.parts:
        return False
    tall, wide = spec.window.kernel
    fits = spec.in_channels < WORD and spec.groups == 1 and spec.width >= STEP
    return fits and wide >= SHORTEST and spec.window.dilation[1] == 1 and _words(spec) < tall


def _words(spec: DirectConv) -> int:
    return -(-spec.window.kernel[0] * spec.in_channels // WORD)


def plan(spec: DirectConv, arithmetic: Arithmetic) -> Plan:
    height, width = spec.window.output(spec.height, spec.width)
    vectors = round_up(spec.out_channels, arithmetic.lanes) // arithmetic.lanes
    extents = Tiling(width, vectors)
    columns = spec.window.padding[2] + spec.width + round_up(spec.window.padding[3], STEP)
    return Plan(height, width, vectors, _words(spec), columns, extents, tile_of(spec, arithmetic, extents))


def tiling(spec: DirectConv, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return plan(spec, arithmetic).tiling


def signature(spec: DirectConv, arithmetic: Arithmetic) -> Signature:
    """The input, panels of weights, biases, what lies beyond the image, what the epilogue reads, and the output."""
    p, lanes = plan(spec, arithmetic), arithmetic.lanes
    source = (spec.batch, spec.height, spec.width, WORD)
    output = (spec.batch, p.out_height, p.out_width, p.vectors * lanes)
    outputs = p.vectors * lanes
    weights = ((outputs * _depth(spec, p),), "int8")
    packed = weights, ((outputs,), "int32"), ((STEP * WORD,), "int8")
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs)


def _depth(spec: DirectConv, p: Plan) -> int:
    """Products per output, by nothing included."""
    return p.words * spec.window.kernel[1] * WORD


def pack(
    spec: DirectConv,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """weight [out, in, kh, kw] -> panels over words and columns, bias, zero points, and what the epilogue reads."""
    p, weight = plan(spec, arithmetic), np.asarray(weight)
    outputs, wide = spec.out_channels, spec.window.kernel[1]
    dense = np.zeros((outputs, wide, p.words * WORD), np.int8)
    column = weight.transpose(0, 3, 2, 1).reshape(outputs, wide, -1)
    dense[..., : column.shape[2]] = column
    matrix = dense.reshape(outputs, wide, p.words, WORD).transpose(0, 2, 1, 3).reshape(outputs, -1)
    tap_sums = weight.reshape(outputs, -1).sum(1, keepdims=True, dtype=np.float64)
    return [
        packing.panels(matrix, arithmetic, p.tile.vectors),
        product_weights.biases(arithmetic, bias, tap_sums, zero_point, [np.ones(1)], spec.epilogue),
        np.full(STEP * WORD, zero_point, np.int8),
        *product_weights.finishing(spec.epilogue, arithmetic, outputs, multiplier, constants),
    ]


def describe(spec: DirectConv, arithmetic: Arithmetic) -> str:
    p, kernel = plan(spec, arithmetic), "x".join(map(str, spec.window.kernel))
    tile = f"tile {p.tile.pixels} pixels x {p.tile.vectors} vectors of {arithmetic.lanes}"
    return f"direct {kernel}, columns in {p.words} words, {tile}"


def prim_func(spec: DirectConv, arithmetic: Arithmetic) -> Any:
    p = plan(spec, arithmetic)
    work = (spec.batch or 1) * p.out_height * p.out_width * _depth(spec, p) * spec.out_channels
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=3)
        weights, bias, zeros = given.weights[:3]
        parallel = is_parallel(arithmetic, work)
        with kernel.grid(spec.batch or given.batch, p.out_height, parallel=parallel) as (image, row):
            words = kernel.workspace(p.words * p.columns * WORD, "int8")
            Columns(kernel, spec, p, given.sources[0].at(image), zeros, words).pack(row)
            Rows(kernel, arithmetic, spec, p, words, weights, bias, output.at(image)).emit(row)
    return kernel.prim_func


@dataclass(frozen=True)
class Columns:
    """The rows that a row of outputs reads, packed into `words`: [word][column][4 bytes]."""

    kernel: Kernel
    spec: DirectConv
    plan: Plan
    source: View
    zeros: View
    words: View

    def pack(self, row: Index) -> None:
        """What lies beside the image first and last, what lies between a register of pixels at a time."""
        (left, right), width = self.spec.window.padding[2:], self.spec.width
        self.fill(0, left)
        with self.kernel.loop(width // STEP) as i:
            self.step(row, i * STEP)
        if width % STEP:
            self.step(row, width - STEP)
        self.fill(left + width, right)

    def fill(self, first: int, count: int) -> None:
        """Zero points in `count` columns, and in what a register holds beyond them."""
        size = STEP * WORD
        for word in range(self.plan.words):
            for column in range(first, first + count, STEP):
                self.words.store((word * self.plan.columns + column) * WORD, self.zeros.vector(0, size), size)

    def step(self, row: Index, x: Index) -> None:
        """The columns from x on."""
        window, channels, size = self.spec.window, self.spec.in_channels, STEP * WORD
        begin, end = rows_on_image(window, self.spec.height, row)
        lines = [self.line(row, tap, x, begin, end) for tap in range(window.kernel[0])]
        last = len(lines) * channels - 1
        for word in range(self.plan.words):
            taken = [min(byte, last) for byte in range(word * WORD, (word + 1) * WORD)]
            first = taken[0] // channels
            read = lines[first : taken[-1] // channels + 1]
            offsets = [(byte // channels - first) * size + byte % channels for byte in taken]
            bytes_ = T.Shuffle(read, [pixel * WORD + offset for pixel in range(STEP) for offset in offsets])
            place = (word * self.plan.columns + window.padding[2] + x) * WORD
            self.words.store(place, bytes_, size)

    def line(self, row: Index, tap: int, x: Index, begin: Index, end: Index) -> Vector:
        """Pixels of the row that a tap reads; zero points where that is none of the image's."""
        height, size = self.spec.height, STEP * WORD
        y = smallest(height - 1, largest(0, input_row(self.spec.window, row, tap)))
        read = self.source.vector((y * self.spec.width + x) * WORD, size)
        if isinstance(begin, int) and isinstance(end, int) and begin <= tap < end:
            return read
        return T.Select(T.And(begin <= tap, tap < end), read, self.zeros.vector(0, size))


@dataclass(frozen=True)
class Rows:
    """Rows of outputs, over packed columns."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: DirectConv
    plan: Plan
    words: View
    weights: View
    bias: View
    output: Output

    def emit(self, row: Index) -> None:
        """Panels of weights; inside, the tiles of one row."""
        p = self.plan
        for panel in segments(p.vectors, p.tile.vectors):
            with self.kernel.loop(panel.count) as number:
                first = panel.start + number * panel.size
                for cut in segments(p.out_width, p.tile.pixels):
                    with self.kernel.loop(cut.count) as i:
                        self.tile(row, cut.start + i * cut.size, cut.size, first, panel.size)

    def tile(self, row: Index, column: Index, pixels: int, first: Index, vectors: int) -> None:
        """One register tile: neighbouring columns by vectors from the first one on."""
        p, lanes, window = self.plan, self.arithmetic.lanes, self.spec.window
        sums = Accumulators(self.kernel, self.arithmetic, pixels, vectors)
        sums.start(self.bias, first * lanes)
        wide, stride = window.kernel[1], window.stride[1]
        with self.kernel.loop(p.words) as word:
            start = (word * p.columns + column * stride) * WORD
            weights = first * lanes * _depth(self.spec, p) + word * (wide * WORD * vectors * lanes)
            sums.accumulate_words(self.words, start, stride, self.weights, weights, wide)

        def write(i: int, v: int, values: list[Vector]) -> None:
            channels = [(first + v + u) * lanes for u in range(len(values))]
            pixel = row * p.out_width + column + i
            self.output.write_together(pixel * (p.vectors * lanes) + channels[0], values, channels)

        sums.finish_together(self.output.together, write)
