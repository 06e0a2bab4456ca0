"""The 1x1 convolution in front of a depthwise one: it fills a ring of rows, one panel of channels at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import depthwise
from .builder import Index, Kernel, View
from .shapes import ExpandDepthwise, Pointwise, Signature
from .tile import Segment

# fill(image, first row of a chunk, panel, its segment, ring)
Fill = Callable[[Index, Index, Index, Segment, View], None]


def pointwise_of(spec: ExpandDepthwise) -> Pointwise:
    """The 1x1 convolution of a pair."""
    return Pointwise(spec.batch, spec.height, spec.width, spec.in_channels, spec.channels, spec.expand)


@dataclass(frozen=True)
class Expansion(ABC):
    """One way to compute rows of the ring."""

    arithmetic: Arithmetic
    spec: ExpandDepthwise

    @property
    @abstractmethod
    def vectors(self) -> int:
        """Of outputs in a panel."""

    @property
    def chunk(self) -> int:
        """Neighbouring rows that are computed at a time; it divides the height."""
        return 1

    @property
    def reach(self) -> int:
        """Rows that the depthwise window spans."""
        window = self.spec.window
        return (window.kernel[0] - 1) * window.dilation[0] + 1

    @property
    def rows(self) -> int:
        """Rows of the ring."""
        return self.reach

    @property
    def together(self) -> int:
        """Vectors of channels that the depthwise convolution takes at a time: the ring holds groups of them."""
        return depthwise.width(self.spec.channels, self.arithmetic)

    @abstractmethod
    def signature(self) -> Signature:
        """The 1x1's own."""

    @abstractmethod
    def pack(self, *weights: Any) -> list[np.ndarray]:
        """What `pointwise.pack` takes -> the arrays that `filling` takes."""

    @abstractmethod
    def describe(self) -> str:
        """Its tile in a few words."""

    @abstractmethod
    def line(self, y: Index, group: Index, cut: Segment) -> Index:
        """Where the ring holds a group of row y."""

    @abstractmethod
    def filling(self, kernel: Kernel, source: View, weights: list[View]) -> AbstractContextManager[Fill]:
        """What fills a ring, inside of which everything is set up."""
