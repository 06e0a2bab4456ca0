"""How a Winograd convolution is cut: phases of a stride, places of a tile, blocks of tiles, parts of the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..arithmetic import Arithmetic
from .shapes import IntegerWinograd, Winograd, round_up
from .tile import Blocks, Tile, Tiling, tile_of
from .winograd_costs import costs


@dataclass(frozen=True)
class Phase:
    """Inputs of one row and one column, modulo the stride: they meet every second tap, or all.

    rows, columns: places of a tile that it takes part in, per side. One that meets a tap less than others takes no part
    at infinity, where its highest coefficient, zero, would be.
    """

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Group:
    """Places of a tile to which the same phases come: their matrix products have one depth.

    places: (row, column) of each; phases: those that come, by number; first: how many places lie before it; depth:
    products per output; pitch: elements from one tile to the next; spread, weights: where its planes and its weights
    begin.
    """

    places: tuple[tuple[int, int], ...]
    phases: tuple[int, ...]
    first: int
    depth: int
    pitch: int
    spread: int
    weights: int


@dataclass(frozen=True)
class Input:
    """The map that tiles are read from. top, left: padding in pixels; at `step` pixels lie neighbours of a phase."""

    height: int
    width: int
    pitch: int
    step: int
    top: int
    left: int


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from a spec.

    taps, size: of a phase's filter and of a tile's input, per side; channels: per phase; down, across: tiles of an
    image; blocks: of the tiles of all images, or of each image where the batch is not known; room: tiles that the
    workspace holds; heavy: weights are larger than the map, so that they are read once, for one block of all tiles;
    parts: of the outputs, of which each core then takes one.
    """

    taps: int
    size: int
    channels: int
    source: Input
    phases: tuple[Phase, ...]
    groups: tuple[Group, ...]
    out_height: int
    out_width: int
    down: int
    across: int
    pitch_out: int
    heavy: bool
    parts: int
    tiling: Tiling
    tile: Tile
    blocks: Blocks
    room: int
    lanes: int = field(repr=False)

    @property
    def places(self) -> int:
        """Products per tile and pair of channels, of one phase."""
        return self.size**2

    @property
    def depths(self) -> int:
        """Products per tile and output."""
        return sum(len(group.places) * group.depth for group in self.groups)

    @property
    def spread_elements(self) -> int:
        """Elements of all planes of transformed input."""
        return sum(len(group.places) * self.plane(group.pitch) for group in self.groups)

    def plane(self, pitch: int) -> int:
        """Elements from one place to the next: a vector more than needed, or all would share one set of the cache."""
        return self.room * pitch + self.lanes


def taps_of(spec: Winograd | IntegerWinograd) -> int:
    """Taps of a phase's filter, per side."""
    return -(-spec.kernel // spec.stride)


def output_of(spec: Winograd | IntegerWinograd) -> tuple[int, int]:
    """Height and width of the result."""
    top, bottom, left, right = spec.padding
    rows, columns = spec.height + top + bottom - spec.kernel, spec.width + left + right - spec.kernel
    return rows // spec.stride + 1, columns // spec.stride + 1


def plan(spec: Winograd, arithmetic: Arithmetic) -> Plan:
    taps, lanes = taps_of(spec), arithmetic.lanes
    size = spec.tile + taps - 1
    out_height, out_width = output_of(spec)
    down, across = -(-out_height // spec.tile), -(-out_width // spec.tile)
    tiles, itemsize = (spec.batch or 1) * down * across, np.dtype(arithmetic.activation).itemsize
    channels, source = _input(spec, taps, down, across, lanes)
    phases, pitch_out = _phases(spec, size), round_up(spec.out_channels, lanes)
    coming = _coming(spec, phases, size)
    wide = sum(
        len(places) * (source.pitch if spec.image else source.pitch * len(key)) for key, places in coming.items()
    )
    depths = sum(len(places) * len(key) for key, places in coming.items()) * spec.in_channels
    lighter = depths * pitch_out * arithmetic.weight_bytes <= tiles * wide * itemsize
    heavy = spec.fresh or (spec.batch is not None and costs(arithmetic).parts and not lighter)
    parts = _parts(arithmetic, pitch_out // lanes) if heavy else 1
    for_cache = -(-tiles * itemsize * (wide + size**2 * pitch_out) // (2 * arithmetic.cache))
    count = 1 if heavy else max(for_cache, arithmetic.cores if arithmetic.cores > 1 else 1)
    most = -(-tiles // count)
    extents = Tiling(most, pitch_out // lanes // parts, reserved=int(arithmetic.ends_apart), whole=True)
    tile = tile_of(spec, arithmetic, extents)
    each = min(round_up(most, tile.pixels), tiles)
    blocks, room = Blocks(-(-tiles // each), each, tiles), round_up(each, tile.pixels)
    groups = _groups(spec, coming, source.pitch, pitch_out, room, lanes)
    read = (Phase(0, 0, size, size),) if spec.image else phases
    return Plan(
        taps, size, channels, source, read, groups, out_height, out_width, down, across, pitch_out, heavy, parts,
        extents, tile, blocks, room, lanes,
    )  # fmt: skip


def _input(spec: Winograd, taps: int, down: int, across: int, lanes: int) -> tuple[int, Input]:
    """Channels of a phase, and the map. An image is read from a copy whose pixels hold all phases, its border too."""
    if not spec.image:
        pitch = round_up(spec.in_channels, lanes)
        return spec.in_channels, Input(spec.height, spec.width, pitch, spec.stride, spec.padding[0], spec.padding[2])
    channels = spec.stride**2 * spec.in_channels
    height, width = down * spec.tile + taps - 1, across * spec.tile + taps - 1
    return channels, Input(height, width, round_up(channels, lanes), 1, 0, 0)


def _phases(spec: Winograd, size: int) -> tuple[Phase, ...]:
    sizes = [size - (-(-(spec.kernel - phase) // spec.stride) < taps_of(spec)) for phase in range(spec.stride)]
    return tuple(Phase(a, b, sizes[a], sizes[b]) for a, b in np.ndindex(spec.stride, spec.stride))


def _coming(spec: Winograd, phases: tuple[Phase, ...], size: int) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """The places to which the same phases come. In an image's pixels those before the last one come along."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, j in np.ndindex(size, size):
        numbers = [number for number, phase in enumerate(phases) if i < phase.rows and j < phase.columns]
        key = tuple(range(numbers[-1] + 1)) if spec.image else tuple(numbers)
        found.setdefault(key, []).append((i, j))
    return found


def _parts(arithmetic: Arithmetic, vectors: int) -> int:
    """As many as there are cores, or fewer: all alike."""
    return next(parts for parts in range(min(arithmetic.cores, vectors), 0, -1) if vectors % parts == 0)


def _groups(
    spec: Winograd,
    coming: dict[tuple[int, ...], list[tuple[int, int]]],
    pitch_in: int,
    pitch_out: int,
    room: int,
    lanes: int,
) -> tuple[Group, ...]:
    groups: list[Group] = []
    first = spread = weights = 0
    for phases, places in coming.items():
        depth, pitch = len(phases) * spec.in_channels, pitch_in if spec.image else len(phases) * pitch_in
        groups.append(Group(tuple(places), phases, first, depth, pitch, spread, weights))
        first += len(places)
        spread += len(places) * (room * pitch + lanes)
        weights += len(places) * depth * pitch_out
    return tuple(groups)
