"""From tiles of sums that a matrix unit has stored to outputs, a few neighbouring pixels at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .builder import Index, Kernel, Register, View, largest, smallest
from .matrix_block import Block
from .matrix_tiles import TILE
from .requantize import CONSTANTS


class _Held(View):
    """Numbers that were read once: the matrix unit could have changed memory since, for all that LLVM knows.

    Vectors are asked for by their number, not by their channel.
    """

    def __init__(self, registers: Sequence[Register]):
        super().__init__(None, "float32")
        self.registers = registers

    def vector(self, offset: int, lanes: int) -> Any:
        return self.registers[offset].value

    def scalar(self, offset: int) -> Any:
        return self.registers[offset].lane(0)


def held_constants(kernel: Kernel, block: Block) -> Block:
    """The block, whose output has the epilogue's constants in registers."""
    constants = block.output.constants
    if constants is None:
        return block
    registers = kernel.registers(CONSTANTS, 1, "float32")
    for number, register in enumerate(registers):
        register.set_lane(0, constants.scalar(number))
    return replace(block, output=replace(block.output, constants=_Held(registers)))


@dataclass(frozen=True)
class Results:
    """The sums of a group: of the tiles that begin with number `tile` of a block, by `wide` vectors from `vector` on.

    sums: as they are stored; tall: tiles of pixels in a group.
    """

    kernel: Kernel
    block: Block
    sums: View
    tile: Index
    vector: Index
    tall: int
    wide: int

    @property
    def pixels_together(self) -> int:
        """That are written at a time: of one vector where they lie side by side and fill whole pieces, or of all."""
        together, size = self.block.output.together, self.block.plan.size
        if not (self.joins_pixels and size % together == 0):
            together //= self.wide
        most = max(1, min(together, size))
        return 1 << (most.bit_length() - 1)

    @property
    def joins_pixels(self) -> bool:
        """Whether the pixels of a vector lie side by side, and not the vectors of a pixel."""
        p = self.block.plan
        return p.out_pitch * p.phases[1] == self.block.output.lanes and not p.flat

    @property
    def pieces_of_tile(self) -> int:
        return -(-self.block.plan.size // self.pixels_together)

    @property
    def pieces(self) -> int:
        """Into which the results are cut, each written at a time; those of the first tile of pixels come first."""
        return self.tall * self.pieces_of_tile

    @property
    def ready(self) -> list[int]:
        """For each tile of sums, how many pieces can be written once it is there."""
        return [(number + 1) // self.wide * self.pieces_of_tile for number in range(self.tall * self.wide)]

    def holding_multiplier(self) -> Results:
        """The same, with the multipliers of its vectors in registers."""
        output, lanes = self.block.output, self.block.output.lanes
        if output.multiplier is None:
            return self
        registers = self.kernel.registers(self.wide, lanes, "float32")
        for v, register in enumerate(registers):
            register.value = output.multiplier.vector((self.vector + v) * lanes, lanes)
        return replace(self, block=replace(self.block, output=replace(output, multiplier=_Held(registers))))

    def write(self, first: Index, last: Index) -> None:
        """Pieces first .. last - 1."""
        known = isinstance(first, int) and isinstance(last, int)
        with self.kernel.loop(last - first if known else largest(last - first, 0), first) as piece:
            row = piece // self.pieces_of_tile
            count, size = self.pixels_together, self.block.plan.size
            pixel = smallest(piece % self.pieces_of_tile * count, size - count)
            tile = smallest(self.tile + row, self.block.tiles - 1)
            self.pixels(tile, row * (self.wide * TILE), pixel, count)

    def pixels(self, tile: Index, sums: Index, first: Index, count: int) -> None:
        """Neighbouring pixels of a tile, whose sums lie from offset `sums` on."""
        pixels, vectors = [first + i for i in range(count)], range(self.wide)
        if not self.joins_pixels:
            offsets = [self.offset(tile, pixel, 0) for pixel in pixels]
            self.runs(offsets, sums, [(pixel, v) for pixel in pixels for v in vectors])
            return
        offsets = [self.offset(tile, first, v) for v in vectors]
        if count * self.wide <= self.block.output.together:
            self.runs(offsets, sums, [(pixel, v) for v in vectors for pixel in pixels])
            return
        for v in vectors:
            self.runs([offsets[v]], sums, [(pixel, v) for pixel in pixels])

    def runs(self, offsets: list[Index], sums: Index, which: list[tuple[Index, int]]) -> None:
        lanes = self.block.output.lanes
        values = [self.sums.vector(sums + v * TILE + pixel * lanes, lanes) for pixel, v in which]
        self.block.output.write_runs(offsets, values, [v for _, v in which])

    def offset(self, tile: Index, pixel: Index, v: int) -> Index:
        return self.block.target(tile, pixel) + self.block.plan.vector_place(self.vector + v)
