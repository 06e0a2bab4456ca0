"""Packed tensors side by side along channels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import gcd
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from .builder import Kernel
from .shapes import Signature
from .tile import is_parallel

PASSES = 16  # work of one element against a multiply-add: it is bound by memory


@dataclass(frozen=True)
class Concat:
    """Parts of `channels` each, which fill whole vectors: [N, H, W, channels[i]]... -> [N, H, W, sum of channels]."""

    batch: int | None
    height: int
    width: int
    channels: tuple[int, ...]


def signature(spec: Concat, arithmetic: Arithmetic) -> Signature:
    kind, pixels = arithmetic.activation, (spec.batch, spec.height, spec.width)
    inputs = tuple((*pixels, channels) for channels in spec.channels)
    return Signature(inputs, (), None, (*pixels, sum(spec.channels)), kind, kind)


def pack(spec: Concat, arithmetic: Arithmetic) -> list[np.ndarray]:
    """There are no weights."""
    return []


def describe(spec: Concat, arithmetic: Arithmetic) -> str:
    return f"concat of {len(spec.channels)}"


def prim_func(spec: Concat, arithmetic: Arithmetic) -> Any:
    *starts, whole = accumulate(spec.channels, initial=0)
    parallel = is_parallel(arithmetic, (spec.batch or 1) * PASSES * spec.height * spec.width * whole)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        register = 4 * arithmetic.lanes // given.target.itemsize  # elements of a vector register
        with kernel.grid(spec.batch or given.batch, spec.height, parallel=parallel) as (image, row):
            target, sources = given.target.at(image), [source.at(image) for source in given.sources]
            with kernel.loop(spec.width) as column:
                pixel = row * spec.width + column
                for source, channels, start in zip(sources, spec.channels, starts, strict=True):
                    size = gcd(channels, register)
                    with kernel.loop(channels // size) as i:
                        value = source.vector(pixel * channels + i * size, size)
                        target.store(pixel * whole + start + i * size, value, size)
    return kernel.prim_func
