"""Lines of memory that kernels ask for before they need them: weights, lines of results, the next tile's input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from ..arithmetic import Arithmetic
from .builder import Index, View
from .output import Output

CACHE_LINE = 64  # bytes
FEW_TILES = 4  # per cache line of a pass: with more, the processor's own prefetch is in time


@dataclass(frozen=True)
class Ahead:
    """Prefetch of the next panel of weights into L2, shared out among the tiles that use this one.

    Where maps are small and weights large, a panel serves only a few tiles, so the time to fetch the next one shows.
    `start`: offset of this tile's share; `lines`: cache lines per pass of the inner loop; `passed`: passes of this tile
    before the run.
    """

    start: Index
    lines: int
    passed: Index = 0

    @staticmethod
    def plan(
        arithmetic: Arithmetic, next_panel: Index, depth: int, vectors: int, tiles: int, tile: Index
    ) -> Ahead | None:
        """The share of tile number `tile` of `tiles`, for panels of `depth` k steps; None where it would not pay.

        A single tile reads its weights once, front to back, and waits for memory whatever is asked for.
        """
        per_step = vectors * arithmetic.lanes * arithmetic.weight_bytes / CACHE_LINE
        if not 1 < tiles <= FEW_TILES * arithmetic.unroll * per_step:
            return None
        share = ceil(depth * per_step / tiles) * weights_per_line(arithmetic)
        return Ahead(next_panel + tile * share, ceil(arithmetic.unroll * per_step / tiles))

    def after(self, passes: Index) -> Ahead:
        """The same share, when `passes` of it are done."""
        return replace(self, passed=passes)


@dataclass(frozen=True)
class Soon:
    """Prefetch of the lines in which a tile will be finished: those it writes, and those of its residual.

    Where a map is larger than the cache they are far away, and all of a tile's are asked for at once when it ends.
    first: offset of the tile's first output; pitch: elements from one of its pixels to the next.
    """

    views: tuple[tuple[View, bool], ...]  # with whether it is written
    first: Index
    pitch: int
    pixels: int

    @staticmethod
    def plan(
        arithmetic: Arithmetic, output: Output, first: Index, pitch: int, pixels: int, elements: int
    ) -> Soon | None:
        """Those of a tile in a map of `elements`; None where the cache holds the map."""
        if output.bytes_of(elements) <= arithmetic.cache:
            return None
        residual = ((output.residual, False),) if output.residual else ()
        return Soon(((output.target, True), *residual), first, pitch, pixels)


@dataclass(frozen=True)
class Following:
    """Prefetch of the next tile's input into L1, shared out among the passes of this tile.

    Where a map is larger than the cache, all rows of a tile are far away, and each pass that comes to new lines meets
    one of every row: more than the processor can wait for at a time.
    first: offset of the next tile's input; lines: per pass.
    """

    first: Index
    lines: int

    @staticmethod
    def plan(source: View, first: Index, elements: int, passes: int) -> Following | None:
        """That of `elements` of a source from `first` on; None for a tile without whole passes."""
        return Following(first, ceil(elements * source.itemsize / CACHE_LINE / passes)) if passes else None

    def offset(self, source: View, number: Index, line: int) -> Index:
        """What pass `number` asks for."""
        return self.first + (number * self.lines + line) * (CACHE_LINE // source.itemsize)


def weights_per_line(arithmetic: Arithmetic) -> int:
    """Weights in a cache line."""
    return int(CACHE_LINE / arithmetic.weight_bytes)
