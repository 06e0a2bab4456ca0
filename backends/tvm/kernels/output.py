"""Where finished values go: the epilogue, the residual that it reads, the store."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .activations import finish
from .builder import Index, Kernel, Vector, View, broadcast
from .shapes import Epilogue


@dataclass(frozen=True)
class Output:
    """The output tensor of a kernel, with the residual of the same shape if there is one."""

    kernel: Kernel
    lanes: int
    epilogue: Epilogue
    target: View
    residual: View | None

    def at(self, entry: Index) -> Output:
        """The same, with offsets counted from one entry of the leading dimension."""
        residual = self.residual.at(entry) if self.residual else None
        return replace(self, target=self.target.at(entry), residual=residual)

    def write(self, offset: Index, value: Vector, used: int = 0) -> None:
        """Finish one vector and store it; with `used` only its first lanes exist in memory."""
        if used:
            self._write_lanes(offset, value, used)
            return
        residual = self.residual.vector(offset, self.lanes) if self.residual else None
        self.target.store(offset, finish(self.epilogue, value, self.lanes, residual), self.lanes)

    def _write_lanes(self, offset: Index, value: Vector, used: int) -> None:
        result, added = self.kernel.registers(2, self.lanes)
        added.value = broadcast(0.0, self.lanes)
        if self.residual:
            for lane in range(used):
                added.set_lane(lane, self.residual.scalar(offset + lane))
        result.value = finish(self.epilogue, value, self.lanes, added.value)
        for lane in range(used):
            self.target.store(offset + lane, result.lane(lane))
