"""How a Winograd convolution of integers is cut: tiles of four and of three outputs a side, blocks of them, parts.

Six or more outputs in a line are whole tiles of four and three, so that none reaches beyond the map: seven are eleven
places, where two tiles of four would be twelve.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from ..arithmetic import Integers
from ..arithmetic.arm_words import words
from .shapes import IntegerWinograd, round_up
from .tile import Tile, register_tile
from .winograd_integer_transforms import ONE, PLACES

LEAST = 3  # outputs per side: the smallest tile


@dataclass(frozen=True)
class Line:
    """An extent of outputs: tiles of four, then tiles of three."""

    extent: int
    fours: int
    threes: int

    @staticmethod
    def of(extent: int) -> Line:
        tiles = -(-extent // 4)
        threes = min(tiles, 4 * tiles - extent)
        return Line(extent, tiles - threes, threes)

    def count(self, size: int) -> int:
        """Tiles of a size."""
        return self.fours if size == 4 else self.threes

    def first(self, size: int) -> int:
        """Where the tiles of a size begin."""
        return 0 if size == 4 else 4 * self.fours


@dataclass(frozen=True)
class Region:
    """Tiles of one shape in a block. size: outputs (down, across) of a tile; first: tiles before these; row, column:
    where they begin, in outputs of the block; down, across: tiles of an image."""

    size: tuple[int, int]
    first: int
    row: int
    column: int
    down: int
    across: int


@dataclass(frozen=True)
class Group:
    """Neighbouring places that the same tiles have. number: of the first place; first: the first of the tiles."""

    number: int
    places: int
    first: int
    tiles: int


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

    def plane(self, tiles: int, pitch: int) -> int:
        """Elements from one place to the next: a vector more than needed, or all would share one set of the cache."""
        return tiles * pitch + 2 * self.lanes

    def products(self, spec: IntegerWinograd) -> int:
        """Multiply-adds of an image, lanes of outputs that are none included."""
        each = sum(block.count * group.places * group.tiles for block in self.blocks for group in block.groups)
        return each // self.images * spec.in_channels * self.pitch_out


def output_of(spec: IntegerWinograd) -> tuple[int, int]:
    """Height and width of the result."""
    top, bottom, left, right = spec.padding
    return spec.height + top + bottom - 2, spec.width + left + right - 2


def is_cut(extent: int) -> bool:
    """Whether an extent of outputs comes out in whole tiles."""
    return extent >= LEAST and extent != 5


def plan(spec: IntegerWinograd, arithmetic: Integers) -> Plan:
    lanes, (out_height, out_width) = arithmetic.lanes, output_of(spec)
    pitch_in, pitch_out = round_up(spec.in_channels, lanes), round_up(spec.out_channels, lanes)
    depth = round_up(pitch_in, 2 * lanes)
    down, across = Line.of(out_height), Line.of(out_width)
    places = _places(down, across)
    tiles = (down.fours + down.threes) * (across.fours + across.threes)
    heavy = pitch_out >= tiles
    vectors, images, parts = pitch_out // lanes, 1, 1
    if heavy:
        batch = spec.batch or 1
        images = max(n for n in range(1, batch + 1) if batch % n == 0 and n * tiles <= pitch_out)
        parts = next(n for n in range(min(arithmetic.cores, vectors), 0, -1) if vectors % n == 0)
        blocks = (_block(down, across, (4, 3), 0, images, places),)
    else:
        each = len(places) * (across.fours + across.threes) * (2 * depth + 4 * pitch_out)
        most = max(1, 2 * arithmetic.cache // each)
        blocks = tuple(_strips(down, across, size, most, places) for size in (4, 3) if down.count(size))
    most = max(group.tiles for block in blocks for group in block.groups)
    each = vectors // parts
    tile = register_tile(words(arithmetic), most, each, multiple=1 if each % 2 else 2)
    return Plan(
        out_height, out_width, pitch_in, pitch_out, depth, places, blocks, heavy, images, parts, tile, lanes
    )  # fmt: skip


def _places(down: Line, across: Line) -> tuple[tuple[int, int], ...]:
    """All places that some tile has: those that all have first, then those of the tiles of four rows, then columns."""
    rows, columns = (4 if line.fours else 3 for line in (down, across))
    both = product(PLACES[rows], PLACES[columns])
    return tuple(sorted(both, key=lambda at: (at[1] not in PLACES[3], at[0] not in PLACES[3], at)))


def _strips(down: Line, across: Line, size: int, most: int, places: tuple[tuple[int, int], ...]) -> Block:
    """Lines of tiles, as many in a block as divide them and are not above `most`."""
    lines = down.count(size)
    each = max(n for n in range(1, lines + 1) if lines % n == 0 and n <= most)
    strip = Line(each * size, *((each, 0) if size == 4 else (0, each)))
    return _block(strip, across, (size,), down.first(size), 1, places, lines // each)


def _block(
    down: Line, across: Line, sizes: tuple[int, ...], row: int, images: int, places: tuple[tuple[int, int], ...],
    count: int = 1,
) -> Block:  # fmt: skip
    """Regions in an order in which the tiles of every place lie side by side."""
    regions, first = [], 0
    for size in [(4, 3), (4, 4), (3, 4), (3, 3)]:
        tall, wide = down.count(size[0]), across.count(size[1])
        if size[0] in sizes and tall and wide:
            regions.append(Region(size, first, down.first(size[0]), across.first(size[1]), tall, wide))
            first += images * tall * wide
    return Block(tuple(regions), _groups(regions, places, images), row, down.extent, count, first)


def _groups(regions: list[Region], places: tuple[tuple[int, int], ...], images: int) -> tuple[Group, ...]:
    """Neighbouring places with the same tiles."""
    groups: list[Group] = []
    for number, (i, j) in enumerate(places):
        those = [region for region in regions if i in PLACES[region.size[0]] and j in PLACES[region.size[1]]]
        if not those:
            continue
        first, tiles = those[0].first, sum(images * region.down * region.across for region in those)
        last = groups[-1] if groups else None
        if last and (last.first, last.tiles, last.number + last.places) == (first, tiles, number):
            groups[-1] = Group(last.number, last.places + 1, first, tiles)
        else:
            groups.append(Group(number, 1, first, tiles))
    return tuple(groups)
