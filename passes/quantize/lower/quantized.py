"""What stands for a float value once it is integers: the node that holds them, and what they mean."""

from dataclasses import dataclass, replace

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Grid:
    """The real values that 8-bit integers stand for: scale * (q - zero_point), for low <= q <= high."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @staticmethod
    def of(graph: Graph, quantizer: fx.Node) -> "Grid":
        """The grid of a calibrated activation quantizer."""
        call = arguments(quantizer)
        scale, zero_point = graph.weight(call.scale), graph.weight(call.zero_point)
        dtype = torch.uint8 if call.quant_min >= 0 else torch.int8  # of the quantizer: a clip may raise the low end
        return Grid(float(scale), int(zero_point), call.quant_min, call.quant_max, dtype)

    @property
    def fits_8_bits(self) -> bool:
        info = torch.iinfo(self.dtype)
        return info.min <= self.low and self.high <= info.max

    @property
    def widest(self) -> int:
        """The largest distance of an integer from the zero point."""
        return max(self.high - self.zero_point, self.zero_point - self.low)

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """float64 values (infinities too) as integers in float64; NaN becomes the zero point, as in `quantize`."""
        steps = torch.round(values / self.scale).nan_to_num(0.0)
        return steps.clamp(self.low - self.zero_point, self.high - self.zero_point) + self.zero_point

    def reals(self) -> torch.Tensor:
        """[256] float64: what every integer of the dtype stands for, ascending."""
        smallest = torch.iinfo(self.dtype).min
        return (torch.arange(smallest, smallest + 256, dtype=torch.float64) - self.zero_point) * self.scale

    def clipped(self, low: float, high: float) -> "Grid":
        """The same grid with its integers held between two real values."""
        ends = self.quantize(torch.tensor([low, high], dtype=torch.float64))
        return replace(self, low=int(ends[0]), high=int(ends[1]))

    def means_the_same(self, other: "Grid") -> bool:
        """Equal integers stand for equal values."""
        return (self.scale, self.zero_point, self.dtype) == (other.scale, other.zero_point, other.dtype)


@dataclass(frozen=True)
class Quantized:
    """A node whose value is integers on a grid (or a tuple of such)."""

    node: fx.Node
    grid: Grid
