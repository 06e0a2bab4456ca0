"""Linear layers in float32 whose weights are read in few bits: sums of products with integers, scaled at the end of
each group of inputs that shares a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import packing, pointwise, product_weights
from .builder import Index, Kernel, View
from .epilogues import NO_EPILOGUE, Epilogue
from .microkernel import Accumulators
from .shapes import Shape, Signature, round_up
from .sources import Sources
from .tile import Segment, Tiling, tile_of


@dataclass(frozen=True)
class WeightOnlyDense:
    """A linear layer on plain tensors: [rows, in_features] -> [rows, out_features], float32.

    scales: of each output, each for in_features / scales neighbouring inputs; 0: the weights are numbers as they are.
    Raises ValueError where they do not divide the inputs.
    """

    rows: int | None
    in_features: int
    out_features: int
    scales: int = 0
    epilogue: Epilogue = NO_EPILOGUE

    def __post_init__(self) -> None:
        if self.in_features % max(self.scales, 1):
            what = f"{self.scales} scales for {self.in_features} inputs"
            raise ValueError(f"weight-only linear: {what}; expected a number that divides them.")

    @property
    def groups(self) -> int:
        """Runs of inputs that are summed by themselves."""
        return max(self.scales, 1)


def product(spec: WeightOnlyDense, arithmetic: Arithmetic) -> pointwise.Product:
    """The matrix product. Each group of inputs fills whole groups of the arithmetic."""
    lanes = arithmetic.lanes
    vectors = round_up(spec.out_features, lanes) // lanes
    extents = Tiling(spec.rows or pointwise.FEW // 2, vectors, totals=int(spec.scales > 1))
    tile = tile_of(spec, arithmetic, extents)
    depth = spec.groups * round_up(spec.in_features // spec.groups, arithmetic.group)
    return pointwise.Product(
        images=1, pixels=spec.rows, reduction=spec.in_features, outputs=spec.out_features, pitch_in=spec.in_features,
        pitch_out=spec.out_features, vectors=vectors, rest=spec.out_features % lanes, tiling=extents, tile=tile,
        depth=depth,
    )  # fmt: skip


def tiling(spec: WeightOnlyDense, arithmetic: Arithmetic) -> Tiling:
    """What the tiles cover."""
    return product(spec, arithmetic).tiling


def signature(spec: WeightOnlyDense, arithmetic: Arithmetic) -> Signature:
    p = product(spec, arithmetic)
    outputs = p.vectors * arithmetic.lanes
    packed: tuple[tuple[Shape, str], ...] = (
        ((outputs * p.depth // arithmetic.per_element,), arithmetic.weight),
        ((outputs,), "float32"),
    )
    if spec.scales:
        packed += (((outputs * spec.scales,), "float32"),)
    source, output = (spec.rows, spec.in_features), (spec.rows, spec.out_features)
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs)


def pack(
    spec: WeightOnlyDense,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
) -> list[np.ndarray]:
    """weight [out, in] (int8, float16, or the bits of bfloat16 as uint16) and scale [out, scales] -> panels."""
    p = product(spec, arithmetic)
    run = spec.in_features // spec.groups
    grouped = np.asarray(weight).reshape(p.outputs, spec.groups, run)
    padded = np.pad(grouped, ((0, 0), (0, 0), (0, p.depth // spec.groups - run))).reshape(p.outputs, p.depth)
    arrays = [
        packing.panels(padded, arithmetic, p.tile.vectors),
        packing.lanes_of(bias, p.outputs, arithmetic.lanes),
    ]
    if scale is not None:
        numbers = np.asarray(scale, np.float32).reshape(p.outputs, spec.scales)
        arrays.append(packing.in_panels(numbers, arithmetic.lanes, 1, p.tile.vectors))
    return arrays


def describe(spec: WeightOnlyDense, arithmetic: Arithmetic) -> str:
    tile = product(spec, arithmetic).tile
    size = f"tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"
    return f"dense, {arithmetic.name}, {size}"


def prim_func(spec: WeightOnlyDense, arithmetic: Arithmetic) -> Any:
    p = product(spec, arithmetic)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=len(given.weights))
        source = Sources.of(given.sources, (), p.reduction, p.pitch_in)
        operands = source, given.weights[0], given.weights[1], output
        if spec.scales:
            nest = _ScaledNest(kernel, arithmetic, p, *operands, given.weights[2], spec.scales)
        else:
            nest = pointwise.Nest(kernel, arithmetic, p, *operands)
        nest.emit(images=1, pixels=given.batch if spec.rows is None else spec.rows)
    return kernel.prim_func


@dataclass(frozen=True)
class _ScaledNest(pointwise.Nest):
    """The loops of a matrix product, with a scale for each output and group of inputs."""

    scales: View
    groups: int

    def tile(self, image: Index, pixel: Index, pixels: int, panel: Index, cut: Segment) -> None:
        p, lanes = self.product, self.arithmetic.lanes
        channel, pitch = panel * (p.tile.vectors * lanes), cut.size * lanes
        sums = Accumulators(self.kernel, self.arithmetic, pixels, cut.size)
        totals = Accumulators(self.kernel, self.arithmetic, pixels, cut.size)
        (source,), run, stored = self.source, p.reduction // self.groups, p.depth // self.groups
        here = channel * p.depth
        ahead = self.ahead(here, pixel, cut) if self.groups == 1 else None
        if self.groups > 1:
            totals.start(self.bias, channel)
        with self.kernel.loop(self.groups) as group:
            sums.clear()
            offsets = [(pixel + i) * p.pitch_in + group * run for i in range(pixels)]
            sums.accumulate(source.view, offsets, self.weights, here + group * (stored * pitch), run, ahead)
            if self.groups == 1:  # only now: meanwhile they would fill registers
                totals.start(self.bias, channel)
            totals.add_scaled(sums, self.scales, channel * self.groups + group * pitch)
        self.store(totals, self.output, pixel, channel, cut)
