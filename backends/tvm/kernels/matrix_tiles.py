"""The inner loops on a matrix unit (AMX): tiles of sums that stay in registers over the reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arithmetic import Amx, MatrixUnit
from ..arithmetic.tir import T
from ..arithmetic.x86_matrix import CONFIGURATION
from .builder import REGISTER_SCOPE, Index, Kernel, View, smallest
from .matrix_plan import MatrixPlan
from .microkernel import halved
from .output import Output
from .prefetches import CACHE_LINE, Ahead

TILE = 256  # int32 of a tile of sums
MANY_GROUPS = 16  # that use a panel of weights: with more, the processor's own prefetch of the next panel is in time


@dataclass(frozen=True)
class Block:
    """Lines of pixels that are worked on together, numbered as in the plan.

    view, origin: the input as tiles are loaded, and the offset of what output line 0 reads first. output, place: where
    results go, and the offset of line 0.
    """

    view: View
    origin: Index
    output: Output
    place: Index = 0


@dataclass(frozen=True)
class Tiles:
    """Tiles of one kernel. weights, bias: as `matrix_conv.pack` lays them; sums: room for tiles that are finished."""

    kernel: Kernel
    arithmetic: Amx
    plan: MatrixPlan
    weights: View
    bias: View
    sums: View

    @staticmethod
    def of(kernel: Kernel, arithmetic: Amx, plan: MatrixPlan, weights: View, bias: View) -> Tiles:
        """With the unit set up for the thread that runs this; `release` it at the end."""
        sums = kernel.workspace(plan.tall * plan.wide * TILE, "int32")
        tiles = Tiles(kernel, arithmetic, plan, weights, bias, sums)
        tiles.configure()
        return tiles

    @property
    def unit(self) -> MatrixUnit:
        return self.arithmetic.matrix

    def configure(self) -> None:
        """Registers: sums first, then tiles of pixels, then tiles of weights."""
        p, lanes = self.plan, self.arithmetic.lanes
        shapes = [(p.size, 4 * lanes)] * (p.tall * p.wide)
        shapes += [(p.size, p.depth)] * self.pixel_registers
        shapes += [(p.depth // 4, 4 * lanes)] * p.wide
        words = View(T.alloc_buffer((CONFIGURATION,), "int32", scope=REGISTER_SCOPE, layout=None), "int32")
        self.unit.configure(words, shapes)

    @property
    def pixel_registers(self) -> int:
        """Tiles of pixels that are held at a time."""
        p = self.plan
        return min(p.tall, self.unit.registers - p.tall * p.wide - p.wide)

    def lines(self, block: Block, first: Index, count: Index, vector: Index, wide: int, most: int = 0) -> None:
        """Lines first .. first + count of a block, for `wide` vectors of outputs from number `vector` on.

        most: what `count` is at most where the next panel of weights is to be fetched meanwhile; 0 where it is near.
        """
        p, kernel = self.plan, self.kernel
        whole, rest = count // p.tall, count % p.tall
        groups = most // p.tall * p.columns

        def some(line: Index, tall: int, number: Index | None = None) -> None:
            with kernel.loop(p.columns) as column:
                ahead = None if number is None else self.ahead(number * p.columns + column, groups, vector, wide)
                self.group(block, line, column, tall, vector, wide, ahead)

        with kernel.loop(whole) as number:
            some(first + number * p.tall, p.tall, number)
        if isinstance(rest, int):
            if rest:
                some(first + whole * p.tall, rest)
        else:
            with kernel.loop(rest, first + whole * p.tall) as line:
                some(line, 1)

    def ahead(self, group: Index, groups: int, vector: Index, wide: int) -> Ahead | None:
        """The share of one of the groups that use a panel in fetching the next one, which lies behind it."""
        p = self.plan
        if not 1 < groups <= MANY_GROUPS:
            return None
        passes = p.runs[0] * p.runs[1] * p.steps
        lines = -(-wide * p.panel_bytes // (CACHE_LINE * groups * passes))
        return Ahead(smallest(vector + wide, p.vectors - wide) * p.panel_bytes, lines, group * passes)

    def group(
        self,
        block: Block,
        line: Index,
        column: Index,
        tall: int,
        vector: Index,
        wide: int,
        ahead: Ahead | None = None,
    ) -> None:
        """`tall` x `wide` tiles: neighbouring lines by neighbouring vectors of outputs."""
        lanes = self.arithmetic.lanes
        for i in range(tall):
            for v in range(wide):
                self.unit.load(i * wide + v, _address(self.bias, (vector + v) * lanes), 0)
        self.accumulate(block, [self.start(block, line + i, column) for i in range(tall)], vector, wide, ahead)
        for i in range(tall):
            for v in range(wide):
                self.unit.store(i * wide + v, _address(self.sums, (i * wide + v) * TILE), 4 * lanes)
        for i in range(tall):
            self.finish(block, line + i, column, i * wide, vector, wide)

    def accumulate(self, block: Block, starts: list[Index], vector: Index, wide: int, ahead: Ahead | None) -> None:
        """Add all products. starts: for each tile, the offset of what its first pixel reads first."""
        p, lanes, unit = self.plan, self.arithmetic.lanes, self.unit
        pixel_tile = p.tall * p.wide
        weight_tile = pixel_tile + self.pixel_registers
        down, across = p.runs
        with self.kernel.loop(down) as y, self.kernel.loop(across) as x, self.kernel.loop(p.steps) as step:
            passed = (y * across + x) * p.steps + step
            self.fetch(ahead, passed)
            weights = vector * p.panel_bytes + passed * (p.depth * wide * lanes)
            for v in range(wide):
                unit.load(weight_tile + v, _address(self.weights, weights + v * 4 * lanes), wide * 4 * lanes)
            inside = smallest(step * p.depth, p.run - p.depth) if p.steps > 1 else 0
            inside = inside + y * (p.window.dilation[0] * p.line_pixels * p.in_pitch)
            inside = inside + x * (p.window.dilation[1] * p.in_pitch)
            for i, start in enumerate(starts):
                pixels = pixel_tile + i % self.pixel_registers
                unit.load(pixels, _address(block.view, start + inside), p.window.stride[1] * p.in_pitch)
                for v in range(wide):
                    unit.multiply(i * wide + v, pixels, weight_tile + v)

    def fetch(self, ahead: Ahead | None, passed: Index) -> None:
        if ahead is None:
            return
        for number in range(ahead.lines):
            line = (ahead.passed + passed) * ahead.lines + number
            self.kernel.prefetch(self.weights, ahead.start + line * CACHE_LINE)

    def start(self, block: Block, line: Index, column: Index) -> Index:
        """Offset of the first byte that a tile's first pixel reads."""
        p = self.plan
        first, _ = self.pixels(line, column)
        if p.pixels:
            return block.origin + first * p.in_pitch
        return block.origin + (line * p.window.stride[0] * p.line_pixels + first * p.window.stride[1]) * p.in_pitch

    def pixels(self, line: Index, column: Index) -> tuple[Index, Index]:
        """(first pixel of a tile, how many of its pixels the tile before has written), in its line or in all."""
        p = self.plan
        tile, extent = (line, p.pixels) if p.pixels else (column, p.row_pixels)
        if extent % p.size == 0:
            return tile * p.size, 0
        first = smallest(tile * p.size, extent - p.size)
        return first, tile * p.size - first

    def finish(self, block: Block, line: Index, column: Index, tile: int, vector: Index, wide: int) -> None:
        """Write the tiles of one line, from number `tile` on; pixels that the tile before has written are left out."""
        p = self.plan
        first, written = self.pixels(line, column)
        place = block.place + p.pixel_place(line, first)
        write = _Write(self, block.output, place, tile, vector, wide)
        most = max(1, block.output.together // (1 if write.joins_pixels else wide))
        count = p.size - written
        with self.kernel.loop(count // most) as some:
            write.pixels(written + some * most, most)
        if isinstance(count, int):
            for begin, size in halved(count % most, most):
                write.pixels(written + count - count % most + begin, size)
        else:
            with self.kernel.loop(count % most, p.size - count % most) as pixel:
                write.pixels(pixel, 1)


@dataclass(frozen=True)
class _Write:
    """From tiles of sums to the output. place: of pixel 0 of the tiles; vector: number of their first vector."""

    tiles: Tiles
    output: Output
    place: Index
    tile: int
    vector: Index
    wide: int

    @property
    def joins_pixels(self) -> bool:
        """Whether the pixels of a vector lie side by side, and not the vectors of a pixel."""
        p = self.tiles.plan
        return p.out_pitch * p.phases[1] == self.tiles.arithmetic.lanes

    def pixels(self, first: Index, count: int) -> None:
        """Some neighbouring pixels."""
        pixels, vectors = range(count), range(self.wide)
        if self.joins_pixels:
            for v in vectors:
                self.runs([self.offset(first, v)], [(first + i, v) for i in pixels])
        else:
            offsets = [self.offset(first + i, 0) for i in pixels]
            self.runs(offsets, [(first + i, v) for i in pixels for v in vectors])

    def runs(self, offsets: list[Index], sums: list[tuple[Index, int]]) -> None:
        lanes = self.tiles.arithmetic.lanes
        values = [self.tiles.sums.vector((self.tile + v) * TILE + pixel * lanes, lanes) for pixel, v in sums]
        self.output.write_runs(offsets, values, [(self.vector + v) * lanes for _, v in sums])

    def offset(self, pixel: Index, v: int) -> Index:
        p = self.tiles.plan
        return self.place + pixel * (p.phases[1] * p.out_pitch) + p.vector_place(self.vector + v)


def _address(view: View, offset: Index) -> Any:
    return T.address_of(view.buffer[tuple(view.indices(offset))])
