"""Depthwise windows of which several rows are multiplied at a time: `woven_rows` and `zipped_rows` say how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..arithmetic import Integers
from .builder import Index, Kernel, Register, View
from .shapes import Window
from .window import Columns


@dataclass(frozen=True)
class SeveralRows(ABC):
    """A window over inputs whose columns are `pitch` apart; `together`: channels that are taken at a time."""

    kernel: Kernel
    arithmetic: Integers
    window: Window
    height: int
    pitch: int
    together: int
    weights: View

    @abstractmethod
    def accumulate(
        self,
        sums: Sequence[Sequence[Register]],
        source: View,
        line: Callable[[Index], Index],
        row: Index,
        columns: Columns,
        column: Index,
        group: Index,
    ) -> None:
        """Add the window of output row `row` to the registers of each output column.

        The parameters are those of `depthwise.Taps.tile`.
        """
