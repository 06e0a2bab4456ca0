"""Products of two activations, matrix by matrix: the right side of each is packed at run time.

Integers mean q - zero point on both sides: what the zero points take away is made up for by the sums of the right
side's columns and of the left side's rows, each one more product with ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from . import product_weights
from .builder import Index, Kernel, Parameters, Vector, View
from .epilogues import NO_EPILOGUE, Finish
from .run_time_packing import RightSide
from .run_time_panels import RunTimeProduct, in_blocks
from .shapes import Shape, Signature, round_up
from .tile import cut_blocks, is_parallel
from .tokens import Tokens


@dataclass(frozen=True)
class BatchedMatmul:
    """[batch, heads, rows, steps] times [batch, heads, steps, outputs], or with `transposed` [.., outputs, steps].

    left, right, output: how each lies in memory. batch=None is known at run time.
    Raises ValueError for sides that do not fit.
    """

    batch: int | None
    left: Tokens
    right: Tokens
    output: Tokens
    transposed: bool = False
    epilogue: Finish = NO_EPILOGUE

    def __post_init__(self) -> None:
        steps, outputs = (self.right.width, self.right.length)[:: 1 if self.transposed else -1]
        wanted = (self.left.heads, self.left.heads, self.left.width, self.left.length, outputs)
        if wanted != (self.right.heads, self.output.heads, steps, self.output.length, self.output.width):
            raise ValueError(f"batched product: {self.left} times {self.right} is no {self.output}.")

    @property
    def right_side(self) -> RightSide:
        right, pitches = self.right, (self.right.pitch, 1)
        if self.transposed:
            return RightSide(right.length, right.width, *pitches)
        return RightSide(right.width, right.length, *pitches[::-1])


def block_rows(spec: BatchedMatmul, arithmetic: Arithmetic) -> int:
    """Rows of the left side that stay in the cache while all panels pass over them."""
    row = spec.left.width * np.dtype(arithmetic.activation).itemsize
    wanted = max(arithmetic.cache // (2 * row), 1)
    return cut_blocks(spec.left.length, -(-spec.left.length // wanted)).size


def signature(spec: BatchedMatmul, arithmetic: Arithmetic) -> Signature:
    sources: tuple[Shape, ...] = tuple((spec.batch, *side.shape) for side in (spec.left, spec.right))
    output = (spec.batch, *spec.output.shape)
    if not isinstance(arithmetic, Integers):
        return Signature(sources, (), None, output)
    lanes = arithmetic.lanes
    depth, outputs = round_up(spec.left.width, arithmetic.group), round_up(spec.output.width, lanes)
    ones = ((spec.left.width,), arithmetic.activation), ((depth * lanes,), arithmetic.weight)
    found = product_weights.signature(spec.epilogue, arithmetic, sources[0], output, (*ones, ((2,), "int32")), outputs)
    return Signature(sources, found.weights, None, output, found.activation, found.result, found.weight_dtypes)


def pack(
    spec: BatchedMatmul,
    arithmetic: Arithmetic,
    multiplier: np.ndarray | None = None,
    constants: np.ndarray | None = None,
    zero_points: tuple[int, int] = (0, 0),
) -> list[np.ndarray]:
    """Floats have no weights. Integers: ones, and what their epilogue reads; zero_points as they are in memory."""
    if not isinstance(arithmetic, Integers):
        return []
    steps, lanes = spec.left.width, arithmetic.lanes
    right = np.zeros((round_up(steps, arithmetic.group) // arithmetic.group, lanes, arithmetic.group), np.int8)
    for step in range(steps):
        right[step // arithmetic.group, :, step % arithmetic.group] = 1
    signed = zero_points[1] - (128 if arithmetic.activation == "uint8" else 0)
    zeros = np.array([zero_points[0], signed], np.int32)
    finishing = product_weights.finishing(spec.epilogue, arithmetic, spec.output.width, multiplier, constants)
    return [np.ones(steps, arithmetic.activation), right.ravel(), zeros, *finishing]


def describe(spec: BatchedMatmul, arithmetic: Arithmetic) -> str:
    return f"batched product, blocks of {block_rows(spec, arithmetic)} rows, vectors of {arithmetic.lanes}"


def prim_func(spec: BatchedMatmul, arithmetic: Arithmetic) -> Any:
    rows, heads, side = spec.left.length, spec.left.heads, spec.right_side
    size = block_rows(spec, arithmetic)
    parallel = is_parallel(arithmetic, (spec.batch or 1) * heads * rows * side.steps * side.outputs)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        product = RunTimeProduct(kernel, arithmetic, side, size)
        # Each part packs the right side again: matrices are cut only to keep the cores busy.
        parts = cut_blocks(rows // size, -(-2 * arithmetic.cores // heads) if parallel else 1)
        extents = (spec.batch or given.batch, heads, parts.count)
        with kernel.grid(*extents, parallel=parallel) as (image, head, part):
            panels = kernel.workspace(product.packed_size, arithmetic.weight)
            product.pack(given.sources[1].at(image), spec.right.offset(head, 0), panels)
            matrix = (_Integers if isinstance(arithmetic, Integers) else _Floats)(spec, product, given, panels)
            matrix.prepare()
            in_blocks(kernel, rows, size, part, parts, lambda first, count: matrix.block(image, head, first, count))
    return kernel.prim_func


@dataclass
class _Floats:
    """One matrix, whose right side lies in `panels`."""

    spec: BatchedMatmul
    product: RunTimeProduct
    given: Parameters
    panels: View

    def prepare(self) -> None:
        """What all blocks of rows share."""

    def block(self, image: Index, head: Index, first: Index, rows: int) -> None:
        spec = self.spec
        output = product_weights.output_of(
            self.product.kernel, self.product.arithmetic, spec.epilogue, self.given, taken=3
        ).at(image)  # fmt: skip
        source = self.given.sources[0].at(image)

        def write(row: Index, channel: Index, value: Vector, used: int) -> None:
            place = spec.output.offset(head, first + row) + channel
            output.write(place, self.corrected(row, channel, value), channel, used)

        def offset(row: Index) -> Index:
            return spec.left.offset(head, first + row)

        self.start_block(rows, source, offset)
        self.product.multiply(rows, source, offset, self.panels, write)

    def start_block(self, rows: int, source: View, offset: Any) -> None:
        """What all panels share."""

    def corrected(self, row: Index, channel: Index, value: Vector) -> Vector:
        return value


@dataclass
class _Integers(_Floats):
    """sum (a - x)(b - y) = sum a b - x * (sum of b) - y * (sum of a) + steps * x * y."""

    def prepare(self) -> None:
        product, lanes = self.product, self.product.arithmetic.lanes
        ones, _, zeros = self.given.weights[:3]
        self.columns = product.kernel.workspace(product.vectors * lanes, "int32")
        both = zeros.scalar(0) * zeros.scalar(1) * T.int32(product.right.steps)

        def write(row: Index, channel: Index, value: Vector, used: int) -> None:
            taken = T.broadcast(both, lanes) - value * T.broadcast(zeros.scalar(0), lanes)
            self.columns.store(channel, taken, lanes)

        product.multiply(1, ones, lambda row: 0, self.panels, write)

    def start_block(self, rows: int, source: View, offset: Any) -> None:
        product, lanes = self.product, self.product.arithmetic.lanes
        _, ones, zeros = self.given.weights[:3]
        self.rows = product.kernel.workspace(rows * lanes, "int32")
        sums = RunTimeProduct(product.kernel, product.arithmetic, RightSide(lanes, product.right.steps, 0, 0), rows)

        def write(row: Index, channel: Index, value: Vector, used: int) -> None:
            self.rows.store(row * lanes, value * T.broadcast(zeros.scalar(1), lanes), lanes)

        sums.multiply(rows, source, offset, ones, write)

    def corrected(self, row: Index, channel: Index, value: Vector) -> Vector:
        lanes = self.product.arithmetic.lanes
        return value + self.columns.vector(channel, lanes) - self.rows.vector(row * lanes, lanes)
