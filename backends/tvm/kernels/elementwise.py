"""Sums, products and activations of packed tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from .builder import Kernel
from .output import Output
from .shapes import Binary, Signature, Unary, round_up
from .tile import is_parallel

OPERATIONS = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}
PASSES = 16  # work of one element against a multiply-add: it is bound by memory


def signature(spec: Binary | Unary, arithmetic: Arithmetic) -> Signature:
    channels = round_up(spec.channels, arithmetic.lanes)
    whole = (spec.batch, spec.height, spec.width, channels)
    residual = whole if spec.epilogue.residual else None
    if isinstance(spec, Unary):
        return Signature((whole,), (), residual, whole, arithmetic.activation, arithmetic.activation)
    second = (spec.batch, 1, 1, channels) if spec.per_channel else whole
    return Signature((whole, second), (), residual, whole, arithmetic.activation, arithmetic.activation)


def pack(spec: Binary | Unary, arithmetic: Arithmetic) -> list[np.ndarray]:
    """Elementwise kernels have no weights."""
    return []


def describe(spec: Binary | Unary, arithmetic: Arithmetic) -> str:
    what = spec.operation if isinstance(spec, Binary) else "activation"
    return f"elementwise {what}, vectors of {arithmetic.lanes}"


def prim_func(spec: Binary | Unary, arithmetic: Arithmetic) -> Any:
    lanes, pitch = arithmetic.lanes, round_up(spec.channels, arithmetic.lanes)
    parallel = is_parallel(arithmetic, (spec.batch or 1) * PASSES * spec.height * spec.width * pitch)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        outputs = Output(kernel, arithmetic, spec.epilogue, given.target, given.residual)
        images = spec.batch or given.batch
        with kernel.grid(images, spec.height, parallel=parallel) as (image, row):
            output, operands = outputs.at(image), [source.at(image) for source in given.sources]
            with kernel.grid(spec.width, pitch // lanes) as (column, vector):
                channel = vector * lanes
                place = (row * spec.width + column) * pitch + channel
                value = operands[0].vector(place, lanes)
                if isinstance(spec, Binary):
                    other = operands[1].vector(channel if spec.per_channel else place, lanes)
                    value = OPERATIONS[spec.operation](value, other)
                output.write(place, value)
    return kernel.prim_func
