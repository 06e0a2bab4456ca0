"""Quantizing, and tables of bytes, on plain tensors of any shape: rows of numbers that lie one behind the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic, Integers
from ..arithmetic.tir import T
from .builder import Index, Kernel, View
from .quantize_image import quantized, quantized_one
from .requantize import CONSTANTS, Steps
from .shapes import Signature
from .tile import is_parallel

PASSES = 16  # work of one element against a multiply-add: it is bound by memory
USUAL_ROWS = 64  # where their number is known at run time only


@dataclass(frozen=True)
class FlatQuantize:
    """[rows, width] of float32 as bytes. rows=None is known at run time."""

    rows: int | None
    width: int


@dataclass(frozen=True)
class FlatLookup:
    """A table of 256 bytes, looked up for every byte of [rows, width]."""

    rows: int | None
    width: int


Flat = FlatQuantize | FlatLookup


def signature(spec: Flat, arithmetic: Arithmetic) -> Signature:
    whole, kind = (spec.rows, spec.width), arithmetic.activation
    if isinstance(spec, FlatQuantize):
        return Signature((whole,), ((CONSTANTS,),), None, whole, "float32", kind)
    return Signature((whole,), ((256,),), None, whole, kind, kind, (kind,))


def pack(spec: Flat, arithmetic: Arithmetic, numbers: np.ndarray) -> list[np.ndarray]:
    """numbers: `requantize.constants`, or a table by the byte in memory, ascending."""
    return [numbers]


def describe(spec: Flat, arithmetic: Arithmetic) -> str:
    return f"{'quantize' if isinstance(spec, FlatQuantize) else 'table'}, rows of {spec.width}"


def prim_func(spec: Flat, arithmetic: Arithmetic) -> Any:
    parallel = is_parallel(arithmetic, (spec.rows or USUAL_ROWS) * PASSES * spec.width)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        source, target, numbers = given.sources[0], given.target, given.weights[0]
        rows: Any = spec.rows or given.batch
        with kernel.loop(rows, parallel=parallel) as row:
            assert isinstance(arithmetic, Integers)
            if isinstance(spec, FlatQuantize):
                _quantize(kernel, arithmetic, source, target, numbers, row * spec.width, spec.width)
            else:
                _look_up(kernel, arithmetic, source, target, numbers, row * spec.width, spec.width)
    return kernel.prim_func


def _quantize(
    kernel: Kernel, arithmetic: Integers, source: View, target: View, numbers: View, start: Index, width: int
) -> None:
    lanes, kind = arithmetic.lanes, arithmetic.activation

    def vector(place: Index) -> None:
        value = quantized(Steps(lanes, numbers), arithmetic, source.vector(place, lanes))
        target.store(place, T.cast(value, f"{kind}x{lanes}"), lanes)

    def one(place: Index) -> None:
        target.store(place, T.cast(quantized_one(numbers, source, place), kind))

    _over_row(kernel, start, width, lanes, vector, one)


def _look_up(
    kernel: Kernel, arithmetic: Integers, source: View, target: View, table: View, start: Index, width: int
) -> None:
    lanes, smallest = arithmetic.table_lanes, np.iinfo(source.dtype).min

    def vector(place: Index) -> None:
        target.store(place, arithmetic.look_up(table, source.vector(place, lanes)), lanes)

    def one(place: Index) -> None:
        target.store(place, table.scalar(T.cast(source.scalar(place), "int32") - smallest))

    _over_row(kernel, start, width, lanes, vector, one)


def _over_row(
    kernel: Kernel,
    start: Index,
    width: int,
    lanes: int,
    vector: Callable[[Index], None],
    one: Callable[[Index], None],
) -> None:
    """By whole vectors; the last one begins early enough to end with the row, and does some numbers again."""
    if not lanes or width < lanes:
        with kernel.loop(width, start) as place:
            one(place)
        return
    whole, rest = divmod(width, lanes)
    with kernel.loop(whole) as i:
        vector(start + i * lanes)
    if rest:
        vector(start + width - lanes)
