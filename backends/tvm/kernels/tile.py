"""The register-tile rule, and how an extent is cut into tiles and shared out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Index, smallest

# Multiply-adds below which waking the other threads costs more than they save (about 10 microseconds of one core).
WORTH_THREADS = 500_000
TAIL_COST = 0.01  # of a kernel's time for each further loop body: its code has to be fetched too
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


@cache
def register_tile(
    arithmetic: Arithmetic, pixels: int, vectors: int, reserved: int = 0, totals: int = 0, multiple: int = 1
) -> Tile:
    """The tile that covers `pixels` x `vectors` at the least estimated time, tails included.

    `reserved` registers per vector are kept free, and `totals` per accumulator. Vectors come in whole `multiple`s.
    """

    def time(tile: Tile) -> float:
        cut = [
            (rows.count * columns.count, rows.size, columns.size)
            for rows in segments(pixels, tile.pixels)
            for columns in segments(vectors, tile.vectors)
        ]
        return sum(count * arithmetic.time(p, v) for count, p, v in cut) * (1 + TAIL_COST * (len(cut) - 1))

    candidates = [
        Tile(p, v)
        for p in range(1, min(pixels, WIDEST) + 1)
        for v in range(multiple, min(vectors, arithmetic.registers) + 1, multiple)
        if (p, v) == (1, multiple)
        or arithmetic.registers_used(p, v) + reserved * v + totals * p * v <= arithmetic.registers
    ]
    return min(candidates, key=time)


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


def input_blocks(arithmetic: Arithmetic, bytes_read: int, pieces: int, panels: int) -> Blocks:
    """Cut `pieces` of the input into blocks, between which the weights are read again.

    A block should stay in a core's cache while all panels of weights pass over it, and blocks x panels should keep
    every core busy.
    """
    for_cache = -(-bytes_read // arithmetic.cache)
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
