"""Convolutions of bytes by Winograd's minimal filtering, exact: the sums of the integer contract, bit for bit.

Inputs and weights are transformed to int16, products are summed modulo 2**32, and their transform is a whole number of
times the sums of the convolution (`winograd_integer_points`). Its odd part is divided out modulo 2**32, its power of
two is left: sums must be small enough for it, which their weights prove. A 3x3 layer takes a quarter of the products
of a direct kernel, at half its rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Integers
from ..arithmetic.arm_words import words
from . import packing, product_weights
from .builder import Index, Kernel, View
from .output import Output
from .requantize import Constant
from .shapes import IntegerWinograd, Signature
from .sources import Sources
from .tile import is_parallel
from .winograd_border import Border
from .winograd_integer_plan import LARGE, Block, Plan, phases_at, plan, weights_of
from .winograd_integer_points import points_of
from .winograd_integer_steps import Share, Spot, Steps, rows_of
from .winograd_integer_transforms import weights
from .winograd_plan import taps_of


def signature(spec: IntegerWinograd, arithmetic: Integers) -> Signature:
    p = plan(spec, arithmetic)
    source = (spec.batch, spec.height, spec.width, p.pitch_in)
    output = (spec.batch, p.out_height, p.out_width, p.pitch_out)
    packed = ((weights_of(spec, p.places) * p.pitch_out,), "int16"), ((2 * p.pitch_out,), "int32")
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, p.pitch_out, spec.parts)


def takes_parts(spec: IntegerWinograd, arithmetic: Integers) -> bool:
    """Whether the input may lie in several maps: where rows of it are copied, they are put together."""
    return any(_padding(spec, plan(spec, arithmetic)))


def pack(
    spec: IntegerWinograd,
    arithmetic: Integers,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    constants: np.ndarray,
    zero_point: int,
) -> list[np.ndarray]:
    """weight [out, in, kernel, kernel] -> transformed panels of each place; what sums begin with; for the epilogue.

    Sums begin with zeros, at one place with the bias, which holds the zero point's part as in `product_weights`:
    padding is filled with it. Multipliers undo the power of two that is left in the sums, exactly.
    """
    p, each = plan(spec, arithmetic), plan(spec, arithmetic).pitch_out // plan(spec, arithmetic).parts
    points = points_of(wide=spec.wide)
    placed, panels = weights(weight, spec.stride, points), []
    for i, j in p.places:
        own = placed[i, j][:, phases_at(spec, (i, j))].reshape(spec.out_channels, -1)
        matrix = np.zeros((p.pitch_out, own.shape[1]), np.int16)
        matrix[: spec.out_channels] = own
        for first in range(0, p.pitch_out, each):
            panels.append(packing.panels(matrix[first : first + each], words(arithmetic), p.tile.vectors))
    own = np.zeros(spec.out_channels, np.int64) if bias is None else np.asarray(bias, np.int64).reshape(-1)
    corrected = points.of_bias[taps_of(spec)] * (own - zero_point * np.asarray(weight).sum((1, 2, 3), dtype=np.int64))
    start = packing.lanes_of(corrected.astype(np.int32), spec.out_channels, p.lanes, "int32")
    numbers = constants.copy()
    numbers[Constant.ZERO_OWN] = zero_point
    factors = np.ldexp(np.asarray(multiplier, np.float32), -points.bits)
    return [
        np.concatenate(panels),
        np.concatenate([np.zeros_like(start), start]),
        *product_weights.finishing(spec.epilogue, arithmetic, spec.out_channels, factors, numbers),
    ]


def describe(spec: IntegerWinograd, arithmetic: Integers) -> str:
    tile = plan(spec, arithmetic).tile
    size, stride = LARGE - taps_of(spec) + 1, f" by {spec.stride}" if spec.stride > 1 else ""
    sizes = f"{size}x{size} of {spec.kernel}x{spec.kernel}{stride} in int16"
    return f"winograd {sizes}, tile {tile.pixels} pixels x {tile.vectors} vectors of {arithmetic.lanes}"


def prim_func(spec: IntegerWinograd, arithmetic: Integers) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        assert output.constants is not None
        p = plan(spec, arithmetic)
        source = Sources.of(given.sources, spec.parts, p.pitch_in, p.pitch_in)
        zero = output.constants.scalar(int(Constant.ZERO_OWN)).astype(arithmetic.activation)
        copied = words(arithmetic).copied
        border = Border(kernel, spec.height, spec.width, p.pitch_in, _padding(spec, p), zero, copied)
        packed, starts = given.weights[:2]
        nest = _Nest(kernel, arithmetic, spec, p, source, border, packed, starts, output)
        batch = spec.batch or given.batch
        if p.heavy:
            nest.emit_parts(batch)
        else:
            nest.emit_strips(batch)
    return kernel.prim_func


def _padding(spec: IntegerWinograd, p: Plan) -> tuple[int, int, int, int]:
    """That of the convolution, up to the last phase of the last outputs."""
    top, _, left, _ = spec.padding
    rows, columns = (spec.stride * (extent + taps_of(spec) - 1) for extent in (p.out_height, p.out_width))
    return top, rows - spec.height - top, left, columns - spec.width - left


@dataclass(frozen=True)
class _Nest:
    """The loops around the steps of a block."""

    kernel: Kernel
    arithmetic: Integers
    spec: IntegerWinograd
    plan: Plan
    source: Sources
    border: Border
    weights: View
    starts: View
    output: Output

    def emit_strips(self, batch: Index) -> None:
        """Blocks of lines of tiles, shared out among the threads."""
        p = self.plan
        for block in p.blocks:
            with self.kernel.grid(batch, block.count, parallel=self.parallel) as (image, number):
                row = block.row + number * block.rows
                first = row * self.spec.stride
                steps = self.steps(block, *self.bordered(image, 1, first, rows_of(self.spec, block), parallel=False))
                share = self.share(block, 0, p.pitch_out // p.lanes)
                for region in block.regions:
                    with self.kernel.grid(region.down, region.across) as (line, column):
                        steps.spread_tile(region, Spot(0, line, column))
                steps.multiply(share, self.weights, self.starts)
                for region in block.regions:
                    with self.kernel.grid(region.down, region.across) as (line, column):
                        steps.gather_tile(share, region, Spot(0, line, column), self.output.at(image), row)

    def emit_parts(self, batch: Index) -> None:
        """All tiles of some images, then the outputs in parts, so that each core reads its part of the weights only."""
        p, (block,) = self.plan, self.plan.blocks
        vectors = p.pitch_out // p.lanes // p.parts
        blocks = batch if self.spec.batch is None else self.spec.batch // p.images
        with self.kernel.loop(blocks) as number:
            image = number * p.images
            steps = self.steps(
                block, *self.bordered(image, p.images, 0, rows_of(self.spec, block), parallel=self.parallel)
            )
            for region in block.regions:
                extents = p.images, region.down, region.across
                with self.kernel.grid(*extents, parallel=self.parallel) as (inside, line, column):
                    steps.spread_tile(region, Spot(inside, line, column))
            with self.kernel.grid(p.parts, parallel=self.parallel) as (part,):
                share = self.share(block, part * vectors, vectors)
                steps.multiply(share, self.weights, self.starts)
                for region in block.regions:
                    with self.kernel.grid(p.images, region.down, region.across) as (inside, line, column):
                        output = self.output.at(image + inside)
                        steps.gather_tile(share, region, Spot(inside, line, column), output, 0)

    @property
    def parallel(self) -> bool:
        """Whether threads share the work."""
        return is_parallel(self.arithmetic, (self.spec.batch or 1) * self.plan.products(self.spec))

    def steps(self, block: Block, source: View, start: Index) -> Steps:
        """Those of a block, with memory for its transformed input."""
        p = self.plan
        spread = self.kernel.workspace(len(p.places) * p.plane(block.tiles, p.depth), "int16")
        return Steps(self.kernel, self.arithmetic, self.spec, p, block, source, start, self.border.line, spread)

    def share(self, block: Block, first: Index, vectors: int) -> Share:
        """Vectors of outputs from number `first` on, with memory for their products."""
        p, pitch = self.plan, vectors * self.plan.lanes
        return Share(first, vectors, pitch, self.kernel.workspace(len(p.places) * p.plane(block.tiles, pitch), "int32"))

    def bordered(self, image: Index, images: int, row: Index, rows: int, *, parallel: bool) -> tuple[View, Index]:
        """(view, first element) of rows of the input, counted with the padding: a copy where there is padding."""
        if not any(self.border.padding):
            (whole,) = self.source.at(image)
            return whole.view, row * self.border.line
        to = self.kernel.workspace(images * rows * self.border.line, self.source.dtype)
        with self.kernel.grid(images, rows, parallel=parallel) as (inside, line):
            source = self.source.at(image + inside)
            self.border.copy_row(source, row + line, to, (inside * rows + line) * self.border.line)
        return to, 0
