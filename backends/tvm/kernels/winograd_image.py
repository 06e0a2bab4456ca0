"""The copy of a plain image from which Winograd's tiles are read: pixels that hold all phases of a stride.

A convolution of stride s on C channels is one of stride 1 on s * s * C channels, with taps r = ceil(kernel / s) a side:
so a stem, whose seven taps a side and stride of two Winograd does not take, becomes one that it does.
"""

from __future__ import annotations

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Index, Kernel, View
from .shapes import Winograd
from .tile import is_parallel
from .winograd_plan import Input


def arrange(kernel: Kernel, arithmetic: Arithmetic, spec: Winograd, copy: Input, source: View) -> View:
    """source [images, channels, height, width] -> [images, copy height, copy width, (row, column, channel)].

    Pixels on the padding are zeros. Lanes behind the last channel are left as they were: nothing multiplies them.
    """
    assert spec.batch is not None
    to = kernel.workspace(spec.batch * copy.height * copy.width * copy.pitch, arithmetic.activation)
    parallel = is_parallel(arithmetic, spec.batch * copy.height * copy.width * copy.pitch)
    with kernel.grid(spec.batch, copy.height, parallel=parallel) as (image, row):
        start = (image * copy.height + row) * (copy.width * copy.pitch)
        for a in range(spec.stride):
            line = row * spec.stride + a - spec.padding[0]
            inside = T.And(line >= 0, line < spec.height)
            for b in range(spec.stride):
                first = start + (a * spec.stride + b) * spec.in_channels
                _Line(kernel, spec, copy, source.at(image), to, b, first).emit(line, inside)
    return to


class _Line:
    """One phase of one row of the copy."""

    def __init__(self, kernel: Kernel, spec: Winograd, copy: Input, source: View, to: View, phase: int, first: Index):
        self._kernel, self._spec, self._source, self._to, self._first = kernel, spec, source, to, first
        self._pitch, self._width = copy.pitch, copy.width
        before = spec.padding[2] - phase  # pixels of padding before the first one of this phase
        self._before = before
        self._begin = max(0, -(-before // spec.stride))
        self._end = min(copy.width, (spec.width - 1 + before) // spec.stride + 1)

    def emit(self, line: Index, inside: Index) -> None:
        """The pixels on the image between those on the padding; all on the padding where the line is."""
        with self._kernel.when(inside):
            self._zeros(0, self._begin)
            with self._kernel.loop(self._end - self._begin, self._begin) as column:
                for channel in range(self._spec.in_channels):
                    place = (channel * self._spec.height + line) * self._spec.width
                    value = self._source.scalar(place + column * self._spec.stride - self._before)
                    self._to.store(self._first + column * self._pitch + channel, value)
            self._zeros(self._end, self._width)
        with self._kernel.when(T.Not(inside)):
            self._zeros(0, self._width)

    def _zeros(self, begin: int, end: int) -> None:
        if begin == end:
            return
        with self._kernel.loop(end - begin, begin) as column:
            for channel in range(self._spec.in_channels):
                self._to.store(self._first + column * self._pitch + channel, T.cast(0, self._to.dtype))
