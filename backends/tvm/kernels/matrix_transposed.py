"""Transposed convolutions of bytes on a matrix unit (AMX): the convolution of all phases, written to their places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..arithmetic import Amx, Arithmetic
from . import matrix_conv, matrix_plan, transposed
from .matrix_plan import MatrixPlan
from .shapes import Signature, TransposedConv, round_up


def takes(spec: TransposedConv, arithmetic: Arithmetic) -> bool:
    """Whether a matrix unit is there, and every pixel of the convolution gives a pixel of the output in each phase."""
    if not isinstance(arithmetic, Amx) or (over := transposed.window(spec)) is None:
        return False
    extents = over.output(spec.height, spec.width)
    return spec.output == tuple(extent * stride for extent, stride in zip(extents, spec.stride, strict=True))


def plan(spec: TransposedConv, arithmetic: Amx) -> MatrixPlan:
    """Of the convolution. Vectors that are summed together are of one phase."""
    inner, lanes = transposed.convolution(spec, arithmetic), arithmetic.lanes
    pitch = round_up(spec.out_channels, lanes)
    found = replace(matrix_plan.of_lines(inner, lanes), out_pitch=pitch, phases=spec.stride)
    if pitch // lanes % found.wide:
        tall, wide = matrix_plan.shape(found.tiles(found.rows), 1, found.size)
        return replace(found, tall=tall, wide=wide)
    return found


def signature(spec: TransposedConv, arithmetic: Amx) -> Signature:
    found = matrix_conv.signature(transposed.convolution(spec, arithmetic), arithmetic)
    output = (spec.batch, *spec.output, round_up(spec.out_channels, arithmetic.lanes))
    return replace(found, output=output, residual=output if found.residual else None)


def pack(
    spec: TransposedConv,
    arithmetic: Amx,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    *rest: Any,
) -> list[np.ndarray]:
    """weight [in, out, kh, kw], and the others per channel of the output, as `matrix_conv.pack` takes them."""
    inner = transposed.convolved(spec, arithmetic, weight, bias, multiplier)
    return matrix_conv.packed(plan(spec, arithmetic), spec.epilogue, arithmetic, *inner, *rest)


def describe(spec: TransposedConv, arithmetic: Amx) -> str:
    return f"{transposed.name(spec)}, as {matrix_conv.described(plan(spec, arithmetic), arithmetic)}"


def prim_func(spec: TransposedConv, arithmetic: Amx) -> Any:
    return matrix_conv.nest_of(plan(spec, arithmetic), signature(spec, arithmetic), spec.epilogue, arithmetic)
