"""Transposed convolutions: a direct convolution that gives all phases of the output at once.

With strides s, output s * q + r reads the inputs around q with the taps of phase r. The phases of a pixel are vectors
of output channels of one convolution over the input's pixels, and each is written to its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import direct, packing, product_weights
from .builder import Index, Kernel, Vector
from .output import Output
from .shapes import DirectConv, Signature, TransposedConv, Window, round_up


def window(spec: TransposedConv) -> Window | None:
    """The window over the input that holds the taps of all phases; None where it begins or ends inside the image."""
    spans = [_span(spec, axis) for axis in (0, 1)]
    padding = tuple(side for span in spans for side in (span.before, span.after))
    if min(padding) < 0:
        return None
    return Window((spans[0].taps, spans[1].taps), padding=(padding[0], padding[1], padding[2], padding[3]))


@dataclass(frozen=True)
class _Span:
    """The window along one axis: its taps, and the padding before and after the image."""

    taps: int
    before: int
    after: int


def _span(spec: TransposedConv, axis: int) -> _Span:
    reached = [shift for _, _, shift in _taps(spec, axis)]
    first, taps = min(reached), max(reached) - min(reached) + 1
    extent, outputs = (spec.height, spec.width)[axis], -(-spec.output[axis] // spec.stride[axis])
    return _Span(taps, -first, outputs + first + taps - 1 - extent)


def _taps(spec: TransposedConv, axis: int) -> Iterator[tuple[int, int, int]]:
    """(phase, tap, shift): phase r of output q reads input q + shift with this tap."""
    stride = spec.stride[axis]
    for phase, tap in product(range(stride), range(spec.kernel[axis])):
        shift, rest = divmod(phase + spec.padding[axis] - tap * spec.dilation[axis], stride)
        if rest == 0:
            yield phase, tap, shift


def convolution(spec: TransposedConv, arithmetic: Arithmetic) -> DirectConv:
    """The direct convolution, whose output channels are phases x channels in whole vectors.

    Raises ValueError where `window` is None.
    """
    over = window(spec)
    if over is None:
        raise ValueError(f"transposed convolution: padding {spec.padding} cuts whole windows; expected less of it.")
    channels = spec.phases * round_up(spec.out_channels, arithmetic.lanes)
    extents = spec.batch, spec.height, spec.width, spec.in_channels, channels
    return DirectConv(*extents, over, epilogue=spec.epilogue, bordered=spec.bordered)


def signature(spec: TransposedConv, arithmetic: Arithmetic) -> Signature:
    found = direct.signature(convolution(spec, arithmetic), arithmetic)
    output = (spec.batch, *spec.output, round_up(spec.out_channels, arithmetic.lanes))
    return replace(found, output=output, residual=output if found.residual else None)


def pack(
    spec: TransposedConv,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None = None,
    *rest: Any,
) -> list[np.ndarray]:
    """weight [in, out, kh, kw], and the others per channel of the output, as `direct.pack` takes them."""
    inner = convolution(spec, arithmetic)
    return direct.pack(inner, arithmetic, *convolved(spec, arithmetic, weight, bias, multiplier), *rest)


def convolved(
    spec: TransposedConv,
    arithmetic: Arithmetic,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Weight [phases x channels, in, height, width of `window`], bias and multiplier of `convolution`."""
    inner, channels = convolution(spec, arithmetic), round_up(spec.out_channels, arithmetic.lanes)
    tall, wide = spec.stride
    placed = np.zeros((tall, wide, channels, spec.in_channels, *inner.window.kernel), np.asarray(weight).dtype)
    top, _, left, _ = inner.window.padding
    for (y, tap_y, down), (x, tap_x, across) in product(_taps(spec, 0), _taps(spec, 1)):
        placed[y, x, : spec.out_channels, :, down + top, across + left] = np.asarray(weight)[:, :, tap_y, tap_x].T

    def each_phase(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        lanes = packing.lanes_of(values, spec.out_channels, arithmetic.lanes, str(np.asarray(values).dtype))
        return np.tile(lanes, spec.phases)

    return placed.reshape(-1, spec.in_channels, *inner.window.kernel), each_phase(bias), each_phase(multiplier)


def describe(spec: TransposedConv, arithmetic: Arithmetic) -> str:
    return f"{name(spec)}, as {direct.describe(convolution(spec, arithmetic), arithmetic)}"


def name(spec: TransposedConv) -> str:
    kernel, stride = ("x".join(map(str, sizes)) for sizes in (spec.kernel, spec.stride))
    return f"transposed {kernel}, stride {stride}"


def prim_func(spec: TransposedConv, arithmetic: Arithmetic) -> Any:
    inner = convolution(spec, arithmetic)
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        output = product_weights.output_of(kernel, arithmetic, spec.epilogue, given, taken=2)
        source, (weights, bias) = given.sources[0], given.weights[:2]
        plan = direct.plan(inner, arithmetic)
        nest = _Nest(kernel, arithmetic, inner, plan, source, weights, bias, output, spec)
        nest.emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class _Nest(direct.Nest):
    """The loops of the direct convolution; what they store goes to the places of its phases."""

    transposed: TransposedConv

    def store(self, output: Output, place: direct.Place, i: int, v: int, values: list[Vector]) -> None:
        """Each vector on its own: neighbours may belong to different phases."""
        for vector, value in enumerate(values, v):
            self.store_one(output, place, i, self.vector(place, vector), value)

    def store_one(self, output: Output, place: direct.Place, i: int, vector: Index, value: Vector) -> None:
        spec, lanes = self.transposed, self.arithmetic.lanes
        pitch = round_up(spec.out_channels, lanes)
        phase, channel = vector // (pitch // lanes), vector % (pitch // lanes) * lanes
        (tall, wide), (height, width) = spec.stride, spec.output
        row, column = place.row * tall + phase // wide, (place.column + i) * wide + phase % wide
        on_rows, on_columns = height % tall == 0 or row < height, width % wide == 0 or column < width
        with self.kernel.when(on_rows), self.kernel.when(on_columns):
            output.write((row * width + column) * pitch + channel, value, vector * lanes)
