"""Convolutions and linear layers of bytes on a matrix unit (AMX)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Amx, MatrixUnit
from ..arithmetic.tir import T
from ..arithmetic.x86_matrix import CONFIGURATION
from . import packing, product_weights
from .builder import REGISTER_SCOPE, Index, Kernel, View, smallest
from .matrix_plan import MatrixPlan, plan
from .matrix_plan import takes as takes
from .output import Output
from .shapes import Dense, DirectConv, Pointwise, Shape, Signature
from .tile import is_parallel, lies_in, segments

Product = Pointwise | Dense | DirectConv
TILE = 256  # int32 of a tile of sums


def signature(spec: Product, arithmetic: Amx) -> Signature:
    p, lanes = plan(spec, arithmetic.lanes), arithmetic.lanes
    source: Shape
    output: Shape
    if isinstance(spec, Dense):
        source, output = (spec.rows, spec.in_features), (spec.rows, spec.out_features)
    else:
        height, width = (p.rows, p.row_pixels) if isinstance(spec, DirectConv) else (spec.height, spec.width)
        source = (spec.batch, spec.height, spec.width, p.source_pitch)
        output = (spec.batch, height, width, p.out_pitch)
    outputs = p.vectors * lanes
    packed = ((p.vectors * p.panel_bytes,), "int8"), ((outputs,), "int32"), ((lanes,), "uint8")
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs)


def pack(
    spec: Product,
    arithmetic: Amx,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """weight [out, in, (kh, kw)] -> panels, bias, what padding holds, and what the epilogue reads.

    Padding holds the zero point, so that one bias serves all pixels.
    """
    p = plan(spec, arithmetic.lanes)
    outputs = len(weight)
    taps = np.asarray(weight).reshape(outputs, -1, *p.window.kernel).transpose(0, 2, 3, 1)
    whole = np.zeros((*taps.shape[:3], p.channels), np.int8)
    whole[..., : taps.shape[3]] = taps
    tiles = _in_tiles(whole.reshape(outputs, p.runs[0] * p.runs[1], p.run), p)
    sums = taps.reshape(outputs, -1).sum(1, keepdims=True, dtype=np.float64)
    return [
        packing.panels(tiles, arithmetic, p.wide),
        product_weights.biases(arithmetic, bias, sums, zero_point, [np.ones(1)]),
        np.full(arithmetic.lanes, zero_point, np.uint8),
        *product_weights.finishing(spec.epilogue, arithmetic, outputs, multiplier, constants),
    ]


def _in_tiles(runs: np.ndarray, p: MatrixPlan) -> np.ndarray:
    """[outputs, runs, run] -> [outputs, runs * steps * depth]; what the last step of a run repeats is zero."""
    last = p.run - p.depth
    steps = [runs[:, :, start : start + p.depth] for start in range(0, last, p.depth)]
    final = runs[:, :, last:].copy()
    final[:, :, : len(steps) * p.depth - last] = 0
    return np.stack([*steps, final], 2).reshape(len(runs), -1)


def describe(spec: Product, arithmetic: Amx) -> str:
    p = plan(spec, arithmetic.lanes)
    family = "dense" if isinstance(spec, Dense) else "x".join(map(str, p.window.kernel))
    return f"matrix {family}, {p.tall} x {p.wide} tiles of {p.size} pixels x {arithmetic.lanes}"


def prim_func(spec: Product, arithmetic: Amx) -> Any:
    p = plan(spec, arithmetic.lanes)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=3)
        weights, bias, padding = given.weights[:3]
        nest = Nest(kernel, arithmetic, p, given.sources[0], weights, bias, padding, output)
        nest.emit(1 if p.images is None else p.images or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class Lines:
    """Input lines as tiles are loaded: of the source itself, or of a copy that begins at line `first`."""

    view: View
    first: Index


@dataclass(frozen=True)
class Nest:
    """The loops around the tiles."""

    kernel: Kernel
    arithmetic: Amx
    plan: MatrixPlan
    source: View
    weights: View
    bias: View
    padding: View
    output: Output

    @property
    def unit(self) -> MatrixUnit:
        return self.arithmetic.matrix

    def emit(self, images: Index) -> None:
        """Images, blocks of lines, shares of the panels; inside, panels of outputs and groups of tiles."""
        p, kernel = self.plan, self.kernel
        panels = list(segments(p.vectors, p.wide))
        count = sum(panel.count for panel in panels)
        parts, shares = p.blocks(self.arithmetic, count)
        parallel = is_parallel(self.arithmetic, p.rows * p.row_pixels * p.vectors * p.panel_bytes)
        with kernel.grid(images, parts.count, shares.count, parallel=parallel) as (image, part, share):
            first, mine = parts[part]
            first_panel, my_panels = shares[share]
            self.configure()
            lines = self.lines(image, first, mine, parts.size)
            sums = kernel.workspace(p.tall * p.wide * TILE, "int32")
            with kernel.loop(my_panels, first_panel) as panel:
                for cut in panels:
                    with kernel.when(lies_in(panel, cut, p.wide, count)):
                        self.groups(image, lines, first, mine, panel, cut.size, sums)
            self.unit.release()

    def configure(self) -> None:
        """Sums first, then `tall` tiles of pixels, then `wide` tiles of weights."""
        p, lanes = self.plan, self.arithmetic.lanes
        shapes = [(p.size, 4 * lanes)] * (p.tall * p.wide)
        shapes += [(p.size, p.depth)] * min(p.tall, self.pixel_registers)
        shapes += [(p.depth // 4, 4 * lanes)] * p.wide
        words = View(T.alloc_buffer((CONFIGURATION,), "int32", scope=REGISTER_SCOPE, layout=None), "int32")
        self.unit.configure(words, shapes)

    @property
    def pixel_registers(self) -> int:
        p = self.plan
        return self.unit.registers - p.tall * p.wide - p.wide

    def lines(self, image: Index, first: Index, mine: Index, rows: int) -> Lines:
        """The input of `mine` lines of outputs from `first` on, at most `rows`."""
        p = self.plan
        source = self.source.at(image)
        if not p.copied:
            return Lines(source, 0)
        top = first * p.window.stride[0]
        copy = self.kernel.workspace(p.lines(rows) * p.line_pixels * p.channels, "uint8")
        Copy(self.kernel, p, source, copy, self.padding, self.arithmetic.lanes).emit(top, p.lines(mine))
        return Lines(copy, top)

    def groups(
        self, image: Index, lines: Lines, first: Index, mine: Index, panel: Index, wide: int, sums: View
    ) -> None:
        """All tiles of a block for one panel of outputs, `tall` lines at a time."""
        p, kernel = self.plan, self.kernel

        def group(row: Index, tall: int) -> None:
            with kernel.loop(p.columns) as column:
                self.group(image, lines, row, column, tall, panel, wide, sums)

        whole, rest = mine // p.tall, mine % p.tall
        with kernel.loop(whole) as number:
            group(first + number * p.tall, p.tall)
        if isinstance(rest, int):
            if rest:
                group(first + whole * p.tall, rest)
        else:
            with kernel.loop(rest) as number:
                group(first + whole * p.tall + number, 1)

    def group(
        self, image: Index, lines: Lines, row: Index, column: Index, tall: int, panel: Index, wide: int, sums: View
    ) -> None:
        """`tall` x `wide` tiles: neighbouring lines by neighbouring vectors of outputs."""
        p, lanes, unit = self.plan, self.arithmetic.lanes, self.unit
        channel = panel * (p.wide * lanes)
        for i in range(tall):
            for v in range(wide):
                unit.load(i * wide + v, self.address(self.bias, channel + v * lanes), 0)
        starts = [self.start(lines, row + i, column) for i in range(tall)]
        pixel_tile, weight_tile = p.tall * p.wide, p.tall * p.wide + min(p.tall, self.pixel_registers)
        weights, weight_pitch = channel * (p.panel_bytes // lanes), wide * lanes * 4
        step_bytes = p.depth * wide * lanes
        down, across = p.runs
        with self.kernel.loop(down) as y, self.kernel.loop(across) as x, self.kernel.loop(p.steps) as step:
            here = weights + ((y * across + x) * p.steps + step) * step_bytes
            inside = smallest(step * p.depth, p.run - p.depth) if p.steps > 1 else 0
            inside = inside + y * (p.window.dilation[0] * p.line_pixels * p.in_pitch)
            inside = inside + x * (p.window.dilation[1] * p.in_pitch)
            for v in range(wide):
                unit.load(weight_tile + v, self.address(self.weights, here + v * lanes * 4), weight_pitch)
            for i, start in enumerate(starts):
                pixels = pixel_tile + i % self.pixel_registers
                unit.load(pixels, self.address(lines.view, start + inside), p.window.stride[1] * p.in_pitch)
                for v in range(wide):
                    unit.multiply(i * wide + v, pixels, weight_tile + v)
        for i in range(tall):
            self.finish(image, row + i, column, i, channel, wide, sums)

    def start(self, lines: Lines, row: Index, column: Index) -> Index:
        """Offset of the first byte that a tile's first pixel reads."""
        p = self.plan
        if p.pixels:
            return smallest(row * p.size, p.pixels - p.size) * p.in_pitch
        line = row * p.window.stride[0] - lines.first
        pixel = line * p.line_pixels + self.first_column(column) * p.window.stride[1]
        return pixel * p.in_pitch

    def first_column(self, column: Index) -> Index:
        p = self.plan
        return column if p.columns == 1 else smallest(column * p.size, p.row_pixels - p.size)

    def finish(self, image: Index, row: Index, column: Index, i: int, channel: Index, wide: int, sums: View) -> None:
        """Write the tiles of one line; pixels that the tile before has written are left out."""
        p, lanes = self.plan, self.arithmetic.lanes
        for v in range(wide):
            self.unit.store(i * wide + v, self.address(sums, (i * wide + v) * TILE), 4 * lanes)
        if p.pixels:
            first = smallest(row * p.size, p.pixels - p.size)
            begin = row * p.size - first if p.pixels % p.size else 0
            pixel = first
        else:
            first = self.first_column(column)
            begin = column * p.size - first if p.row_pixels % p.size else 0
            pixel = row * p.row_pixels + first
        output = self.output.at(image)
        with self.kernel.loop(p.size - begin, begin) as j:
            for v in range(wide):
                value = sums.vector((i * wide + v) * TILE + j * lanes, lanes)
                output.write((pixel + j) * p.out_pitch + channel + v * lanes, value, channel + v * lanes)

    def address(self, view: View, offset: Index) -> Any:
        return T.address_of(view.buffer[tuple(view.indices(offset))])


