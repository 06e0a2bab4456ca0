"""1x1 convolutions and linear layers: one matrix product over all pixels, a register tile at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View
from .microkernel import Accumulators
from .output import Output
from .prefetches import Ahead, Following, Soon
from .shapes import Dense, Pointwise, Shape, Signature, round_up
from .sources import Part, Sources
from .tile import Blocks, Segment, Tile, Tiling, Traffic, input_blocks, is_parallel, lies_in, segments, tile_of

FEW = 8  # pixels per image below which the images of a run-time batch share register tiles


@dataclass(frozen=True)
class Product:
    """The matrix product behind a spec: `images` x `pixels` rows; None is the run-time extent.

    `pitch_in`, `pitch_out`: elements from one row to the next. `rest`: used lanes of the last vector of a plain output
    (0: all). `depth`: the reduction in whole groups of the arithmetic, as the weights hold it. `far`: whether the
    input is asked for ahead.
    """

    images: int | None
    pixels: int | None
    reduction: int
    outputs: int
    pitch_in: int
    pitch_out: int
    vectors: int
    rest: int
    tiling: Tiling
    tile: Tile
    depth: int
    far: bool = False


def product(spec: Pointwise | Dense, arithmetic: Arithmetic) -> Product:
    """Reduce a spec to its matrix product."""
    lanes = arithmetic.lanes
    if isinstance(spec, Dense):
        images, pixels = 1, spec.rows
        reduction, outputs = spec.in_features, spec.out_features
        pitch_in, pitch_out = reduction, outputs
    else:
        image = spec.height * spec.width
        reduction, outputs = spec.in_channels, spec.out_channels
        pitch_in, pitch_out = round_up(reduction, lanes), round_up(outputs, lanes)
        if spec.batch is not None:
            images, pixels = 1, spec.batch * image
        else:
            images, pixels = (None, image) if image >= FEW else (1, None)
    vectors = round_up(outputs, lanes) // lanes
    moved = (pitch_in + pitch_out) * np.dtype(arithmetic.activation).itemsize * (pixels or 0)
    far = arithmetic.asks_for_maps and moved > arithmetic.cache
    extents = Tiling(pixels or FEW // 2, vectors, far=far)
    tile = tile_of(spec, arithmetic, extents)
    depth = round_up(reduction, arithmetic.group)
    rest = pitch_out % lanes
    return Product(images, pixels, reduction, outputs, pitch_in, pitch_out, vectors, rest, extents, tile, depth, far)


def tiling(spec: Pointwise | Dense, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return product(spec, arithmetic).tiling


def signature(spec: Pointwise | Dense, arithmetic: Arithmetic) -> Signature:
    p = product(spec, arithmetic)
    leading: Shape = (spec.rows,) if isinstance(spec, Dense) else (spec.batch, spec.height, spec.width)
    outputs = p.vectors * arithmetic.lanes
    packed = ((outputs * p.depth,), arithmetic.weight), ((outputs,), arithmetic.accumulator)
    source, output = (*leading, p.pitch_in), (*leading, p.pitch_out)
    parts = spec.parts if isinstance(spec, Pointwise) else ()
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs, parts)


def takes_parts(spec: Pointwise | Dense, arithmetic: Arithmetic) -> bool:
    """Whether the input may lie in several maps."""
    return isinstance(spec, Pointwise)


def pack(
    spec: Pointwise | Dense,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
    *,
    vectors: int | None = None,
) -> list[np.ndarray]:
    """weight [out, in] or [out, in, 1, 1] -> panels, bias, and for integers what their epilogue reads.

    vectors: of outputs per panel; the tile's own if not given.
    """
    p = product(spec, arithmetic)
    matrix = np.asarray(weight).reshape(p.outputs, p.reduction)
    tap_sums = matrix.sum(1, keepdims=True, dtype=np.float64)
    return [
        packing.panels(matrix, arithmetic, vectors or p.tile.vectors),
        product_weights.biases(arithmetic, bias, tap_sums, zero_point, [np.ones(1)], spec.epilogue),
        *product_weights.finishing(spec.epilogue, arithmetic, p.outputs, multiplier, constants),
    ]


def describe(spec: Pointwise | Dense, arithmetic: Arithmetic) -> str:
    tile = product(spec, arithmetic).tile
    family = "dense" if isinstance(spec, Dense) else "pointwise"
    return f"{family}, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"


def prim_func(spec: Pointwise | Dense, arithmetic: Arithmetic) -> Any:
    p = product(spec, arithmetic)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        parts, (weights, bias) = spec.parts if isinstance(spec, Pointwise) else (), given.weights[:2]
        source = Sources.of(given.sources, parts, p.reduction, p.pitch_in)
        nest = Nest(kernel, arithmetic, p, source, weights, bias, output)
        per_entry = 1 if isinstance(spec, Dense) else spec.height * spec.width
        nest.emit(
            images=given.batch if p.images is None else p.images,
            pixels=given.batch * per_entry if p.pixels is None else p.pixels,
        )
    return kernel.prim_func


@dataclass(frozen=True)
class Nest:
    """The loops around the microkernel."""

    kernel: Kernel
    arithmetic: Arithmetic
    product: Product
    source: Sources
    weights: View
    bias: View
    output: Output

    def panels(self) -> list[Segment]:
        """The panels of weights; one whose last vector is not whole stands alone."""
        cut = list(segments(self.product.vectors, self.product.tile.vectors))
        last = cut[-1]
        if self.product.rest and last.count > 1:
            cut[-1:] = [
                Segment(0, last.count - 1, last.size),
                Segment((last.count - 1) * last.size, 1, last.size),
            ]
        return cut

    def emit(self, images: Index, pixels: Index) -> None:
        """Images, blocks of pixels, panels of weights; inside, the tiles of one block."""
        p, panels, size = self.product, self.panels(), self.product.tile.pixels
        tiles, rest = pixels // size, pixels % size
        count = sum(panel.count for panel in panels)
        parts = Blocks(1, tiles, tiles)
        if p.pixels:
            parts = input_blocks(self.arithmetic, self.traffic(p.pixels), tiles, count)
        parallel = is_parallel(self.arithmetic, p.reduction * p.outputs * (p.pixels or FEW))
        with self.kernel.grid(images, parts.count, count, parallel=parallel) as (image, part, panel):
            first, mine = parts[part]
            for cut in panels:
                with self.kernel.when(lies_in(panel, cut, p.tile.vectors, count)):
                    with self.kernel.loop(mine, first) as tile:
                        self.tile(image, tile * size, size, panel, cut)
                    with self.kernel.when(parts.count == 1 or part == parts.count - 1):
                        self.tail(image, tiles * size, rest, panel, cut)

    def traffic(self, pixels: int) -> Traffic:
        """That of one image of so many pixels."""
        p, lanes = self.product, self.arithmetic.lanes
        return Traffic(
            read=self.source.itemsize * p.pitch_in * pixels,
            finished=self.output.bytes_of(pixels * p.pitch_out),
            weights=self.arithmetic.weight_bytes * p.depth * p.vectors * lanes,
        )

    def tail(self, image: Index, first: Index, rest: Index, panel: Index, cut: Segment) -> None:
        """The pixels after the last whole tile; a run-time number of them goes one by one."""
        if not isinstance(rest, int):
            if self.product.tile.pixels > 1:
                with self.kernel.loop(rest, first) as pixel:
                    self.tile(image, pixel, 1, panel, cut)
        elif rest:
            self.tile(image, first, rest, panel, cut)

    def ahead(self, here: Index, pixel: Index, cut: Segment) -> Ahead | None:
        """What a tile prefetches of the next panel; the last one, which may be smaller, takes its share too."""
        p, size = self.product, self.product.tile.pixels
        if p.pixels is None:
            return None
        next_panel = here + p.depth * cut.size * self.arithmetic.lanes
        return Ahead.plan(self.arithmetic, next_panel, p.reduction, cut.size, ceil(p.pixels / size), pixel // size)

    def following(self, part: Part, pixel: Index, pixels: int) -> Following | None:
        """What a whole tile prefetches of the next one's input."""
        if not self.product.far or pixels != self.product.tile.pixels:
            return None
        first, passes = (pixel + pixels) * part.pitch, part.channels // self.arithmetic.unroll
        return Following.plan(part.view, first, pixels * part.pitch, passes)

    def tile(self, image: Index, pixel: Index, pixels: int, panel: Index, cut: Segment) -> None:
        """One register tile: `pixels` rows by the vectors of one panel."""
        p, lanes = self.product, self.arithmetic.lanes
        channel = panel * (p.tile.vectors * lanes)
        tile = Accumulators(self.kernel, self.arithmetic, pixels, cut.size)
        tile.start(self.bias, channel)
        here = channel * p.depth
        ahead = self.ahead(here, pixel, cut)
        output, first = self.output.at(image), pixel * p.pitch_out + channel
        soon = Soon.plan(self.arithmetic, output, first, p.pitch_out, pixels, (p.pixels or 0) * p.pitch_out)
        for part in self.source.at(image):
            offsets, weights = [(pixel + i) * part.pitch for i in range(pixels)], here + part.first * (cut.size * lanes)
            passed = ahead and ahead.after(part.first // self.arithmetic.unroll)
            following = self.following(part, pixel, pixels)
            tile.accumulate(part.view, offsets, self.weights, weights, part.channels, passed, soon, following)
            soon = None  # they were asked for with the first part
        self.store(tile, self.output.at(image), pixel, channel, cut)

    def store(self, tile: Accumulators, output: Output, pixel: Index, channel: Index, cut: Segment) -> None:
        """Write a finished tile whose first row is `pixel` and whose first output is `channel`."""
        p, lanes = self.product, self.arithmetic.lanes
        ends_here = cut.count == 1 and cut.start + cut.size == p.vectors

        def write(i: int, v: int, values: list[Vector]) -> None:
            channels = [channel + (v + u) * lanes for u in range(len(values))]
            row = (pixel + i) * p.pitch_out
            if p.rest and ends_here:
                for number, (value, first) in enumerate(zip(values, channels, strict=True), v):
                    output.write(row + first, value, first, p.rest if number == cut.size - 1 else 0)
            else:
                output.write_together(row + channels[0], values, channels)

        tile.finish_together(output.together, write)
