"""Convolutions and linear layers of bytes on a matrix unit (AMX)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Amx
from . import matrix_order, packing, product_weights
from .builder import Index, Kernel, View, smallest
from .matrix_block import Block
from .matrix_copy import Copy
from .matrix_plan import MatrixPlan, plan
from .matrix_tiles import Tiles
from .output import Output
from .shapes import Dense, DirectConv, Pointwise, Shape, Signature
from .sources import Sources
from .tile import Segment, is_parallel

Product = Pointwise | Dense | DirectConv


def signature(spec: Product, arithmetic: Amx) -> Signature:
    """The input, panels of weights, biases, what padding holds, what the epilogue reads, and the output."""
    p, lanes = plan(spec, arithmetic.lanes), arithmetic.lanes
    source: Shape
    output: Shape
    if isinstance(spec, Dense):
        source, output = (spec.rows, spec.in_features), (spec.rows, spec.out_features)
    else:
        height, width = (p.rows, p.row_pixels) if isinstance(spec, DirectConv) else (spec.height, spec.width)
        source = (spec.batch, spec.height, spec.width, p.source_pitch)
        output = (spec.batch, height, width, p.out_pitch)
    outputs = p.vectors * lanes
    packed = ((p.vectors * p.panel_bytes,), "int8"), ((outputs,), "int32"), ((lanes,), "uint8")
    return product_weights.signature(spec.epilogue, arithmetic, source, output, packed, outputs, parts_of(spec))


def takes_parts(spec: Product, arithmetic: Amx) -> bool:
    """Whether the input may lie in several maps: where lines of it are copied, they are put together."""
    return isinstance(spec, DirectConv) and plan(spec, arithmetic.lanes).copied


def parts_of(spec: Product) -> tuple[int, ...]:
    return spec.parts if isinstance(spec, DirectConv) else ()


def pack(
    spec: Product,
    arithmetic: Amx,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """weight [out, in, (kh, kw)] -> panels, bias, what padding holds, and what the epilogue reads."""
    p = plan(spec, arithmetic.lanes)
    return packed(p, spec.epilogue, arithmetic, weight, bias, multiplier, constants, zero_point)


def packed(
    p: MatrixPlan,
    epilogue: Any,
    arithmetic: Amx,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_point: int = 0,
) -> list[np.ndarray]:
    """`pack` for a plan. Padding holds the zero point, so that one bias serves all pixels."""
    outputs = len(weight)
    taps = np.asarray(weight).reshape(outputs, -1, *p.window.kernel).transpose(0, 2, 3, 1)
    whole = np.zeros((*taps.shape[:3], p.channels), np.int8)
    whole[..., : taps.shape[3]] = taps
    tiles = _in_tiles(whole.reshape(outputs, p.runs[0] * p.runs[1], p.run), p)
    sums = taps.reshape(outputs, -1).sum(1, keepdims=True, dtype=np.float64)
    return [
        packing.panels(tiles, arithmetic, p.wide),
        product_weights.biases(arithmetic, bias, sums, zero_point, [np.ones(1)], epilogue),
        np.full(arithmetic.lanes, zero_point, np.uint8),
        *product_weights.finishing(epilogue, arithmetic, outputs, multiplier, constants),
    ]


def _in_tiles(runs: np.ndarray, p: MatrixPlan) -> np.ndarray:
    """[outputs, runs, run] -> [outputs, runs * steps * depth]; what the last step of a run repeats is zero."""
    last = p.run - p.depth
    steps = [runs[:, :, start : start + p.depth] for start in range(0, last, p.depth)]
    final = runs[:, :, last:].copy()
    final[:, :, : len(steps) * p.depth - last] = 0
    return np.stack([*steps, final], 2).reshape(len(runs), -1)


def describe(spec: Product, arithmetic: Amx) -> str:
    return described(plan(spec, arithmetic.lanes), arithmetic, "dense" if isinstance(spec, Dense) else "")


def described(p: MatrixPlan, arithmetic: Amx, family: str = "") -> str:
    """`describe` for a plan; the family is by default the window."""
    family = family or "x".join(map(str, p.window.kernel))
    return f"matrix {family}, {p.tall} x {p.wide} tiles of {p.size} pixels x {arithmetic.lanes}"


def prim_func(spec: Product, arithmetic: Amx) -> Any:
    p, parameters = plan(spec, arithmetic.lanes), signature(spec, arithmetic)
    return nest_of(p, parameters, spec.epilogue, arithmetic, parts_of(spec))


def nest_of(p: MatrixPlan, parameters: Signature, epilogue: Any, arithmetic: Amx, parts: tuple[int, ...] = ()) -> Any:
    """The PrimFunc of a plan, with the parameters of `signature`, and the channels of the maps that it reads."""
    with Kernel() as kernel:
        given = kernel.parameters(parameters)
        output = product_weights.output_of(kernel, arithmetic, epilogue, given, taken=3)
        weights, bias, padding = given.weights[:3]
        source = Sources.of(given.sources, parts, p.channels, p.source_pitch)
        nest = Nest(kernel, arithmetic, p, source, weights, bias, padding, output)
        nest.emit(1 if p.images is None else p.images or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class Nest:
    """The loops around the tiles."""

    kernel: Kernel
    arithmetic: Amx
    plan: MatrixPlan
    source: Sources
    weights: View
    bias: View
    padding: View
    output: Output

    def emit(self, images: Index) -> None:
        """Images, blocks of lines, shares of the panels; inside, whole panels and then what is left."""
        p, kernel = self.plan, self.kernel
        whole, rest = divmod(p.vectors, p.wide)
        count = whole + bool(rest)
        parts, shares = p.blocks(self.arithmetic, count, self.output.bytes_of(p.outputs))
        groups = p.groups(parts.size)
        parallel = is_parallel(self.arithmetic, p.rows * p.row_pixels * p.vectors * p.panel_bytes)
        with kernel.grid(images, parts.count, shares.count, parallel=parallel) as (image, part, share):
            first, mine = parts[part]
            panel, panels = shares[share]
            tiles = Tiles.of(kernel, self.arithmetic, p, self.weights, self.bias)
            block = self.block(image, first, mine, parts.size)
            if whole:
                matrix_order.emit(
                    tiles, block, Segment(panel * p.wide, smallest(panels, whole - panel), p.wide), groups
                )
            if rest:
                with kernel.when(shares.count == 1 or share == shares.count - 1):
                    matrix_order.emit(tiles, block, Segment(whole * p.wide, 1, rest), groups)
            tiles.unit.release()

    def block(self, image: Index, first: Index, mine: Index, rows: int) -> Block:
        """`mine` lines of outputs from `first` on, at most `rows`: their input is copied where it needs padding."""
        p = self.plan
        source, output = self.source.at(image), self.output.at(image)
        if not p.copied:
            (whole,) = source
            return Block(p, whole.view, 0, output, first, mine)
        top = first * p.window.stride[0]
        copy = self.kernel.workspace(p.lines(rows) * p.line_pixels * p.channels, "uint8")
        Copy(self.kernel, p, source, copy, self.padding, self.arithmetic.lanes).emit(top, p.lines(mine))
        return Block(p, copy, top * (-p.line_pixels * p.in_pitch), output, first, mine)
