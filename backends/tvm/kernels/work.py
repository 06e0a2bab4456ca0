"""What a kernel has to do at least: multiply-accumulates, and bytes to read and write: its time is held to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import winograd_plan
from .shapes import (
    Dense,
    Depthwise,
    DirectConv,
    ExpandDepthwise,
    IntegerWinograd,
    Pointwise,
    Shape,
    Signature,
    TransposedConv,
    Winograd,
)
from .weight_only import WeightOnlyDense


@dataclass(frozen=True)
class Work:
    """macs: multiply-accumulates of the plain algorithm (Winograd does fewer); bytes: of all operands, each once."""

    macs: int
    bytes: int


def work(spec: Any, signature: Signature, batch: int = 1) -> Work:
    """The work of a spec. `batch` stands for an extent that is known at run time only."""

    def extent(shape: Shape) -> int:
        return prod(batch if size is None else size for size in shape)

    moved = sum(extent(shape) * np.dtype(dtype).itemsize for shape, dtype in signature.parameters())
    count = _MACS.get(type(spec))
    return Work(count(spec, batch) if count else 0, moved)


def _direct(spec: DirectConv, batch: int) -> int:
    pixels = prod(spec.window.output(spec.height, spec.width))
    per_output = spec.window.taps * spec.in_channels // spec.groups
    return (spec.batch or batch) * pixels * spec.out_channels * per_output


def _winograd(spec: Winograd | IntegerWinograd, batch: int) -> int:
    pixels = prod(winograd_plan.output_of(spec))
    return (spec.batch or batch) * pixels * spec.out_channels * spec.in_channels * spec.kernel**2


def _transposed(spec: TransposedConv, batch: int) -> int:
    return (spec.batch or batch) * spec.height * spec.width * prod(spec.kernel) * spec.in_channels * spec.out_channels


def _pointwise(spec: Pointwise, batch: int) -> int:
    return (spec.batch or batch) * spec.height * spec.width * spec.in_channels * spec.out_channels


def _depthwise(spec: Depthwise | ExpandDepthwise, batch: int) -> int:
    return (spec.batch or batch) * prod(spec.window.output(spec.height, spec.width)) * spec.channels * spec.window.taps


def _expand_depthwise(spec: ExpandDepthwise, batch: int) -> int:
    expand = (spec.batch or batch) * spec.height * spec.width * spec.in_channels * spec.channels
    return expand + _depthwise(spec, batch)


def _dense(spec: Dense | WeightOnlyDense, batch: int) -> int:
    return (spec.rows or batch) * spec.in_features * spec.out_features


_MACS: dict[type, Callable[[Any, int], int]] = {
    DirectConv: _direct,
    Winograd: _winograd,
    IntegerWinograd: _winograd,
    TransposedConv: _transposed,
    Pointwise: _pointwise,
    Depthwise: _depthwise,
    ExpandDepthwise: _expand_depthwise,
    Dense: _dense,
    WeightOnlyDense: _dense,
}
