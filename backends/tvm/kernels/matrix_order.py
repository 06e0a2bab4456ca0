"""The order of work on a matrix unit: chunks of panels of weights, groups of tiles, panels; outputs one group later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..arithmetic.tir import T
from .builder import REGISTER_SCOPE, Index, Kernel, View, smallest
from .matrix_block import Block
from .matrix_results import Results, held_constants
from .matrix_tiles import Group, Tiles
from .tile import Segment


@dataclass(frozen=True)
class _Last:
    """The group whose sums are still in the unit: its first tile, its first vector, and whether there is one."""

    words: View

    @staticmethod
    def none() -> _Last:
        words = View(T.alloc_buffer((3,), "int32", scope=REGISTER_SCOPE, layout=None), "int32")
        for place in range(3):
            words.store(place, T.int32(0))
        return _Last(words)

    def set(self, tile: Index, vector: Index) -> None:
        for place, number in enumerate((tile, vector, 1)):
            self.words.store(place, T.cast(number, "int32"))

    @property
    def tile(self) -> Index:
        return self.words.scalar(0)

    @property
    def vector(self) -> Index:
        return self.words.scalar(1)

    @property
    def exists(self) -> Any:
        return self.words.scalar(2) != T.int32(0)


def emit(tiles: Tiles, block: Block, panels: Segment, groups: int) -> None:
    """All pixels of a block by some panels of `panels.size` vectors each, the first from vector `panels.start` on.

    groups: of tiles in the largest block of the kernel.
    """
    kernel, wide = tiles.kernel, panels.size
    tall = tiles.plan.tall_of(wide)
    chunk = tiles.plan.chunk(tiles.arithmetic, groups)
    block = held_constants(kernel, block)
    last = _Last.none()
    results = Results(kernel, block, tiles.sums, last.tile, last.vector, tall, wide)
    count = (block.tiles + tall - 1) // tall
    for first, size in _chunks(kernel, panels.count, chunk):
        start = panels.start + first * wide
        with kernel.loop(count) as number, kernel.loop(size) as panel:
            vector, tile = start + panel * wide, number * tall
            ahead = tiles.ahead(panel, chunk, number, groups, wide, start + chunk * wide)
            starts = [block.start(smallest(tile + i, block.tiles - 1)) for i in range(tall)]
            before = results.holding_multiplier()

            def between(begin: Index, end: Index, before: Results = before) -> None:
                with kernel.when(last.exists):
                    before.write(begin, end)

            group = Group(block.view, starts, vector, wide)
            tiles.compute(group, results.pieces, results.ready, between, ahead)
            last.set(tile, vector)
    with kernel.when(last.exists):
        for number in range(tall * wide):
            tiles.store(number)
        results.holding_multiplier().write(0, results.pieces)


def _chunks(kernel: Kernel, panels: Index, size: int) -> Iterator[tuple[Index, Index]]:
    """(first panel, number of panels) of each chunk."""
    if isinstance(panels, int) and panels <= size:
        yield 0, panels
        return
    with kernel.loop((panels + size - 1) // size) as number:
        first = number * size
        whole = isinstance(panels, int) and panels % size == 0
        yield first, size if whole else smallest(size, panels - first)
