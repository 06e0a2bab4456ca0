"""How windows over images of few channels are packed into words of four bytes (`packed_columns`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arithmetic import Arithmetic, Sdot
from .shapes import DirectConv, round_up
from .tile import Tile, Tiling, tile_of

WORD = 4  # bytes that one instruction multiplies, and those of a pixel
STEP = 4  # pixels that fill a register
SHORTEST = 4  # taps of a row: those of fewer do not fill a register


@dataclass(frozen=True)
class Plan:
    """words: of one column; columns: of the packed rows, padding included.

    tails: words of a window that are packed once more, of the columns' last bytes and the first column's; if there are
    any, the first column and those last bytes are multiplied with them alone.
    """

    out_height: int
    out_width: int
    vectors: int
    words: int
    columns: int
    tails: int
    tiling: Tiling
    tile: Tile

    @property
    def whole(self) -> int:
        """Words of a column that are multiplied where they lie."""
        return self.words - (self.tails > 0)

    @property
    def first(self) -> int:
        """The first tap of a row for which they are."""
        return int(self.tails > 0)


def takes(spec: Any, arithmetic: Arithmetic) -> bool:
    """Whether packing saves words."""
    if not isinstance(spec, DirectConv) or not isinstance(arithmetic, Sdot) or spec.image or spec.parts:
        return False
    tall, wide = spec.window.kernel
    fits = spec.in_channels < WORD and spec.groups == 1 and spec.width >= STEP
    return fits and wide >= SHORTEST and spec.window.dilation[1] == 1 and _words(spec) < tall


def _words(spec: DirectConv) -> int:
    return -(-spec.window.kernel[0] * spec.in_channels // WORD)


def free_bytes(spec: DirectConv) -> int:
    """Bytes that the last word of a column leaves free."""
    return _words(spec) * WORD - spec.window.kernel[0] * spec.in_channels


def _tails(spec: DirectConv, vectors: int) -> int:
    """One for each column but the first, and those that are left of it; none where packing takes longer than it saves.

    It takes about as long as two products for each word of four outputs.
    """
    (tall, wide), free = spec.window.kernel, free_bytes(spec)
    left = max(0, tall * spec.in_channels - (wide - 1) * free)
    tails = wide - 1 + -(-left // WORD)
    saved = _words(spec) * wide - (_words(spec) - 1) * (wide - 1) - tails
    return tails if saved * vectors > tails * spec.window.stride[1] else 0


def plan(spec: DirectConv, arithmetic: Arithmetic) -> Plan:
    height, width = spec.window.output(spec.height, spec.width)
    vectors = round_up(spec.out_channels, arithmetic.lanes) // arithmetic.lanes
    extents = Tiling(width, vectors)
    columns = spec.window.padding[2] + spec.width + round_up(spec.window.padding[3], STEP)
    tile = tile_of(spec, arithmetic, extents)
    return Plan(height, width, vectors, _words(spec), columns, _tails(spec, vectors), extents, tile)


def depth(spec: DirectConv, p: Plan) -> int:
    """Products per output, by nothing included."""
    return (p.whole * (spec.window.kernel[1] - p.first) + p.tails) * WORD