@dataclass(frozen=True)
class Copy:
    """A block of input lines with its padding around it."""

    kernel: Kernel
    plan: MatrixPlan
    source: View
    copy: View
    padding: View
    lanes: int

    def emit(self, top: Index, lines: Index) -> None:
        """Lines top .. top + lines of the padded image; those off the image hold padding."""
        p, kernel = self.plan, self.kernel
        above, _, left, right = p.window.padding
        pitch = p.line_pixels * p.channels
        with kernel.loop(lines) as line:
            row = top + line - above
            is_inside = T.And(row >= 0, row < p.source_height)
            with kernel.when(is_inside):
                self.fill(line * pitch, left)
                self.move(row * (p.source_width * p.source_pitch), line * pitch + left * p.channels)
                self.fill(line * pitch + (left + p.source_width) * p.channels, right)
            with kernel.when(T.Not(is_inside)):
                self.fill(line * pitch, p.line_pixels)

    def fill(self, offset: Index, pixels: int) -> None:
        """Padding in some neighbouring pixels."""
        size = self.lanes if self.plan.channels % self.lanes == 0 else 4
        if pixels:
            with self.kernel.loop(pixels * self.plan.channels // size) as i:
                self.copy.store(offset + i * size, self.padding.vector(0, size), size)

    def move(self, source: Index, target: Index) -> None:
        """One line of the image, as it is, or the channels in use of each pixel."""
        p = self.plan
        if p.channels < p.source_pitch:
            with self.kernel.loop(p.source_width) as pixel:
                for first in range(0, p.channels, 4):
                    value = self.source.vector(source + pixel * p.source_pitch + first, 4)
                    self.copy.store(target + pixel * p.channels + first, value, 4)
            return
        size = p.source_width * p.channels
        at_once = next(each for each in (64, 32, 16) if size % each == 0)
        with self.kernel.loop(size // at_once) as i:
            self.copy.store(target + i * at_once, self.source.vector(source + i * at_once, at_once), at_once)
