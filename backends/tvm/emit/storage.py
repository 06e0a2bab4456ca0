"""How 8-bit integers lie in memory: x86 multiplies unsigned bytes by signed ones, so there activations are unsigned.

A graph's int8 tensor is stored as q + 128 on such a machine, a uint8 tensor as q - 128 where bytes are signed. Zero
points, ends and tables shift along, and biases make up for it, so that every result is what the graph says.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..kernels import StoredGrid

BYTES = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class Storage:
    """dtype: "int8" or "uint8", whatever the graph's dtype is; None: the graph's own."""

    dtype: str | None = None

    def of(self, dtype: torch.dtype) -> str:
        """The dtype in memory of a tensor that has `dtype` in the graph."""
        name = str(dtype).removeprefix("torch.")
        return self.dtype if self.dtype is not None and dtype in BYTES else name

    def shift(self, dtype: torch.dtype) -> int:
        """What is added to a graph's integer to store it."""
        return self.smallest(dtype) - torch.iinfo(dtype).min

    def smallest(self, dtype: torch.dtype) -> int:
        """The smallest integer in memory."""
        return int(np.iinfo(self.of(dtype)).min)

    def grid(self, zero_point: int, low: int, high: int, dtype: torch.dtype) -> StoredGrid:
        shift = self.shift(dtype)
        return StoredGrid(zero_point + shift, low + shift, high + shift)

    def table(self, table: torch.Tensor) -> np.ndarray:
        """A table of 256 entries by the byte in memory, ascending, of bytes in memory."""
        return (table.to(torch.int32).numpy() + self.shift(table.dtype)).astype(self.of(table.dtype))
