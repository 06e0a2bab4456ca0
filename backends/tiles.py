"""Register tiles that were measured to be the fastest, by arithmetic and layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..ir.errors import UsageError


@dataclass(frozen=True)
class Tiles:
    """What a tile file holds, hashable: kernels for equal layers and equal tiles are equal.

    rows  (arithmetic, layer, pixels, vectors), sorted; a layer is named by `kernels.tile.layer_name`
    """

    rows: tuple[tuple[str, str, int, int], ...] = ()

    def get(self, arithmetic: str, layer: str) -> tuple[int, int] | None:
        """(pixels, vectors) of a layer's tile; None where none was measured."""
        return self._by_layer.get((arithmetic, layer))

    def with_tile(self, arithmetic: str, layer: str, pixels: int, vectors: int) -> Tiles:
        """These tiles with one more, or another one for the same layer."""
        others = (row for row in self.rows if row[:2] != (arithmetic, layer))
        return Tiles(tuple(sorted([*others, (arithmetic, layer, pixels, vectors)])))

    def replaced_by(self, others: Tiles) -> Tiles:
        """These tiles, and in place of those of the same layers the others."""
        kept = (row for row in self.rows if others.get(*row[:2]) is None)
        return Tiles(tuple(sorted([*kept, *others.rows])))

    @cached_property
    def _by_layer(self) -> dict[tuple[str, str], tuple[int, int]]:
        return {(arithmetic, layer): (pixels, vectors) for arithmetic, layer, pixels, vectors in self.rows}


NO_TILES = Tiles()


class TileError(UsageError):
    """A measured tile does not fit the kernel that it is for."""
