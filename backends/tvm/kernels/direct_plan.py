"""Sizes of a direct convolution that follow from its spec: joined groups, the register tile, classes of borders."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from ..arithmetic import Arithmetic
from .shapes import DirectConv, round_up
from .tile import Tile, Tiling, tile_of
from .window import Borders


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from a spec.

    Groups narrower than a vector are joined until their outputs fill whole vectors; the weights between them are
    zeros. `group_in`, `group_out`: channels of a joined group; `vectors`: vectors of outputs per joined group;
    `run`: products per tap, inputs in whole groups of the arithmetic.
    """

    out_height: int
    out_width: int
    groups: int
    group_in: int
    group_out: int
    vectors: int
    run: int
    tiling: Tiling
    tile: Tile
    borders: Borders | None


def plan(spec: DirectConv, arithmetic: Arithmetic) -> Plan:
    height, width = spec.window.output(spec.height, spec.width)
    group_out = spec.out_channels // spec.groups
    joined = arithmetic.lanes // gcd(arithmetic.lanes, group_out)
    joined *= arithmetic.group // gcd(arithmetic.group, joined * (spec.in_channels // spec.groups))
    if spec.groups % joined:
        joined = spec.groups
    groups = spec.groups // joined
    group_in, group_out = spec.in_channels // groups, spec.out_channels // groups
    vectors = round_up(group_out, arithmetic.lanes) // arithmetic.lanes
    # All weights of a row of the window stay in registers while an image is read.
    extents = Tiling(width, vectors, spec.window.kernel[1] - 1 if spec.image else 0)
    tile = tile_of(spec, arithmetic, extents)
    borders = Borders.of(spec.window, spec.height, spec.width) if spec.bordered else None
    run = round_up(group_in, arithmetic.group)
    return Plan(height, width, groups, group_in, group_out, vectors, run, extents, tile, borders)
