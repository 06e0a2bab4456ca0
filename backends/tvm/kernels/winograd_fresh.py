"""Winograd's products with weights that lie in memory as they are: each part of a panel is transformed, then used.

Where maps are small, transformed weights, four times as many, take longer to read from memory than the products take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arithmetic import Arithmetic
from . import packing
from .builder import Index, Kernel, Vector, View
from .microkernel import Accumulators
from .tile import segments
from .winograd_plan import Plan
from .winograd_transforms import Transforms

STAYS = 96 << 10  # bytes of transformed weights that lie in a core's second cache, beside the input's


def pack(p: Plan, arithmetic: Arithmetic, weight: np.ndarray) -> np.ndarray:
    """weight [out, in, r, r] -> panels [in][tap][vectors][lanes]."""
    outputs, each = weight.shape[0], p.pitch_out // p.parts
    matrix = np.zeros((p.pitch_out, p.channels * p.taps**2), np.float32)
    matrix[:outputs] = weight.reshape(outputs, -1)
    parts = range(0, p.pitch_out, each)
    return np.concatenate([packing.panels(matrix[i : i + each], arithmetic, p.tile.vectors) for i in parts])


@dataclass(frozen=True)
class Fresh:
    """The second of Winograd's steps."""

    kernel: Kernel
    arithmetic: Arithmetic
    plan: Plan
    weights: View
    transforms: Transforms

    def multiply(self, spread: View, products: View, rows: Index, first: Index, vectors: int) -> None:
        """Products of all tiles with `vectors` vectors of outputs from number `first` on, panel by panel."""
        p, lanes = self.plan, self.plan.lanes
        depth = self.depth
        own = self.kernel.workspace(p.places * depth * p.tile.vectors * lanes, self.arithmetic.weight)
        with self.kernel.loop(p.places * p.plane(vectors * lanes) // lanes) as i:
            products.store(i * lanes, self.transforms.number(0.0), lanes)
        for cut in segments(vectors, p.tile.vectors):
            with self.kernel.grid(cut.count, p.channels // depth) as (panel, step):
                vector = cut.start + panel * cut.size
                start = (first + vector) * lanes * p.channels * p.taps**2
                self.transform(own, start + step * (depth * p.taps**2 * cut.size * lanes), cut.size)
                with self.kernel.grid(p.places, rows) as (place, row):
                    self.add(spread, products, own, place, row, vector, cut.size, step * depth, vectors * lanes)

    @property
    def depth(self) -> int:
        """Input channels whose weights are transformed at a time: a divisor of all, in steps of the inner loop."""
        p, unroll = self.plan, self.arithmetic.unroll
        each = p.places * p.tile.vectors * p.lanes * self.arithmetic.weight_bytes
        fitting = [d for d in range(unroll, p.channels + 1, unroll) if p.channels % d == 0 and d * each <= STAYS]
        return max(fitting, default=unroll)

    def transform(self, own: View, start: Index, vectors: int) -> None:
        """Weights [depth][tap][vectors][lanes] from `start` on -> [place][depth][vectors][lanes]."""
        p, lanes, depth = self.plan, self.plan.lanes, self.depth
        with self.kernel.grid(depth, vectors) as (k, v):

            def tap(i: int, j: int) -> Vector:
                place = (k * p.taps**2 + i * p.taps + j) * vectors + v
                return self.transforms.hold(self.weights.vector(start + place * lanes, lanes))

            side = range(p.taps)
            results = self.transforms.weight([[tap(i, j) for j in side] for i in side])
            for i, j in np.ndindex(p.size, p.size):
                place = ((i * p.size + j) * depth + k) * vectors + v
                own.store(place * lanes, results[i][j], lanes)

    def add(
        self, spread: View, products: View, own: View, place: Index, row: Index, vector: Index, vectors: int,
        channel: Index, pitch: int,
    ) -> None:  # fmt: skip
        """Add the products of `depth` input channels from `channel` on to those of one register tile at one place."""
        p, lanes, pixels = self.plan, self.plan.lanes, self.plan.tile.pixels
        (group,) = p.groups
        target = place * p.plane(pitch) + row * (pixels * pitch) + vector * lanes
        first = place * p.plane(group.pitch) + row * (pixels * group.pitch) + channel
        sums = Accumulators(self.kernel, self.arithmetic, pixels, vectors)
        sums.start(products, *[target + i * pitch for i in range(pixels)])
        offsets = [first + i * group.pitch for i in range(pixels)]
        sums.accumulate(spread, offsets, own, place * (self.depth * vectors * lanes), self.depth)

        def store(i: int, v: int, value: Vector) -> None:
            products.store(target + i * pitch + v * lanes, value, lanes)

        sums.finish(store)
