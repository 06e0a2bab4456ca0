"""Intel's matrix unit (AMX): tiles of 16 x 64 bytes, multiplied by one instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .tir import T
from .x86_integers import Vnni

PALETTE = 1  # the layout of the tile registers, and the only one that exists
CONFIGURATION = 16  # int32 words of what `ldtilecfg` reads


@dataclass(frozen=True)
class MatrixUnit:
    """Emits tile instructions. A tile register is named by its number; addresses are TIR handles, pitches are bytes.

    rows: of a tile at most; row_bytes: of one of its rows at most; registers: tiles that there are.
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
    """

    rows: int = 16
    row_bytes: int = 64
    registers: int = 8

    def configure(self, words: Any, shapes: list[tuple[int, int]]) -> None:
        """Give each register its (rows, bytes per row). words: a view of CONFIGURATION int32 in memory."""
        for i, word in enumerate(self.configuration(shapes)):
            words.store(i, T.int32(word))
        self._emit("ldtilecfg", T.address_of(words.buffer[0]))

    def configuration(self, shapes: list[tuple[int, int]]) -> list[int]:
        """The words in memory: palette, bytes per row of each register (16 bits each), rows (8 bits each)."""
        columns, rows = [0] * 16, [0] * 16
        for register, (count, row_bytes) in enumerate(shapes):
            columns[register], rows[register] = row_bytes, count
        packed = bytes([PALETTE, *[0] * 15]) + b"".join(c.to_bytes(2, "little") for c in columns) + bytes(rows)
        return [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]

    def release(self) -> None:
        """Forget all tiles: a thread that leaves them set is slower to switch."""
        self._emit("tilerelease")

    def load(self, register: int, address: Any, pitch: Any) -> None:
        self._emit("tileloadd64", T.int8(register), address, T.cast(pitch, "int64"))

    def store(self, register: int, address: Any, pitch: Any) -> None:
        self._emit("tilestored64", T.int8(register), address, T.cast(pitch, "int64"))

    def multiply(self, total: int, left: int, right: int) -> None:
        """total[m][n] += left[m][k] * right[k / 4][n][k % 4], unsigned by signed bytes into int32, wrapping around."""
        self._emit("tdpbusd", T.int8(total), T.int8(left), T.int8(right))

    def _emit(self, name: str, *operands: Any) -> None:
        T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


@dataclass(frozen=True)
class Amx(Vnni):
    """AVX-512 VNNI, with the matrix unit for products of many rows."""

    name: ClassVar[str] = "amx"
    matrix: ClassVar[MatrixUnit] = MatrixUnit()
