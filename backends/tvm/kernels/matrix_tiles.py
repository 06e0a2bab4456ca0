"""The inner loop on a matrix unit (AMX): tiles of sums that stay in registers over the reduction.

Tile instructions hardly overlap with those before and behind them that touch the same tile: a group of tiles that is
stored as a whole, begun anew as a whole and then multiplied leaves the unit idle meanwhile. So each tile of the group
before is stored right before its register begins with new sums, and sums become outputs one group later, a few pixels
between two multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arithmetic import Amx, MatrixUnit
from ..arithmetic.tir import T
from ..arithmetic.x86_matrix import CONFIGURATION
from .builder import REGISTER_SCOPE, Index, Kernel, View, smallest
from .matrix_plan import MANY_GROUPS, MatrixPlan
from .prefetches import CACHE_LINE, Ahead

TILE = 256  # int32 of a tile of sums

# between(first, last): what else is to be done between two multiplications, as pieces first .. last - 1 of it.
Between = Callable[[Index, Index], None]


@dataclass(frozen=True)
class Group:
    """Tiles that are summed together: `starts`, for each the offset of what its first pixel reads first, by the vectors
    of outputs vector .. vector + wide - 1."""

    source: View
    starts: list[Index]
    vector: Index
    wide: int

    @property
    def tall(self) -> int:
        return len(self.starts)


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
        sums = kernel.workspace(plan.totals * TILE, "int32")
        tiles = Tiles(kernel, arithmetic, plan, weights, bias, sums)
        tiles.configure()
        return tiles

    @property
    def unit(self) -> MatrixUnit:
        return self.arithmetic.matrix

    def configure(self) -> None:
        """Registers: sums first, then tiles of pixels, then tiles of weights."""
        p, lanes = self.plan, self.arithmetic.lanes
        shapes = [(p.size, 4 * lanes)] * p.totals
        shapes += [(p.size, p.depth)] * self.pixel_registers
        shapes += [(p.depth // 4, 4 * lanes)] * p.wide
        words = View(T.alloc_buffer((CONFIGURATION,), "int32", scope=REGISTER_SCOPE, layout=None), "int32")
        self.unit.configure(words, shapes)

    @property
    def pixel_registers(self) -> int:
        """Tiles of pixels that are held at a time."""
        p = self.plan
        return min(p.tall, self.unit.registers - p.totals - p.wide)

    def ahead(self, panel: Index, panels: Index, group: Index, groups: int, wide: int, after: Index) -> Ahead | None:
        """The share of one group and panel in fetching the weights that the next chunk of panels begins with.

        panel, group: of `panels` and `groups`; after: number of the vector that the next chunk begins with.
        """
        p = self.plan
        if not 1 < groups <= MANY_GROUPS:
            return None
        lines = -(-wide * p.panel_bytes // (CACHE_LINE * groups * p.passes))
        start = smallest(after, p.vectors - wide) * p.panel_bytes
        return Ahead(start, lines, (group * panels + panel) * p.passes)

    def compute(self, group: Group, pieces: int, ready: list[int], between: Between, ahead: Ahead | None) -> None:
        """Store the sums of the group before, and sum this group's products.

        between: what makes outputs of the sums that were stored, in `pieces`; ready[i]: how many of them can be done
        when tile i has been stored.
        """
        p = self.plan
        passes = p.passes
        first = -(-pieces // passes)  # pieces of the first pass
        self.first_pass(group, first, ready, between, ahead)
        if passes == 1:
            return
        each = -(-(pieces - first) // (passes - 1))
        with self.kernel.loop(passes - 1, 1) as number:
            self.fetch(ahead, number)
            self.load_weights(group, number, range(group.wide))
            for i in range(group.tall):
                self.load_pixels(group, number, i)
                for v in range(group.wide):
                    self.multiply(group, i, v)
            if each:
                begin = first + (number - 1) * each
                between(begin, smallest(begin + each, pieces))

    def first_pass(self, group: Group, pieces: int, ready: list[int], between: Between, ahead: Ahead | None) -> None:
        """With the tiles of the group before, which leave their registers one by one."""
        self.fetch(ahead, 0)
        count, done = group.tall * group.wide, 0
        for i in range(group.tall):
            for v in range(group.wide):
                tile = i * group.wide + v
                self.store(tile)
                self.unit.load(tile, _address(self.bias, (group.vector + v) * self.arithmetic.lanes), 0)
                if i == 0:
                    self.load_weights(group, 0, range(v, v + 1))
                if v == 0:
                    self.load_pixels(group, 0, i)
                self.multiply(group, i, v)
                until = pieces if tile == count - 1 else min(ready[tile], -(-pieces * tile // (count - 1)))
                if until > done:
                    between(done, until)
                    done = until

    def store(self, tile: int) -> None:
        self.unit.store(tile, _address(self.sums, tile * TILE), 4 * self.arithmetic.lanes)

    def load_weights(self, group: Group, number: Index, vectors: range) -> None:
        """Of some vectors, for pass `number`."""
        p, wide, lanes = self.plan, group.wide, self.arithmetic.lanes
        weights = group.vector * p.panel_bytes + number * (p.depth * wide * lanes)
        for v in vectors:
            address = _address(self.weights, weights + v * 4 * lanes)
            self.unit.load(p.totals + self.pixel_registers + v, address, wide * 4 * lanes)

    def load_pixels(self, group: Group, number: Index, tile: int) -> None:
        p = self.plan
        address = _address(group.source, group.starts[tile] + p.reach(number))
        self.unit.load(self.pixel_register(tile), address, p.window.stride[1] * p.in_pitch)

    def multiply(self, group: Group, tile: int, v: int) -> None:
        weights = self.plan.totals + self.pixel_registers + v
        self.unit.multiply(tile * group.wide + v, self.pixel_register(tile), weights)

    def pixel_register(self, tile: int) -> int:
        return self.plan.totals + tile % self.pixel_registers

    def fetch(self, ahead: Ahead | None, passed: Index) -> None:
        if ahead is None:
            return
        for number in range(ahead.lines):
            line = (ahead.passed + passed) * ahead.lines + number
            self.kernel.prefetch(self.weights, ahead.start + line * CACHE_LINE)


def _address(view: View, offset: Index) -> Any:
    return T.address_of(view.buffer[tuple(view.indices(offset))])
