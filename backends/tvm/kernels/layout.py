"""Between plain NCHW and packed NHWCp, at the edges of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Kernel
from .shapes import Signature, ToPacked, ToPlain, round_up
from .tile import is_parallel

PASSES = 16  # work of one element against a multiply-add: it is bound by memory


def signature(spec: ToPacked | ToPlain, arithmetic: Arithmetic) -> Signature:
    plain = (spec.batch, spec.channels, spec.height, spec.width)
    packed = (spec.batch, spec.height, spec.width, round_up(spec.channels, arithmetic.lanes))
    source, target = (plain, packed) if isinstance(spec, ToPacked) else (packed, plain)
    return Signature((source,), (), None, target, arithmetic.activation, arithmetic.activation)


def pack(spec: ToPacked | ToPlain, arithmetic: Arithmetic) -> list[np.ndarray]:
    """A change of layout has no weights."""
    return []


def describe(spec: ToPacked | ToPlain, arithmetic: Arithmetic) -> str:
    return "to packed layout" if isinstance(spec, ToPacked) else "to plain layout"


def prim_func(spec: ToPacked | ToPlain, arithmetic: Arithmetic) -> Any:
    channels, pitch = spec.channels, round_up(spec.channels, arithmetic.lanes)
    pixels = spec.height * spec.width
    parallel = is_parallel(arithmetic, (spec.batch or 1) * PASSES * pixels * pitch)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        with kernel.grid(spec.batch or given.batch, spec.height, parallel=parallel) as (image, row):
            source, target = given.sources[0].at(image), given.target.at(image)
            if isinstance(spec, ToPlain):
                with kernel.grid(channels, spec.width) as (channel, column):
                    pixel = row * spec.width + column
                    target.store(channel * pixels + pixel, source.scalar(pixel * pitch + channel))
            else:
                with kernel.loop(spec.width) as column:
                    pixel = row * spec.width + column
                    with kernel.loop(channels) as channel:
                        target.store(pixel * pitch + channel, source.scalar(channel * pixels + pixel))
                    if pitch > channels:
                        with kernel.loop(pitch - channels, channels) as channel:
                            target.store(pixel * pitch + channel, T.cast(0, arithmetic.activation))
    return kernel.prim_func
