"""Where finished values go: the epilogue, the residual that it reads, the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from . import activations, requantize
from .builder import Index, Kernel, Vector, View
from .epilogues import Epilogue, Finish, Requantize


@dataclass(frozen=True)
class Output:
    """The output tensor of a kernel, with the residual of the same shape if there is one.

    multiplier, constants: what the epilogue of int32 sums reads, per channel and altogether. integers: the arithmetic
    that makes several vectors of sums into bytes at a time, if there is one.
    """

    kernel: Kernel
    arithmetic: Arithmetic
    epilogue: Finish
    target: View
    residual: View | None
    multiplier: View | None = None
    constants: View | None = None
    integers: Integers | None = None

    @property
    def lanes(self) -> int:
        return self.arithmetic.lanes

    def at(self, entry: Index) -> Output:
        """The same, with offsets counted from one entry of the leading dimension."""
        residual = self.residual.at(entry) if self.residual else None
        return replace(self, target=self.target.at(entry), residual=residual)

    def write(self, offset: Index, value: Vector, channel: Index = 0, used: int = 0) -> None:
        """Finish one vector, whose first lane is `channel`, and store it; with `used` only its first lanes exist."""
        if used:
            self._write_lanes(offset, value, channel, used)
            return
        if self.integers:
            self.write_together(offset, [value], [channel])
            return
        residual = self.residual.vector(offset, self.lanes) if self.residual else None
        self.target.store(offset, self._stored(self._finish(value, channel, residual), self.lanes), self.lanes)

    def bytes_of(self, elements: int) -> int:
        """What so many elements take, with those of the residual."""
        return elements * self.target.itemsize * (2 if self.residual else 1)

    @property
    def together(self) -> int:
        """Vectors, neighbours in memory, that are best written at a time."""
        return self.integers.together if self.integers else 1

    def write_together(self, offset: Index, values: Sequence[Vector], channels: Sequence[Index]) -> None:
        """Finish vectors that lie side by side from `offset` on, each with its first channel."""
        self.write_runs([offset], values, channels)

    def write_runs(self, offsets: Sequence[Index], values: Sequence[Vector], channels: Sequence[Index]) -> None:
        """Finish vectors, each with its first channel. They are runs of equal length: one lies side by side from each
        of the offsets on."""
        length = len(values) // len(offsets)
        places = [offset + i * self.lanes for offset in offsets for i in range(length)]
        if self.integers is None:
            for place, value, channel in zip(places, values, channels, strict=True):
                self.write(place, value, channel)
            return
        assert self.multiplier is not None and self.constants is not None
        factors = [self.multiplier.vector(channel, self.lanes) for channel in channels]
        size = length * self.lanes
        read = (offsets, size) if self.integers.reads_runs else (places, self.lanes)
        residuals = [self.residual.vector(place, read[1]) for place in read[0]] if self.residual else []
        assert isinstance(self.epilogue, Requantize)
        stored = requantize.finish_together(self.epilogue, self.integers, values, factors, self.constants, residuals)
        if len(offsets) == 1:
            self.target.store(offsets[0], stored, size)
            return
        for i, offset in enumerate(offsets):
            self.target.store(offset, _piece(stored, i, size, len(values) * self.lanes, self.target.dtype), size)

    def _finish(self, value: Vector, channel: Index, residual: Vector | None) -> Vector:
        if isinstance(self.epilogue, Epilogue):
            return activations.finish(self.epilogue, value, self.arithmetic, residual)
        assert self.multiplier is not None
        factors = self.multiplier.vector(channel, self.lanes)
        return requantize.finish(self.epilogue, value, self.lanes, factors, self.constants, residual)

    def _stored(self, value: Vector, lanes: int) -> Vector:
        """The value in the output's dtype."""
        dtype = self.target.dtype
        return value if dtype == "float32" else T.cast(value, dtype if lanes == 1 else f"{dtype}x{lanes}")

    def _write_lanes(self, offset: Index, value: Vector, channel: Index, used: int) -> None:
        residual = self._residual_lanes(self.residual, offset, used) if self.residual else None
        dtype = self.target.dtype
        (result,) = self.kernel.registers(1, self.lanes, dtype if dtype.startswith("float") else "int32")
        result.value = self._finish(value, channel, residual)
        for lane in range(used):
            self.target.store(offset + lane, self._stored(result.lane(lane), 1))

    def _residual_lanes(self, residual: View, offset: Index, used: int) -> Vector:
        """The lanes that exist, zeros behind them."""
        (added,) = self.kernel.registers(1, self.lanes, residual.dtype)
        added.value = T.broadcast(T.cast(0, residual.dtype), self.lanes)
        for lane in range(used):
            added.set_lane(lane, residual.scalar(offset + lane))
        return added.value


WORD = 4  # bytes that a lane of int32 holds


def _piece(stored: Vector, number: int, size: int, count: int, dtype: str) -> Vector:
    """Bytes number * size and on of `count`. A single word is read as one lane: LLVM would take it apart by bytes."""
    if size > WORD:
        return T.Shuffle([stored], list(range(number * size, (number + 1) * size)))
    words = T.reinterpret(stored, dtype=f"int32x{count // WORD}")
    return T.reinterpret(T.Shuffle([words], [number]), dtype=f"{dtype}x{WORD}")
