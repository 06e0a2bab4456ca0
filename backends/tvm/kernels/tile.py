"""The register tile of a kernel, by rule or as it was measured, and how an extent is cut into tiles and shared out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from ...tiles import TileError
from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Index, smallest
from .epilogues import Finish
from .shapes import round_up

# Multiply-adds below which waking the other threads costs more than they save (about 10 microseconds of one core).
WORTH_THREADS = 500_000
TAIL_COST = 0.01  # of a kernel's time for each further loop body: its code has to be fetched too
MISSES = 16  # cache lines that an x86 core waits for at a time
# Of the time where a map comes from beyond the cache: for more rows than that, or for no register to spare, since LLVM,
# which moves no load across a prefetch, then spills sums.
FAR_COST = 0.1
WIDEST = 28  # pixels: beyond it the registers of every CPU spill


@dataclass(frozen=True)
class Tile:
    """Accumulators held in registers over the whole reduction: `pixels` x `vectors`."""

    pixels: int
    vectors: int


@dataclass(frozen=True)
class Segment:
    """`count` neighbouring pieces of `size`, the first at `start`."""

    start: Index
    count: Index
    size: int


def segments(extent: int, size: int) -> Iterator[Segment]:
    """The whole pieces of an extent, then its tail."""
    count, rest = divmod(extent, size)
    if count:
        yield Segment(0, count, size)
    if rest:
        yield Segment(count * size, 1, rest)


@dataclass(frozen=True)
class Tiling:
    """What the register tiles of a kernel have to cover, and what else its registers hold.

    `reserved` registers per vector are kept free, and `totals` per accumulator. Vectors come in whole `multiple`s.
    whole: a tile that reaches beyond the last pixel is computed all the same, not a smaller one. far: the input is
    asked for ahead, from beyond the cache.
    """

    pixels: int
    vectors: int
    reserved: int = 0
    totals: int = 0
    multiple: int = 1
    whole: bool = False
    far: bool = False

    def fits(self, tile: Tile, arithmetic: Arithmetic) -> bool:
        """Whether a tile lies within the extents and the registers."""
        if tile.pixels > self.pixels or tile.vectors > self.vectors or tile.vectors % self.multiple:
            return False
        used = arithmetic.registers_used(tile.pixels, tile.vectors)
        used += self.reserved * tile.vectors + self.totals * tile.pixels * tile.vectors
        return tile == Tile(1, self.multiple) or used <= arithmetic.registers

    def time(self, tile: Tile, arithmetic: Arithmetic) -> float:
        """Estimated time of one k step of all tiles, tails included, in multiply-adds at peak rate."""
        pixels = round_up(self.pixels, tile.pixels) if self.whole else self.pixels
        cut = [
            (rows.count * columns.count, rows.size, columns.size)
            for rows in segments(pixels, tile.pixels)
            for columns in segments(self.vectors, tile.vectors)
        ]
        time = sum(count * arithmetic.time(p, v) for count, p, v in cut) * (1 + TAIL_COST * (len(cut) - 1))
        return time * (1 + FAR_COST) if self.far and not self.suits_far(tile, arithmetic) else time

    def suits_far(self, tile: Tile, arithmetic: Arithmetic) -> bool:
        """Whether a tile leaves registers to spare, and its rows can be waited for together."""
        spare = arithmetic.registers - arithmetic.registers_used(tile.pixels, tile.vectors)
        return spare >= tile.vectors and tile.pixels <= MISSES


@cache
def candidates(tiling: Tiling, arithmetic: Arithmetic) -> tuple[Tile, ...]:
    """All that fit, that of the least estimated time first; of equals the smallest, whose last tile differs least."""
    tiles = (
        Tile(p, v)
        for p in range(1, min(tiling.pixels, WIDEST) + 1)
        for v in range(1, min(tiling.vectors, arithmetic.registers) + 1)
    )
    fitting = [tile for tile in tiles if tiling.fits(tile, arithmetic)]
    return tuple(sorted(fitting, key=lambda tile: (round(tiling.time(tile, arithmetic), 6), tile.pixels)))


def register_tile(
    arithmetic: Arithmetic, pixels: int, vectors: int, reserved: int = 0, totals: int = 0, multiple: int = 1
) -> Tile:
    """The tile that covers `pixels` x `vectors` at the least estimated time; the rest as in Tiling."""
    return candidates(Tiling(pixels, vectors, reserved, totals, multiple), arithmetic)[0]


def tile_of(spec: Any, arithmetic: Arithmetic, tiling: Tiling) -> Tile:
    """The tile of a kernel: the measured one where the arithmetic knows one for this layer, else the rule's.

    Raises TileError for a measured one that does not fit: it was made by hand, or for other kernels.
    """
    measured = arithmetic.tiles.get(arithmetic.name, layer_name(spec))
    if measured is None:
        return candidates(tiling, arithmetic)[0]
    pixels, vectors = measured
    tile = Tile(min(pixels, tiling.pixels), vectors)  # more cores may have left fewer pixels for each
    if not tiling.fits(tile, arithmetic):
        what = f"a tile of {pixels} pixels x {vectors} vectors does not fit '{layer_name(spec)}'"
        raise TileError("tile file", what, "remove this layer from the file, or measure it again with tune=N")
    return tile


@cache
def layer_name(spec: Any) -> str:
    """The shape of a layer in words, without its epilogue or where its input lies: `pointwise batch=1 height=7 ...`."""
    return " ".join([type(spec).__name__.lower(), *_sizes(spec)])


def _sizes(spec: Any) -> Iterator[str]:
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Finish) or field.name == "parts":
            continue
        if is_dataclass(value):
            yield from _sizes(value)
        else:
            several = value if isinstance(value, tuple) else (value,)
            yield f"{field.name}={'x'.join('any' if each is None else str(int(each)) for each in several)}"


@dataclass(frozen=True)
class Blocks:
    """`count` blocks of `size` pieces each; the last one may be smaller."""

    count: int
    size: int
    pieces: Index

    def __getitem__(self, block: Index) -> tuple[Index, Index]:
        """(first piece, number of pieces) of a block."""
        first = block * self.size
        whole = self.count == 1 or self.count * self.size == self.pieces
        return first, self.size if whole else smallest(self.size, self.pieces - first)


def cut_blocks(pieces: int, count: int) -> Blocks:
    """Cut pieces into at most `count` blocks, none of them empty."""
    size = -(-pieces // max(1, min(count, pieces)))
    return Blocks(-(-pieces // size), size, pieces)


@dataclass(frozen=True)
class Traffic:
    """Bytes of a layer: of its input, of where it is finished (its output, and the residual), and of its weights."""

    read: int
    finished: int
    weights: float

    def blocks(self, arithmetic: Arithmetic) -> int:
        """Into how many blocks the layer is cut, so that each stays in a core's cache while all weights pass over it.

        Weights that are larger than the cache themselves come from further away each time: then only the input counts.
        """
        stays = self.read + (self.finished if self.weights <= arithmetic.cache else 0)
        return -(-stays // arithmetic.cache)


def input_blocks(arithmetic: Arithmetic, traffic: Traffic, pieces: int, panels: int) -> Blocks:
    """Cut `pieces` of the input into blocks for the cache; blocks x panels should keep every core busy."""
    for_cache = traffic.blocks(arithmetic)
    for_cores = -(-4 * arithmetic.cores // panels) if arithmetic.cores > 1 else 1
    return cut_blocks(pieces, max(for_cache, for_cores))


def is_parallel(arithmetic: Arithmetic, work: int) -> bool:
    """Whether a kernel of `work` multiply-adds is shared out among threads."""
    return arithmetic.cores > 1 and work >= WORTH_THREADS


def lies_in(panel: Index, segment: Segment, vectors: int, count: int) -> Any:
    """The condition that panel number `panel` of `count`, each of `vectors`, belongs to a segment."""
    if segment.count == count:
        return True
    first = segment.start // vectors
    return panel == first if segment.count == 1 else T.And(panel >= first, panel < first + segment.count)
