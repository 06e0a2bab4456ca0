"""Convolutions by Winograd's minimal filtering: m x m outputs from (m + r - 1)^2 products per channel, instead of
m x m x r x r.

A block of tiles is transformed, multiplied by one matrix for each of its places, and transformed back, while it stays
in cache. A stride of 2 leaves four phases of the input, each with a filter of its own of half the taps: they share
tiles and places, and their products are summed. Winograd pays where maps are large; its weights take more room.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from . import packing, product_weights, winograd_fresh
from .builder import Index, Kernel, Vector, View, smallest
from .microkernel import Accumulators
from .output import Output
from .prefetches import Ahead
from .shapes import Signature, Winograd
from .sources import Part, Sources
from .tile import Tiling, is_parallel, segments
from .winograd_image import arrange
from .winograd_matrices import Matrices, matrices
from .winograd_plan import Group, Phase, Plan, plan, taps_of
from .winograd_transforms import Transforms


def tiling(spec: Winograd, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return plan(spec, arithmetic).tiling


def signature(spec: Winograd, arithmetic: Arithmetic) -> Signature:
    p = plan(spec, arithmetic)
    if spec.image:
        source = (spec.batch, spec.in_channels, spec.height, spec.width)
    else:
        source = (spec.batch, spec.height, spec.width, p.source.pitch)
    output = (spec.batch, p.out_height, p.out_width, p.pitch_out)
    depths = spec.kernel**2 * spec.in_channels if spec.fresh else p.depths
    packed = ((p.pitch_out * depths,), arithmetic.weight), ((p.pitch_out,), arithmetic.accumulator)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, p.pitch_out, spec.parts)


def takes_parts(spec: Winograd, arithmetic: Arithmetic) -> bool:
    """Whether the input may lie in several maps."""
    return not spec.image


def pack(spec: Winograd, arithmetic: Arithmetic, weight: np.ndarray, bias: np.ndarray | None) -> list[np.ndarray]:
    """weight [out, in, kernel, kernel] -> panels for each place of a tile, transformed in float64; bias."""
    p = plan(spec, arithmetic)
    padded_bias = packing.lanes_of(bias, spec.out_channels, p.lanes, arithmetic.accumulator)
    each = p.pitch_out // p.parts
    if spec.fresh:
        return [winograd_fresh.pack(p, arithmetic, np.asarray(weight)), padded_bias]
    transform = np.array(_matrices(spec, arithmetic).weight, np.float64)
    placed = []  # by phase: [row of place, column of place, out, in]
    for a, b in np.ndindex(spec.stride, spec.stride):
        taps = np.zeros((spec.out_channels, spec.in_channels, p.taps, p.taps))
        own = np.asarray(weight, np.float64)[:, :, a :: spec.stride, b :: spec.stride]
        taps[:, :, : own.shape[2], : own.shape[3]] = own
        placed.append(np.einsum("ai,ocij,bj->aboc", transform, taps, transform, optimize=True))
    panels = []
    for group in p.groups:
        for i, j in group.places:
            matrix = np.zeros((p.pitch_out, group.depth), np.float32)
            matrix[: spec.out_channels] = np.concatenate([placed[phase][i, j] for phase in group.phases], 1)
            for first in range(0, p.pitch_out, each):
                panels.append(packing.panels(matrix[first : first + each], arithmetic, p.tile.vectors))
    return [np.concatenate(panels), padded_bias]


def describe(spec: Winograd, arithmetic: Arithmetic) -> str:
    tile, stride = plan(spec, arithmetic).tile, f" by {spec.stride}" if spec.stride > 1 else ""
    kept = ", weights as they are" if spec.fresh else ""
    how = f"winograd {spec.tile}x{spec.tile} of {spec.kernel}x{spec.kernel}{stride}{kept}"
    return f"{how}, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"


def prim_func(spec: Winograd, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        p, views, (weights, bias) = plan(spec, arithmetic), given.sources, given.weights[:2]
        if spec.image:
            views = [arrange(kernel, arithmetic, spec, p.source, views[0])]
        source = Sources.of(views, spec.parts, p.source.pitch, p.source.pitch)
        transforms = Transforms(kernel, arithmetic, _matrices(spec, arithmetic))
        nest = _Nest(kernel, arithmetic, spec, p, source, weights, bias, output, transforms)
        if p.heavy:
            nest.emit_parts()
        else:
            nest.emit(spec.batch or given.batch)
    return kernel.prim_func


def _matrices(spec: Winograd, arithmetic: Arithmetic) -> Matrices:
    return matrices(spec.tile, taps_of(spec), arithmetic.activation, powers=spec.fresh)


@dataclass(frozen=True)
class _Place:
    """The first output of a tile."""

    image: Index
    row: Index
    column: Index


@dataclass(frozen=True)
class _Share:
    """Vectors of outputs that are computed together. pitch: elements from one tile to the next in their products."""

    first: Index
    vectors: int
    pitch: int


@dataclass(frozen=True)
class _Nest:
    """The three steps of a block of tiles."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: Winograd
    plan: Plan
    source: Sources
    weights: View
    bias: View
    output: Output
    transforms: Transforms

    def emit(self, batch: Index) -> None:
        """Blocks of tiles, those of neighbouring images together where the batch is known."""
        p, spec = self.plan, self.spec
        extents, parallel = (1 if spec.batch else batch, p.blocks.count), is_parallel(self.arithmetic, self.work)
        share = _Share(0, p.pitch_out // p.lanes, p.pitch_out)
        with self.kernel.grid(*extents, parallel=parallel) as (image, block):
            first, mine = p.blocks[block]
            spread = self.kernel.workspace(p.spread_elements, self.dtype)
            products = self.kernel.workspace(p.places * p.plane(share.pitch), self.dtype)
            rows = (mine + p.tile.pixels - 1) // p.tile.pixels
            with self.kernel.loop(rows * p.tile.pixels) as tile:
                self.spread(spread, image, first + tile, tile)
            self.multiply(spread, products, rows, share)
            with self.kernel.loop(mine) as tile:
                self.gather(products, image, first + tile, tile, share)

    def emit_parts(self) -> None:
        """All tiles, then the outputs in parts, so that each core reads its part of the weights only."""
        p = self.plan
        parallel, vectors = is_parallel(self.arithmetic, self.work), p.pitch_out // p.lanes // p.parts
        spread = self.kernel.workspace(p.spread_elements, self.dtype)
        with self.kernel.grid(p.room, parallel=parallel) as (tile,):
            self.spread(spread, 0, tile, tile)
        with self.kernel.grid(p.parts, parallel=parallel) as (part,):
            share = _Share(part * vectors, vectors, vectors * p.lanes)
            products = self.kernel.workspace(p.places * p.plane(share.pitch), self.dtype)
            rows = p.room // p.tile.pixels
            if self.spec.fresh:
                fresh = winograd_fresh.Fresh(self.kernel, self.arithmetic, p, self.weights, self.transforms)
                fresh.multiply(spread, products, rows, share.first, share.vectors)
            else:
                self.multiply(spread, products, rows, share)
            with self.kernel.loop(p.blocks.pieces) as tile:
                self.gather(products, 0, tile, tile, share)

    @property
    def work(self) -> int:
        """Multiply-adds of all blocks."""
        return self.plan.blocks.pieces * self.plan.depths * self.plan.pitch_out

    def place(self, image: Index, number: Index) -> _Place:
        """Where tile `number` of the images from `image` on lies."""
        p, side = self.plan, self.spec.tile
        each = p.down * p.across
        if p.blocks.pieces > each:
            image, number = image + number // each, number % each
        return _Place(image, number // p.across * side, number % p.across * side)

    def spread(self, spread: View, image: Index, number: Index, tile: Index) -> None:
        """The input of tile `number`, transformed, as row `tile` of every place. Beyond the last it is read again."""
        p, given, spec = self.plan, self.plan.source, self.spec
        place = self.place(image, smallest(number, p.blocks.pieces - 1))
        if spec.image:
            first = place.image * (given.height * given.width * given.pitch)
            self.spread_channels(self.source, first, spread, place.row, place.column, tile, whole=True)
            return
        row, column = place.row * given.step - given.top, place.column * given.step - given.left
        reach = (spec.tile - 1) * spec.stride + spec.kernel
        inside = T.And(T.And(row >= 0, row + reach <= spec.height), T.And(column >= 0, column + reach <= spec.width))
        source = self.source.at(place.image)
        for when, whole in ((inside, True), (T.Not(inside), False)):
            with self.kernel.when(when):
                self.spread_channels(source, 0, spread, row, column, tile, whole=whole)

    def spread_channels(
        self, source: Sources, first: Index, spread: View, row: Index, column: Index, tile: Index, *, whole: bool
    ) -> None:
        """All phases and channels of a tile that lies on the image as a whole, or not."""
        p, given, lanes = self.plan, self.plan.source, self.plan.lanes

        def read(part: Part, phase: Phase, i: int, j: int, channel: Index) -> Vector:
            y, x = row + (i * given.step + phase.row), column + (j * given.step + phase.column)
            offset = first + (y * given.width + x) * part.pitch + channel
            if whole:
                return part.view.vector(offset, lanes)
            on_image = T.And(T.And(y >= 0, y < given.height), T.And(x >= 0, x < given.width))
            return T.if_then_else(on_image, part.view.vector(offset, lanes), self.transforms.number(0.0))

        for number, phase in enumerate(p.phases):
            with self.kernel.loop(given.pitch // lanes) as vector:
                values = [self.kernel.registers(phase.columns, lanes, self.dtype) for _ in range(phase.rows)]
                for part in source:
                    with self.kernel.when(part.holds(vector * lanes, given.pitch)):
                        for i, j in product(range(phase.rows), range(phase.columns)):
                            values[i][j].value = read(part, phase, i, j, vector * lanes - part.first)
                results = self.transforms.spread([[register.value for register in line] for line in values])
                for group in p.groups:
                    for at, (i, j) in enumerate(group.places):
                        if number in group.phases:
                            mine = group.spread + at * p.plane(group.pitch) + group.phases.index(number) * given.pitch
                            spread.store(mine + tile * group.pitch + vector * lanes, results[i][j], lanes)

    def multiply(self, spread: View, products: View, rows: Index, share: _Share) -> None:
        """A matrix product for each place: tiles x input channels by input x output channels."""
        for group in self.plan.groups:
            with self.kernel.loop(len(group.places)) as place:
                for cut in segments(share.vectors, self.plan.tile.vectors):
                    with self.kernel.grid(cut.count, rows) as (panel, number):
                        vector = cut.start + panel * cut.size
                        self.multiply_tile(spread, products, group, place, number, vector, cut.size, share)

    def multiply_tile(
        self, spread: View, products: View, group: Group, place: Index, number: Index, vector: Index, vectors: int,
        share: _Share,
    ) -> None:  # fmt: skip
        """Register tile `number` of a panel of `vectors`, the first of which is number `vector` of its share."""
        p, lanes, pixels = self.plan, self.plan.lanes, self.plan.tile.pixels
        here = group.weights + (place * p.pitch_out + (share.first + vector) * lanes) * group.depth
        sums = Accumulators(self.kernel, self.arithmetic, pixels, vectors)
        sums.clear()
        first = group.spread + place * p.plane(group.pitch) + number * (pixels * group.pitch)
        next_panel = here + group.depth * vectors * lanes
        tiles = p.room // pixels
        ahead = Ahead.plan(self.arithmetic, next_panel, group.depth, vectors, tiles, number)
        for start, done, length in self.runs(group):
            offsets = [first + start + i * group.pitch for i in range(pixels)]
            passed = ahead and ahead.after(done // self.arithmetic.unroll)
            begin, apart = here + done * vectors * lanes, self.arithmetic.ends_apart
            sums.accumulate(spread, offsets, self.weights, begin, length, passed, apart=apart)
        target = (group.first + place) * p.plane(share.pitch) + number * (pixels * share.pitch) + vector * lanes

        def store(i: int, v: int, value: Vector) -> None:
            products.store(target + i * share.pitch + v * lanes, value, lanes)

        sums.finish(store)

    def runs(self, group: Group) -> list[tuple[int, int, int]]:
        """(start, products before it, products) of the channels of a tile that lie side by side."""
        p, given = self.plan, self.plan.source
        if self.spec.image or given.pitch == p.channels:
            return [(0, 0, group.depth)]
        return [(i * given.pitch, i * p.channels, p.channels) for i in range(len(group.phases))]

    def gather(self, products: View, image: Index, number: Index, tile: Index, share: _Share) -> None:
        """The products of one tile transformed to its outputs, finished and stored."""
        p, spec, lanes = self.plan, self.spec, self.plan.lanes
        place, plane, hold = self.place(image, number), p.plane(share.pitch), self.transforms.hold
        output = self.output.at(place.image)
        planes = {at: group.first + i for group in p.groups for i, at in enumerate(group.places)}
        with self.kernel.loop(share.vectors) as vector:
            start, channel = tile * share.pitch + vector * lanes, (share.first + vector) * lanes
            line = range(p.size)
            values = [[hold(products.vector(start + planes[i, j] * plane, lanes)) for j in line] for i in line]
            bias = hold(self.bias.vector(channel, lanes))
            results = self.transforms.gather(values)
            for i, j in np.ndindex(spec.tile, spec.tile):
                on_rows = self.exists(place.row + i, i, p.out_height)
                on_columns = self.exists(place.column + j, j, p.out_width)
                with self.kernel.when(on_rows), self.kernel.when(on_columns):
                    offset = ((place.row + i) * p.out_width + place.column + j) * p.pitch_out + channel
                    output.write(offset, results[i][j] + bias, channel)

    def exists(self, place: Index, inside: int, extent: int) -> Any:
        """The condition that an output lies on the map: the last tile of a line may reach beyond it."""
        rest = extent % self.spec.tile
        return True if rest == 0 or inside < rest else place < extent

    @property
    def dtype(self) -> str:
        return self.arithmetic.activation
