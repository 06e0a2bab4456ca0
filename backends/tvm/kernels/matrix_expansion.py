"""The 1x1 convolution in front of a depthwise one, on a matrix unit (AMX)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..arithmetic import Amx
from . import matrix_conv, matrix_order, matrix_plan, product_weights
from .builder import Index, Kernel, View
from .expansion import Expansion, Fill, pointwise_of
from .matrix_block import Block
from .matrix_plan import MatrixPlan
from .matrix_tiles import Tiles
from .output import Output
from .shapes import Signature, round_up
from .tile import Segment, segments

PANEL = 4  # vectors: their part of the ring, and their weights, stay in the first-level cache
FEWEST_PIXELS = 224  # of a chunk, whose last tiles are written while none is multiplied; a ring of more leaves L1


@dataclass(frozen=True)
class MatrixExpansion(Expansion):
    """A chunk of rows is one run of pixels in memory. The ring holds [vectors][rows][width][lanes]."""

    arithmetic: Amx

    @property
    def vectors(self) -> int:
        return min(PANEL, round_up(self.spec.channels, self.arithmetic.lanes) // self.arithmetic.lanes)

    @property
    def chunk(self) -> int:
        height = self.spec.height
        enough = (rows for rows in range(1, height) if height % rows == 0 and rows * self.spec.width >= FEWEST_PIXELS)
        return next(enough, height)

    @property
    def rows(self) -> int:
        """Whole chunks: what the window spans, and what its last chunk holds beyond it."""
        return min(self.spec.height, round_up(self.reach + self.chunk - 1, self.chunk))

    @cached_property
    def plan(self) -> MatrixPlan:
        """Of one chunk, into the ring."""
        lanes = self.arithmetic.lanes
        part = replace(pointwise_of(self.spec), batch=1, height=self.chunk)
        return replace(matrix_plan.plan(part, lanes), out_pitch=lanes, vector_pitch=self.rows * self.spec.width * lanes)

    def signature(self) -> Signature:
        return matrix_conv.signature(pointwise_of(self.spec), self.arithmetic)

    def pack(self, *weights: Any) -> list[np.ndarray]:
        return matrix_conv.pack(pointwise_of(self.spec), self.arithmetic, *weights)

    def describe(self) -> str:
        p = self.plan
        return f"matrix expand, {p.tall} x {p.wide} tiles of {p.size} pixels x {self.arithmetic.lanes}"

    def line(self, y: Index, group: Index, cut: Segment) -> Index:
        return group * self.plan.vector_pitch + y % self.rows * (self.spec.width * self.arithmetic.lanes)

    @contextmanager
    def filling(self, kernel: Kernel, source: View, weights: list[View]) -> Iterator[Fill]:
        p, how = self.plan, self.arithmetic
        panels, bias, _, multiplier, constants = weights
        tiles = Tiles.of(kernel, how, p, panels, bias)

        def fill(image: Index, y: Index, panel: Index, cut: Segment, ring: View) -> None:
            first = panel * self.vectors
            integers = product_weights.together(how, self.spec.expand)
            output = Output(kernel, how, self.spec.expand, ring, None, multiplier, constants, integers)
            place = self.line(y, 0, cut) - first * p.vector_pitch
            block = Block(p, source.at(image), y * (self.spec.width * p.in_pitch), output, 0, p.rows, place)
            for part in segments(cut.size, p.wide):
                matrix_order.emit(tiles, block, replace(part, start=first + part.start), p.groups(p.rows))

        yield fill
        tiles.unit.release()
