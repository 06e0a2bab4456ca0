"""Windows over images of few channels, where one instruction multiplies four bytes: a column of the window lies dense.

A pixel of three channels takes four bytes, so that a fourth of the products of a 7x7 stem would be by nothing. For each
row of outputs the rows that it reads are packed: of a column of 7 pixels 21 bytes lie in six words instead of seven.
What the last word of each column leaves free takes the first column, where that saves words: 37 instead of 42.
Beyond the image lies its zero point, so that all pixels are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View
from .columns_packing import Columns
from .columns_plan import STEP, WORD, Plan, depth, free_bytes, plan, takes
from .microkernel import Accumulators
from .output import Output
from .shapes import DirectConv, Signature
from .tile import Tiling, is_parallel, segments

__all__ = ["describe", "pack", "prim_func", "signature", "takes", "tiling"]


def tiling(spec: DirectConv, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return plan(spec, arithmetic).tiling


def signature(spec: DirectConv, arithmetic: Arithmetic) -> Signature:
    """The input, panels of weights, biases, what lies beyond the image, what the epilogue reads, and the output."""
    p, lanes = plan(spec, arithmetic), arithmetic.lanes
    source = (spec.batch, spec.height, spec.width, WORD)
    output = (spec.batch, p.out_height, p.out_width, p.vectors * lanes)
    outputs = p.vectors * lanes
    weights = ((outputs * depth(spec, p),), "int8")
    packed = weights, ((outputs,), "int32"), ((STEP * WORD,), "int8")
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
    """weight [out, in, kh, kw] -> panels over words and columns, then tails; bias, zero points, the epilogue's."""
    p, weight = plan(spec, arithmetic), np.asarray(weight)
    outputs, wide = spec.out_channels, spec.window.kernel[1]
    bytes_ = weight.transpose(0, 3, 2, 1).reshape(outputs, wide, -1)
    columns = _filled(bytes_, p.words * WORD)
    words = columns[:, p.first :, : p.whole * WORD].reshape(outputs, -1, p.whole, WORD).transpose(0, 2, 1, 3)
    parts = [words.reshape(outputs, -1)]
    if p.tails:
        own = bytes_[:, 1:, p.whole * WORD :]
        placed = (wide - 1) * free_bytes(spec)
        first = _filled(bytes_[:, 0], placed + (p.tails - wide + 1) * WORD)
        tails = np.concatenate([own, first[:, :placed].reshape(outputs, wide - 1, -1)], 2)
        parts += [tails.reshape(outputs, -1), first[:, placed:]]
    tap_sums = weight.reshape(outputs, -1).sum(1, keepdims=True, dtype=np.float64)
    return [
        packing.panels(np.concatenate(parts, 1), arithmetic, p.tile.vectors),
        product_weights.biases(arithmetic, bias, tap_sums, zero_point, [np.ones(1)], spec.epilogue),
        np.full(STEP * WORD, zero_point, np.int8),
        *product_weights.finishing(spec.epilogue, arithmetic, outputs, multiplier, constants),
    ]


def _filled(bytes_: np.ndarray, size: int) -> np.ndarray:
    """With zeros behind them along the last axis."""
    filled = np.zeros((*bytes_.shape[:-1], size), np.int8)
    filled[..., : bytes_.shape[-1]] = bytes_
    return filled


def describe(spec: DirectConv, arithmetic: Arithmetic) -> str:
    p, kernel = plan(spec, arithmetic), "x".join(map(str, spec.window.kernel))
    tile = f"tile {p.tile.pixels} pixels x {p.tile.vectors} vectors of {arithmetic.lanes}"
    return f"direct {kernel} in {depth(spec, p) // WORD} words, {tile}"


def prim_func(spec: DirectConv, arithmetic: Arithmetic) -> Any:
    p = plan(spec, arithmetic)
    work = (spec.batch or 1) * p.out_height * p.out_width * depth(spec, p) * spec.out_channels
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=3)
        weights, bias, zeros = given.weights[:3]
        parallel = is_parallel(arithmetic, work)
        with kernel.grid(spec.batch or given.batch, p.out_height, parallel=parallel) as (image, row):
            words = kernel.workspace((p.words + p.tails) * p.columns * WORD, "int8")
            Columns(kernel, spec, p, given.sources[0].at(image), zeros, words).pack(row)
            Rows(kernel, arithmetic, spec, p, words, weights, bias, output.at(image)).emit(row)
    return kernel.prim_func


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
        taps, stride, size = window.kernel[1] - p.first, window.stride[1], WORD * vectors * lanes
        panel = first * lanes * depth(self.spec, p)
        with self.kernel.loop(p.whole) as word:
            start = (word * p.columns + column * stride + p.first) * WORD
            sums.accumulate_words(self.words, start, stride, self.weights, panel + word * taps * size, taps)
        if p.tails:
            with self.kernel.loop(p.tails) as tail:
                start = ((p.words + tail) * p.columns + column * stride) * WORD
                place = panel + (p.whole * taps + tail) * size
                sums.accumulate_words(self.words, start, stride, self.weights, place, 1)

        def write(i: int, v: int, values: list[Vector]) -> None:
            channels = [(first + v + u) * lanes for u in range(len(values))]
            pixel = row * p.out_width + column + i
            self.output.write_together(pixel * (p.vectors * lanes) + channels[0], values, channels)

        sums.finish_together(self.output.together, write)
