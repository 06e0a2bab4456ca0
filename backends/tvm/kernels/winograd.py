"""3x3 convolutions of stride 1 by Winograd's minimal filtering: m x m outputs from (m + 2)^2 products per channel.

A block of tiles is transformed, multiplied by one matrix for each of its (m + 2)^2 places, and transformed back, while
it stays in cache. Winograd pays where maps are large; its weights take (m + 2)^2 / 9 of the room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from . import packing, product_weights
from .builder import Index, Kernel, Vector, View, smallest
from .microkernel import Accumulators, Ahead
from .output import Output
from .shapes import Signature, Winograd, round_up
from .tile import Blocks, Tile, Tiling, is_parallel, segments, tile_of
from .winograd_matrices import TAPS, Matrix, matrices


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from a spec.

    size: of a tile's input; places: products per tile and channel; down, across: tiles of an image; blocks: of the
    tiles of all images, or of each image where the batch is not known; room: tiles that the workspace holds.
    """

    size: int
    places: int
    out_height: int
    out_width: int
    down: int
    across: int
    pitch_in: int
    pitch_out: int
    tiling: Tiling
    tile: Tile
    blocks: Blocks
    room: int


def plan(spec: Winograd, arithmetic: Arithmetic) -> Plan:
    size, lanes = spec.tile + TAPS - 1, arithmetic.lanes
    top, bottom, left, right = spec.padding
    out_height, out_width = spec.height + top + bottom - (TAPS - 1), spec.width + left + right - (TAPS - 1)
    down, across = -(-out_height // spec.tile), -(-out_width // spec.tile)
    pitch_in, pitch_out = round_up(spec.in_channels, lanes), round_up(spec.out_channels, lanes)
    tiles, itemsize = (spec.batch or 1) * down * across, np.dtype(arithmetic.activation).itemsize
    per_tile = itemsize * size**2 * (pitch_in + pitch_out)
    for_cache = -(-tiles * per_tile // (2 * arithmetic.cache))
    count = max(for_cache, arithmetic.cores if arithmetic.cores > 1 else 1)
    most = -(-tiles // count)
    extents = Tiling(most, pitch_out // lanes)
    tile = tile_of(spec, arithmetic, extents)
    each = min(round_up(most, tile.pixels), tiles)
    blocks = Blocks(-(-tiles // each), each, tiles)
    room = round_up(each, tile.pixels)
    return Plan(size, size**2, out_height, out_width, down, across, pitch_in, pitch_out, extents, tile, blocks, room)


def tiling(spec: Winograd, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return plan(spec, arithmetic).tiling


def signature(spec: Winograd, arithmetic: Arithmetic) -> Signature:
    p = plan(spec, arithmetic)
    source = (spec.batch, spec.height, spec.width, p.pitch_in)
    output = (spec.batch, p.out_height, p.out_width, p.pitch_out)
    packed = ((p.places * p.pitch_out * spec.in_channels,), arithmetic.weight), ((p.pitch_out,), arithmetic.accumulator)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, p.pitch_out)


def pack(spec: Winograd, arithmetic: Arithmetic, weight: np.ndarray, bias: np.ndarray | None) -> list[np.ndarray]:
    """weight [out, in, 3, 3] -> panels for each place of a tile, transformed in float64; bias."""
    p = plan(spec, arithmetic)
    transform = np.array(matrices(spec.tile, arithmetic.accumulator).weight, np.float64)
    placed = np.einsum("ai,ocij,bj->aboc", transform, np.asarray(weight, np.float64), transform, optimize=True)
    each = placed.reshape(p.places, spec.out_channels, spec.in_channels).astype(np.float32)
    panels = [packing.panels(matrix, arithmetic, p.tile.vectors) for matrix in each]
    return [np.concatenate(panels), packing.lanes_of(bias, spec.out_channels, arithmetic.lanes, arithmetic.accumulator)]


def describe(spec: Winograd, arithmetic: Arithmetic) -> str:
    tile = plan(spec, arithmetic).tile
    how = f"winograd {spec.tile}x{spec.tile} of 3x3"
    return f"{how}, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"


def prim_func(spec: Winograd, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        source, (weights, bias) = given.sources[0], given.weights[:2]
        nest = _Nest(kernel, arithmetic, spec, plan(spec, arithmetic), source, weights, bias, output)
        nest.emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class _Place:
    """The first output of a tile."""

    image: Index
    row: Index
    column: Index


@dataclass(frozen=True)
class _Nest:
    """The three steps of a block of tiles."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: Winograd
    plan: Plan
    source: View
    weights: View
    bias: View
    output: Output

    def emit(self, batch: Index) -> None:
        """Blocks of tiles, those of neighbouring images together where the batch is known."""
        p, spec = self.plan, self.spec
        work = p.blocks.pieces * p.places * spec.in_channels * p.pitch_out
        extents, parallel = (1 if spec.batch else batch, p.blocks.count), is_parallel(self.arithmetic, work)
        with self.kernel.grid(*extents, parallel=parallel) as (image, block):
            first, mine = p.blocks[block]
            spread = self.kernel.workspace(p.places * self.plane(p.pitch_in), self.dtype)
            products = self.kernel.workspace(p.places * self.plane(p.pitch_out), self.dtype)
            rows = (mine + p.tile.pixels - 1) // p.tile.pixels
            with self.kernel.loop(rows * p.tile.pixels) as tile:
                here = self.place(image, smallest(first + tile, p.blocks.pieces - 1))
                self.spread(self.source.at(here.image), spread, here, tile)
            self.multiply(spread, products, rows)
            with self.kernel.loop(mine) as tile:
                here = self.place(image, first + tile)
                self.gather(products, self.output.at(here.image), here, tile)

    def place(self, image: Index, number: Index) -> _Place:
        """Where tile `number` of the images from `image` on lies."""
        p, side = self.plan, self.spec.tile
        each = p.down * p.across
        if p.blocks.pieces > each:
            image, number = image + number // each, number % each
        return _Place(image, number // p.across * side, number % p.across * side)

    def plane(self, pitch: int) -> int:
        """Elements from one place to the next: a vector more than needed, or all would share one set of the cache."""
        return self.plan.room * pitch + self.arithmetic.lanes

    def spread(self, source: View, spread: View, place: _Place, tile: Index) -> None:
        """The input of one tile, transformed, as row `tile` of every place."""
        p, spec = self.plan, self.spec
        row, column = place.row - spec.padding[0], place.column - spec.padding[2]
        inside = T.And(T.And(row >= 0, row + p.size <= spec.height), T.And(column >= 0, column + p.size <= spec.width))
        self.spread_channels(source, spread, row, column, tile, inside, whole=True)
        self.spread_channels(source, spread, row, column, tile, T.Not(inside), whole=False)

    def spread_channels(
        self, source: View, spread: View, row: Index, column: Index, tile: Index, when: Any, *, whole: bool
    ) -> None:
        """All channels of a tile that lies on the image as a whole, or not."""
        p, spec, lanes = self.plan, self.spec, self.arithmetic.lanes

        def read(i: int, j: int, channel: Index) -> Vector:
            offset = ((row + i) * spec.width + column + j) * p.pitch_in + channel
            if whole:
                return source.vector(offset, lanes)
            on_rows = T.And(row + i >= 0, row + i < spec.height)
            on_image = T.And(on_rows, T.And(column + j >= 0, column + j < spec.width))
            return T.if_then_else(on_image, source.vector(offset, lanes), self.number(0.0))

        with self.kernel.when(when), self.kernel.loop(p.pitch_in // lanes) as vector:
            channel = vector * lanes
            values = [[self.hold(read(i, j, channel)) for j in range(p.size)] for i in range(p.size)]
            for place, value in enumerate(_both_ways(self.spread_line, values)):
                spread.store(place * self.plane(p.pitch_in) + tile * p.pitch_in + channel, value, lanes)

    def multiply(self, spread: View, products: View, rows: Index) -> None:
        """A matrix product for each place: tiles x input channels by input x output channels."""
        p, lanes, pixels = self.plan, self.arithmetic.lanes, self.plan.tile.pixels
        with self.kernel.loop(p.places) as place:
            for cut in segments(p.pitch_out // lanes, p.tile.vectors):
                with self.kernel.grid(cut.count, rows) as (panel, number):
                    channel = (cut.start + panel * cut.size) * lanes
                    here = (place * p.pitch_out + channel) * self.spec.in_channels
                    sums = Accumulators(self.kernel, self.arithmetic, pixels, cut.size)
                    sums.clear()
                    first = place * self.plane(p.pitch_in) + number * (pixels * p.pitch_in)
                    offsets = [first + i * p.pitch_in for i in range(pixels)]
                    ahead = self.ahead(here, number, cut.size)
                    sums.accumulate(spread, offsets, self.weights, here, self.spec.in_channels, ahead)
                    target = place * self.plane(p.pitch_out) + number * (pixels * p.pitch_out) + channel

                    def store(i: int, v: int, value: Vector, target: Index = target) -> None:
                        products.store(target + i * p.pitch_out + v * lanes, value, lanes)

                    sums.finish(store)

    def ahead(self, here: Index, number: Index, vectors: int) -> Ahead | None:
        """What a register tile prefetches of the next panel."""
        p, depth = self.plan, self.spec.in_channels
        next_panel = here + depth * vectors * self.arithmetic.lanes
        return Ahead.plan(self.arithmetic, next_panel, depth, vectors, p.room // p.tile.pixels, number)

    def gather(self, products: View, output: Output, place: _Place, tile: Index) -> None:
        """The products of one tile transformed to its outputs, finished and stored."""
        p, spec, lanes = self.plan, self.spec, self.arithmetic.lanes
        with self.kernel.loop(p.pitch_out // lanes) as vector:
            channel = vector * lanes
            start = tile * p.pitch_out + channel
            offsets = [start + i * self.plane(p.pitch_out) for i in range(p.places)]
            lines = [offsets[i : i + p.size] for i in range(0, p.places, p.size)]
            values = [[self.hold(products.vector(offset, lanes)) for offset in line] for line in lines]
            bias = self.hold(self.bias.vector(channel, lanes))
            results = _both_ways(self.gather_line, values)
            for (i, j), value in zip(np.ndindex(spec.tile, spec.tile), results, strict=True):
                on_rows = self.exists(place.row + i, i, p.out_height)
                on_columns = self.exists(place.column + j, j, p.out_width)
                with self.kernel.when(on_rows), self.kernel.when(on_columns):
                    offset = ((place.row + i) * p.out_width + place.column + j) * p.pitch_out + channel
                    output.write(offset, value + bias, channel)

    def exists(self, place: Index, inside: int, extent: int) -> Any:
        """The condition that an output lies on the map: the last tile of a line may reach beyond it."""
        rest = extent % self.spec.tile
        return True if rest == 0 or inside < rest else place < extent

    def hold(self, value: Vector) -> Vector:
        """The value in a register, so that it is computed once."""
        (register,) = self.kernel.registers(1, self.arithmetic.lanes, self.dtype)
        register.value = value
        return register.value

    def spread_line(self, values: Sequence[Vector]) -> list[Vector]:
        """The input matrix times a line. Mirrored rows share the sums of their even and of their odd terms."""
        rows = matrices(self.spec.tile, self.dtype).input
        results = [self.sum(rows[0], values)]
        for row in rows[1:-1:2]:
            even = self.sum(_every_second(row, 0), values)
            odd = self.sum(_every_second(row, 1), values)
            results += [self.hold(even + odd), self.hold(even - odd)]
        return [*results, self.sum(rows[-1], values)]

    def gather_line(self, values: Sequence[Vector]) -> list[Vector]:
        """The output matrix times a line. Mirrored columns are added for even rows, subtracted for odd ones."""
        rows: Matrix = matrices(self.spec.tile, self.dtype).output
        pairs = [(values[i], values[i + 1]) for i in range(1, len(values) - 1, 2)]
        joined = [
            [self.hold(a + b) for a, b in pairs],
            [self.hold(a - b) for a, b in pairs],
        ]
        results = []
        for i, row in enumerate(rows):
            factors = row[0], *row[1:-1:2], row[-1]
            results.append(self.sum(factors, [values[0], *joined[i % 2], values[-1]]))
        return results

    def sum(self, factors: Sequence[Fraction], values: Sequence[Vector]) -> Vector:
        """The sum of factor * value, in a register. A factor of 1 comes first where there is one: it is no product."""
        terms = sorted(((f, v) for f, v in zip(factors, values, strict=True) if f), key=lambda term: term[0] != 1)
        (factor, value), *rest = terms
        total = self.scaled(value, factor)
        for factor, value in rest:
            scaled = self.scaled(value, abs(factor))
            total = total + scaled if factor > 0 else total - scaled
        return self.hold(total)

    def scaled(self, value: Vector, factor: Fraction) -> Vector:
        return value if factor == 1 else value * self.number(float(factor))

    @property
    def dtype(self) -> str:
        return self.arithmetic.activation

    def number(self, value: float) -> Vector:
        """A number in every lane."""
        return T.broadcast(T.cast(value, self.dtype), self.arithmetic.lanes)


def _both_ways(transform: Callable[[Sequence[Vector]], list[Vector]], values: list[list[Vector]]) -> list[Vector]:
    """matrix @ values @ matrix^T, row by row."""
    columns = [transform(column) for column in zip(*values, strict=True)]
    return [value for row in zip(*columns, strict=True) for value in transform(row)]


def _every_second(row: Sequence[Fraction], start: int) -> list[Fraction]:
    return [factor if i % 2 == start else Fraction(0) for i, factor in enumerate(row)]
