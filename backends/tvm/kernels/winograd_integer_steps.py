"""What Winograd in integers does to a block of tiles: transform its input, multiply, transform the products."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from ..arithmetic import Integers
from ..arithmetic.arm_words import words
from .builder import Index, Kernel, Vector, View
from .microkernel import Accumulators, halved
from .output import Output
from .prefetches import Ahead
from .shapes import IntegerWinograd, round_up
from .tile import segments
from .winograd_integer_plan import Block, Group, Plan, Region
from .winograd_integer_points import PLACES, Points, points_of
from .winograd_integer_transforms import Lanes, sums
from .winograd_plan import taps_of


class Spot(NamedTuple):
    """A tile of a region: its image in the block, its line and column among the region's tiles."""

    image: Index
    line: Index
    column: Index


class Patch(NamedTuple):
    """A register tile of products: its first tile and how many; its first vector in a share and how many."""

    tile: Index
    tiles: int
    vector: Index
    vectors: int


@dataclass(frozen=True)
class Share:
    """Vectors of outputs that are computed together, and the planes of their products. pitch: elements from one tile to
    the next."""

    first: Index
    vectors: int
    pitch: int
    products: View


def rows_of(spec: IntegerWinograd, block: Block) -> int:
    """Rows of input, with the padding, that the outputs of a block are made of."""
    return spec.stride * (block.rows + taps_of(spec) - 1)


