"""Matrix products whose right side is known at run time only: it is packed into panels first, as weights are.

Packing moves every element once, and each is then multiplied by as many rows as the left side has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..arithmetic import Arithmetic
from . import run_time_packing
from .builder import Index, Kernel, Vector, View
from .microkernel import Accumulators
from .run_time_packing import RightSide, Shape
from .shapes import round_up
from .tile import Blocks, Segment, Tile, register_tile, segments


@dataclass(frozen=True)
class RunTimeProduct:
    """rows x steps times steps x outputs. `rows`: of the left side that are multiplied at a time."""

    kernel: Kernel
    arithmetic: Arithmetic
    right: RightSide
    rows: int

    @property
    def vectors(self) -> int:
        """Vectors of outputs."""
        return round_up(self.right.outputs, self.arithmetic.lanes) // self.arithmetic.lanes

    @property
    def tile(self) -> Tile:
        return register_tile(self.arithmetic, self.rows, self.vectors)

    @property
    def depth(self) -> int:
        """The reduction in whole groups of the arithmetic."""
        return round_up(self.right.steps, self.arithmetic.group)

    @property
    def packed_size(self) -> int:
        """Elements of the packed right side."""
        return self.vectors * self.arithmetic.lanes * self.depth

    def pack(self, source: View, start: Index, panels: View) -> None:
        """Write the right side that begins at `start` as panels [steps / group][vectors][lanes][group].

        Unused lanes, and steps that fill no group, are zero.
        """
        right, lanes, group = self.right, self.arithmetic.lanes, self.arithmetic.group
        whole, rest = divmod(right.steps, group)
        for cut, last in self._cuts():
            with self.kernel.loop(cut.count) as i:
                first = (cut.start + i * cut.size) * lanes

                def row(step: Index, steps: int, first: Index = first, cut: Segment = cut, last: int = last) -> None:
                    for v in range(cut.size):
                        place = first * self.depth + (step * cut.size + v * group) * lanes
                        read = start + (first + v * lanes) * right.output_pitch + step * right.step_pitch
                        used = last if last and v == cut.size - 1 else lanes
                        packing = run_time_packing.floats if group == 1 else run_time_packing.bytes_
                        packing(source, read, panels, place, Shape(right, lanes, group, used, steps))

                with self.kernel.loop(whole) as j:
                    row(j * group, group)
                if rest:
                    row(whole * group, rest)

    def multiply(
        self,
        rows: int,
        source: View,
        offset: Callable[[Index], Index],
        panels: View,
        write: Callable[[Index, Index, Vector, int], None],
    ) -> None:
        """Multiply `rows` rows of the left side, row r of which begins at offset(r).

        write(row, first output, vector of sums, its used lanes; 0: all) takes the results.
        """
        lanes, tile = self.arithmetic.lanes, self.tile
        for cut, rest in self._cuts():
            with self.kernel.loop(cut.count) as i:
                channel = (cut.start + i * cut.size) * lanes
                for part in segments(rows, tile.pixels):
                    with self.kernel.loop(part.count) as j:
                        first = part.start + j * part.size
                        sums = Accumulators(self.kernel, self.arithmetic, part.size, cut.size)
                        sums.clear()
                        offsets = [offset(first + p) for p in range(part.size)]
                        sums.accumulate(source, offsets, panels, channel * self.depth, self.right.steps)
                        _finish(sums, write, first, channel, lanes, (cut.size - 1, rest))

    def _cuts(self) -> Iterator[tuple[Segment, int]]:
        """Panels, and the used lanes of the last vector where it is not whole: that panel stands alone."""
        rest = self.right.outputs % self.arithmetic.lanes
        cuts = list(segments(self.vectors, self.tile.vectors))
        *whole, last = cuts
        yield from ((cut, 0) for cut in whole)
        if rest and last.count > 1:
            yield Segment(last.start, last.count - 1, last.size), 0
            last = Segment(last.start + (last.count - 1) * last.size, 1, last.size)
        yield last, rest


def _finish(
    sums: Accumulators,
    write: Callable[[Index, Index, Vector, int], None],
    row: Index,
    channel: Index,
    lanes: int,
    last: tuple[int, int],
) -> None:
    def store(p: int, v: int, value: Vector) -> None:
        write(row + p, channel + v * lanes, value, last[1] if v == last[0] else 0)

    sums.finish(store)


def in_blocks(
    kernel: Kernel, rows: int, size: int, part: Index, parts: Blocks, body: Callable[[Index, int], None]
) -> None:
    """body(first row, rows) for every block of one part; rows that fill no block belong to the last part."""
    first, mine = parts[part]
    with kernel.loop(mine, first) as block:
        body(block * size, size)
    if rows % size:
        with kernel.when(parts.count == 1 or part == parts.count - 1):
            body(rows - rows % size, rows % size)
