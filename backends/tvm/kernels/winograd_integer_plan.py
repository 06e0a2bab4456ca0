"""How a Winograd convolution of integers is cut: tiles of six and of five inputs a side, blocks of them, parts.

With three taps six or more outputs in a line are whole tiles of four and three, so that none reaches beyond the map:
seven are eleven places, where two tiles of four would be twelve. With four taps tiles have three outputs and two.
Phases of a stride that meet a tap less than others have no products at infinity, where that tap would be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from ..arithmetic import Integers
from ..arithmetic.arm_words import words
from .shapes import IntegerWinograd, round_up
from .tile import Tile, register_tile
from .winograd_integer_points import INFINITY, ONE, PLACES
from .winograd_plan import output_of, taps_of

LARGE, SMALL = PLACES  # inputs of a tile, per side


@dataclass(frozen=True)
class Line:
    """An extent of outputs: large tiles, then small ones. most: outputs of a large one; small ones have one less."""

    extent: int
    most: int
    large: int
    small: int

    @staticmethod
    def of(extent: int, taps: int) -> Line:
        most = LARGE - taps + 1
        tiles = -(-extent // most)
        small = min(tiles, most * tiles - extent)
        return Line(extent, most, tiles - small, small)

    @property
    def is_whole(self) -> bool:
        """Whether its tiles cover it and nothing beyond."""
        return self.most * self.large + (self.most - 1) * self.small == self.extent

    def count(self, inputs: int) -> int:
        """Tiles of so many inputs."""
        return self.large if inputs == LARGE else self.small

    def first(self, inputs: int) -> int:
        """Where they begin."""
        return 0 if inputs == LARGE else self.most * self.large


@dataclass(frozen=True)
class Region:
    """Tiles of one shape in a block. inputs, size: inputs and outputs (down, across) of a tile; first: tiles before
    these; row, column: where they begin, in outputs of the block; down, across: tiles of an image."""

    inputs: tuple[int, int]
    size: tuple[int, int]
    first: int
    row: int
    column: int
    down: int
    across: int


@dataclass(frozen=True)
class Group:
    """Neighbouring places that the same tiles and phases have.

    number: of the first place; first: the first of the tiles; phases: numbers of those that have products there; depth:
    channels of them together; weights: where those of the first place begin, per output.
    """

    number: int
    places: int
    first: int
    tiles: int
    phases: tuple[int, ...]
    depth: int
    weights: int


@dataclass(frozen=True)
class Block:
    """Tiles that are computed together: `count` such blocks lie one below the other, from output `row` on."""

    regions: tuple[Region, ...]
    groups: tuple[Group, ...]
    row: int
    rows: int
    count: int
    tiles: int


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from a spec.

    pitch_in, pitch_out: bytes of a pixel, and lanes of its outputs; depth: elements of a tile's channels at one place;
    places: (row, column) of each, among six points; images: of a block, where weights are larger than a map
    (`heavy`): they are then read once for all tiles, and the outputs are cut into parts, one for each core.
    """

    out_height: int
    out_width: int
    pitch_in: int
    pitch_out: int
    depth: int
    places: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]
    heavy: bool
    images: int
    parts: int
    tile: Tile
    lanes: int = field(repr=False)

    @property
    def one(self) -> int:
        """The number of the place where a bias is added."""
        return self.places.index((ONE, ONE))

    @property
    def tiles(self) -> int:
        """Of an image."""
        return sum(block.count * block.tiles for block in self.blocks) // self.images

    def plane(self, tiles: int, pitch: int) -> int:
        """Elements from one place to the next: a vector more than needed, or all would share one set of the cache."""
        return tiles * pitch + 2 * self.lanes

    def products(self, spec: IntegerWinograd) -> int:
        """Multiply-adds of an image, lanes of outputs that are none included."""
        groups = [(block.count, group) for block in self.blocks for group in block.groups]
        each = sum(count * group.places * group.tiles * group.depth for count, group in groups)
        return each // self.images * self.pitch_out


def phases_at(spec: IntegerWinograd, place: tuple[int, int]) -> tuple[int, ...]:
    """Numbers of the phases, row by row, that have products at a place."""
    taps = [len(range(phase, spec.kernel, spec.stride)) for phase in range(spec.stride)]
    lines = [[i for i, count in enumerate(taps) if at != INFINITY or count == taps_of(spec)] for at in place]
    return tuple(row * spec.stride + column for row, column in product(*lines))


def weights_of(spec: IntegerWinograd, places: tuple[tuple[int, int], ...]) -> int:
    """Of an output, at all of some places."""
    return sum(len(phases_at(spec, place)) for place in places) * spec.in_channels