@dataclass(frozen=True)
class Steps:
    """source: the block's input with its padding, from element `start` on; line: elements of one of its rows; spread:
    its planes of transformed input."""

    kernel: Kernel
    arithmetic: Integers
    spec: IntegerWinograd
    plan: Plan
    block: Block
    source: View
    start: Index
    line: int
    spread: View

    def spread_tile(self, region: Region, spot: Spot) -> None:
        """The input of a tile, transformed, at every place that it has: eight channels at a time, or four."""
        p, stride, (down, across) = self.plan, self.spec.stride, region.inputs
        run = stride * p.pitch_in  # bytes that a phase's pixel has in one row
        lanes = 2 * p.lanes if run % (2 * p.lanes) == 0 else p.lanes
        row, column = region.row + spot.line * region.size[0], region.column + spot.column * region.size[1]
        first = self.start + (spot.image * self.rows + row * stride) * self.line + column * run
        mine = self.number(region, spot) * p.depth
        with self.kernel.grid(stride, run // lanes) as (phase, vector):

            def read(i: int, j: int) -> Lanes:
                place = first + (i * stride + phase) * self.line + j * run + vector * lanes
                value = self.source.vector(place, lanes)
                return Lanes(self.kernel, value.astype(f"int16x{lanes}"), lanes, "int16")

            columns = [self.points.spread([read(i, j) for i in range(down)]) for j in range(across)]
            for i, line in zip(PLACES[down], zip(*columns, strict=True), strict=True):
                for j, value in zip(PLACES[across], self.points.spread(line), strict=True):
                    plane = p.places.index((i, j)) * p.plane(self.block.tiles, p.depth)
                    self.spread.store(plane + mine + phase * run + vector * lanes, value.value, lanes)

    def multiply(self, share: Share, weights: View, starts: View) -> None:
        """A matrix product for each place: tiles x input channels by input x output channels."""
        tile = self.plan.tile
        for group in self.block.groups:
            cuts = list(product(segments(share.vectors, tile.vectors), segments(group.tiles, tile.pixels)))
            with self.kernel.loop(group.places) as place:
                for panels, rows in cuts:
                    with self.kernel.grid(panels.count, rows.count) as (panel, number):
                        first, vector = rows.start + number * rows.size, panels.start + panel * panels.size
                        patch = Patch(group.first + first, rows.size, vector, panels.size)
                        self.multiply_patch(share, group, place, patch, weights, starts)

    def multiply_patch(
        self, share: Share, group: Group, place: Index, patch: Patch, weights: View, starts: View
    ) -> None:
        """One register tile at a place of a group."""
        p, how, depth = self.plan, words(self.arithmetic), group.depth
        lanes, channel, plane = p.lanes, (share.first + patch.vector) * p.lanes, group.number + place
        sums = Accumulators(self.kernel, how, patch.tiles, patch.vectors)
        sums.start(starts, self.kernel.select(plane == p.one, p.pitch_out, 0) + channel)
        here = (group.weights + place * depth) * p.pitch_out + channel * depth
        ahead = None
        if patch.tiles == p.tile.pixels:
            rows, number = round_up(group.tiles, patch.tiles) // patch.tiles, (patch.tile - group.first) // patch.tiles
            ahead = Ahead.plan(how, here + depth * patch.vectors * lanes, depth, patch.vectors, rows, number)
        first = plane * p.plane(self.block.tiles, p.depth) + patch.tile * p.depth
        for start, done, length in self.runs(group):
            offsets = [first + start + i * p.depth for i in range(patch.tiles)]
            passed, begin = ahead and ahead.after(done // how.unroll), here + done * patch.vectors * lanes
            sums.accumulate(self.spread, offsets, weights, begin, length, passed, apart=how.ends_apart)
        target = plane * p.plane(self.block.tiles, share.pitch) + patch.tile * share.pitch + patch.vector * lanes
        sums.finish(lambda i, v, value: share.products.store(target + i * share.pitch + v * lanes, value, lanes))

    def gather_tile(self, share: Share, region: Region, spot: Spot, output: Output, row: Index) -> None:
        """The products of a tile transformed to its outputs, finished and stored. row: the first of the block."""
        p, lanes, (tall, wide) = self.plan, self.plan.lanes, region.size
        top, left = row + region.row + spot.line * tall, region.column + spot.column * wide
        with self.kernel.loop(share.vectors) as vector:
            start, channel = self.number(region, spot) * share.pitch + vector * lanes, (share.first + vector) * lanes

            def read(i: int, j: int) -> Lanes:
                plane = p.places.index((i, j)) * p.plane(self.block.tiles, share.pitch)
                return Lanes(self.kernel, share.products.vector(plane + start, lanes), lanes, "int32")

            points, taps, (down, across) = self.points, taps_of(self.spec), region.inputs
            columns = [points.gather([read(i, j) for i in PLACES[down]], taps) for j in PLACES[across]]
            rest: list[tuple[Index, Vector]] = []  # outputs that do not fill a store yet
            for i, line in enumerate(zip(*columns, strict=True)):
                pixel = ((top + i) * p.out_width + left) * p.pitch_out + channel
                for j, value in enumerate(points.gather(line, taps)):
                    shift = points.shifts[down][i] + points.shifts[across][j]
                    rest.append((pixel + j * p.pitch_out, sums(value, points, shift, lanes)))
                    if len(rest) == output.together:
                        self.write(output, rest, channel)
                        rest = []
            for at, count in halved(len(rest), output.together):
                self.write(output, rest[at : at + count], channel)

    def write(self, output: Output, pixels: list[tuple[Index, Vector]], channel: Index) -> None:
        """Outputs with the places where they go."""
        places, values = zip(*pixels, strict=True)
        output.write_runs(places, values, [channel] * len(pixels))

    @property
    def points(self) -> Points:
        """Where its polynomials are evaluated."""
        return points_of(wide=self.spec.wide)

    @property
    def rows(self) -> int:
        """Of the input, with its padding, that an image of the block has."""
        return rows_of(self.spec, self.block)

    def runs(self, group: Group) -> list[tuple[int, int, int]]:
        """(start, channels before it, channels) of those of a tile that lie side by side, at the places of a group."""
        pitch, channels = self.plan.pitch_in, self.spec.in_channels
        found: list[tuple[int, int, int]] = []
        for number, phase in enumerate(group.phases):
            start, before, length = found[-1] if found else (0, 0, 0)
            if found and start + length == phase * pitch:
                found[-1] = start, before, length + channels
            else:
                found.append((phase * pitch, number * channels, channels))
        return found

    def number(self, region: Region, spot: Spot) -> Index:
        """Of a tile in its block."""
        return region.first + (spot.image * region.down + spot.line) * region.across + spot.column
