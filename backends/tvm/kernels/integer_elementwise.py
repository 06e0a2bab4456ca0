"""Sums, products, tables and conversions of packed integer tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from .builder import Index, Kernel, Parameters, Vector
from .quantize_image import quantize_row
from .requantize import CONSTANTS, Constant, Steps
from .shapes import IntegerAdd, IntegerMul, Lookup, Signature, ToFloat, ToIntegers, round_up
from .tile import is_parallel

Elementwise = IntegerAdd | IntegerMul | Lookup | ToIntegers | ToFloat
PASSES = 16  # work of one element against a multiply-add: it is bound by memory

_NAMES = {IntegerAdd: "sum", IntegerMul: "product", Lookup: "table", ToIntegers: "quantize", ToFloat: "dequantize"}


def signature(spec: Elementwise, arithmetic: Arithmetic) -> Signature:
    packed = (spec.batch, spec.height, spec.width, round_up(spec.channels, arithmetic.lanes))
    kind, constants = arithmetic.activation, ((CONSTANTS,),)
    if isinstance(spec, ToIntegers):
        plain = (spec.batch, spec.channels, spec.height, spec.width)
        return Signature((plain,), constants, None, packed, "float32", kind)
    if isinstance(spec, ToFloat):
        return Signature((packed,), constants, None, packed, kind, "float32")
    if isinstance(spec, Lookup):
        return Signature((packed,), ((256,),), None, packed, kind, kind, (kind,))
    second = (spec.batch, 1, 1, packed[-1]) if spec.per_channel else packed
    return Signature((packed, second), constants, None, packed, kind, kind)


def pack(spec: Elementwise, arithmetic: Arithmetic, numbers: np.ndarray) -> list[np.ndarray]:
    """numbers: the table of a Lookup by the byte in memory, ascending; else `requantize.constants`."""
    return [numbers]


def describe(spec: Elementwise, arithmetic: Arithmetic) -> str:
    return f"{_NAMES[type(spec)]}, vectors of {arithmetic.lanes}"


def prim_func(spec: Elementwise, arithmetic: Arithmetic) -> Any:
    pitch = round_up(spec.channels, arithmetic.lanes)
    parallel = is_parallel(arithmetic, (spec.batch or 1) * PASSES * spec.height * spec.width * pitch)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        with kernel.grid(spec.batch or given.batch, spec.height, parallel=parallel) as (image, row):
            if isinstance(spec, ToIntegers):
                assert isinstance(arithmetic, Integers)
                quantize_row(kernel, spec, arithmetic, given, image, row)
            elif isinstance(spec, Lookup):
                assert isinstance(arithmetic, Integers)
                _look_up_row(kernel, spec, arithmetic, given, image, row)
            else:
                _row(kernel, spec, arithmetic, given, image, row)
    return kernel.prim_func


def _row(
    kernel: Kernel, spec: IntegerAdd | IntegerMul | ToFloat, arithmetic: Arithmetic, given: Parameters, image: Index,
    row: Index,
) -> None:  # fmt: skip
    lanes, pitch = arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    operands, target = [source.at(image) for source in given.sources], given.target.at(image)
    grid = Steps(lanes, given.weights[0])
    with kernel.grid(spec.width, pitch // lanes) as (column, vector):
        place = (row * spec.width + column) * pitch + vector * lanes
        own = T.cast(operands[0].vector(place, lanes), f"float32x{lanes}") - grid.number(Constant.ZERO_OWN)
        if isinstance(spec, ToFloat):
            target.store(place, own * grid.number(Constant.SCALE), lanes)
        else:
            other = operands[1].vector(vector * lanes if spec.per_channel else place, lanes)
            steps = grid.plus(own, other) if isinstance(spec, IntegerAdd) else _times(grid, own, other)
            target.store(place, T.cast(grid.stored(steps), f"{arithmetic.activation}x{lanes}"), lanes)


def _times(grid: Steps, own: Vector, other: Vector) -> Vector:
    """Products of integers of nine bits are exact in float32."""
    centered = T.cast(other, f"float32x{grid.lanes}") - grid.number(Constant.ZERO_OTHER)
    return grid.rounded(own * centered * grid.number(Constant.SCALE))


def _look_up_row(
    kernel: Kernel, spec: Lookup, arithmetic: Integers, given: Parameters, image: Index, row: Index
) -> None:
    """By whole vectors of bytes; the last one begins early enough to end with the row, and does some bytes again."""
    source, target, table = given.sources[0].at(image), given.target.at(image), given.weights[0]
    length, lanes = spec.width * round_up(spec.channels, arithmetic.lanes), arithmetic.table_lanes
    if not lanes or length < lanes:
        smallest = np.iinfo(source.dtype).min
        with kernel.loop(length) as i:
            place = row * length + i
            target.store(place, table.scalar(T.cast(source.scalar(place), "int32") - smallest))
        return
    whole, rest = divmod(length, lanes)
    with kernel.loop(whole) as i:
        place = row * length + i * lanes
        target.store(place, arithmetic.look_up(table, source.vector(place, lanes)), lanes)
    if rest:
        place = row * length + length - lanes
        target.store(place, arithmetic.look_up(table, source.vector(place, lanes)), lanes)