def lines_of(spec: IntegerWinograd) -> tuple[Line, Line]:
    """How the outputs are cut downwards and across."""
    down, across = (Line.of(extent, taps_of(spec)) for extent in output_of(spec))
    return down, across


def plan(spec: IntegerWinograd, arithmetic: Integers) -> Plan:
    lanes, (down, across) = arithmetic.lanes, lines_of(spec)
    pitch_in, pitch_out = round_up(spec.in_channels, lanes), round_up(spec.out_channels, lanes)
    depth = round_up(spec.stride**2 * pitch_in, 2 * lanes)
    places = _places(spec, down, across)
    tiles = prod(line.large + line.small for line in (down, across))
    heavy = pitch_out >= tiles
    vectors, images, parts = pitch_out // lanes, 1, 1
    if heavy:
        batch = spec.batch or 1
        images = max(n for n in range(1, batch + 1) if batch % n == 0 and n * tiles <= pitch_out)
        parts = next(n for n in range(min(arithmetic.cores, vectors), 0, -1) if vectors % n == 0)
        blocks = (_block(spec, down, across, (LARGE, SMALL), 0, images, places),)
    else:
        each = len(places) * (across.large + across.small) * (2 * depth + 4 * pitch_out)
        most = max(1, 2 * arithmetic.cache // each)
        blocks = tuple(_strips(spec, down, across, size, most, places) for size in (LARGE, SMALL) if down.count(size))
    most, each = max(group.tiles for block in blocks for group in block.groups), vectors // parts
    tile = register_tile(words(arithmetic), most, each, multiple=1 if each % 2 else 2)
    return Plan(
        down.extent, across.extent, pitch_in, pitch_out, depth, places, blocks, heavy, images, parts, tile, lanes
    )  # fmt: skip


def _places(spec: IntegerWinograd, down: Line, across: Line) -> tuple[tuple[int, int], ...]:
    """All places that some tile has: those that all have first, then those of large rows, then of large columns; each
    by the phases that they have."""
    rows, columns = (PLACES[LARGE if line.large else SMALL] for line in (down, across))
    shared = PLACES[SMALL]

    def order(at: tuple[int, int]) -> tuple[Any, ...]:
        return at[1] not in shared, at[0] not in shared, phases_at(spec, at), at

    return tuple(sorted(product(rows, columns), key=order))


def _strips(
    spec: IntegerWinograd, down: Line, across: Line, inputs: int, most: int, places: tuple[tuple[int, int], ...]
) -> Block:
    """Lines of tiles, as many in a block as divide them and are not above `most`."""
    lines, size = down.count(inputs), down.most - (inputs == SMALL)
    each = max(n for n in range(1, lines + 1) if lines % n == 0 and n <= most)
    strip = Line(each * size, down.most, *((each, 0) if inputs == LARGE else (0, each)))
    return _block(spec, strip, across, (inputs,), down.first(inputs), 1, places, lines // each)


def _block(
    spec: IntegerWinograd, down: Line, across: Line, inputs: tuple[int, ...], row: int, images: int,
    places: tuple[tuple[int, int], ...], count: int = 1,
) -> Block:  # fmt: skip
    """Regions in an order in which the tiles of every place lie side by side."""
    regions, first = [], 0
    for tall, wide in [(LARGE, SMALL), (LARGE, LARGE), (SMALL, LARGE), (SMALL, SMALL)]:
        lines, columns = down.count(tall), across.count(wide)
        if tall in inputs and lines and columns:
            size = down.most - (tall == SMALL), across.most - (wide == SMALL)
            regions.append(Region((tall, wide), size, first, down.first(tall), across.first(wide), lines, columns))
            first += images * lines * columns
    return Block(tuple(regions), _groups(spec, regions, places, images), row, down.extent, count, first)


def _groups(
    spec: IntegerWinograd, regions: list[Region], places: tuple[tuple[int, int], ...], images: int
) -> tuple[Group, ...]:
    """Neighbouring places with the same tiles and phases."""
    groups: list[Group] = []
    for number, (i, j) in enumerate(places):
        those = [region for region in regions if i in PLACES[region.inputs[0]] and j in PLACES[region.inputs[1]]]
        if not those:
            continue
        first, tiles = those[0].first, sum(images * region.down * region.across for region in those)
        last, phases = groups[-1] if groups else None, phases_at(spec, (i, j))
        alike = last and (last.first, last.tiles, last.phases, last.number + last.places)
        if last and alike == (first, tiles, phases, number):
            groups[-1] = replace(last, places=last.places + 1)
        else:
            depth, weights = len(phases) * spec.in_channels, weights_of(spec, places[:number])
            groups.append(Group(number, 1, first, tiles, phases, depth, weights))
    return tuple(groups)
